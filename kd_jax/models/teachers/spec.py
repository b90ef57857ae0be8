"""The specification of a bi-encoder."""

from __future__ import annotations

import dataclasses

import numpy as np

from kd_jax.core.errors import InputError, nearest

ITEM_FEATURES = ("text", "id", "text+id")
CONTEXTS = ("items", "text")
SOFTMAXES = ("full", "in_batch", "sampled")


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """The fields of the section ``teacher.model``, with data from which a bi-encoder is created.

    bias: f32 [I], the initial item bias. warm: bool [I], or None. components, whitening: of the PCA
    of the text vectors; components=0: none. num_classes: rating classes of a user-item pair; 0:
    rank the catalogue. trends: f32 [S, I, K], the popularity features of the items at S times
    (``data/popularity.py``), or None. softmax: the items of the softmax while the language model is
    trained: the catalogue ('full'), or, with log-Q correction, the items that the step encodes:
    those of the batch ('in_batch'), or these and ``negatives`` drawn items ('sampled').
    hard_negatives: the number of items per row to encode besides, those to which the teacher itself
    gives the highest scores. share: f32 [I], each item's share of the train interactions, or None.
    Raises InputError for a value out of range.
    """

    num_items: int
    bias: np.ndarray
    warm: np.ndarray | None
    item_features: str = "text"
    context: str = "items"
    dim: int = 64
    blocks: int = 2
    heads: int = 2
    history: int = 20
    hidden: int = 256
    dropout: float = 0.2
    init_scale: float = 0.1
    train_bias: bool = True
    components: int = 128
    whitening: float = 0.5
    num_classes: int = 0
    softmax: str = "full"
    negatives: int = 0
    hard_negatives: int = 0
    share: np.ndarray | None = None
    trends: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field, known in (
            ("item_features", ITEM_FEATURES),
            ("context", CONTEXTS),
            ("softmax", SOFTMAXES),
        ):
            value = getattr(self, field)
            if value not in known:
                raise InputError(
                    f"teacher.model.{field}={value!r} is unknown{nearest(value, known)}"
                )
        for field in ("dim", "blocks", "heads", "hidden", "history"):
            if getattr(self, field) < 1:
                raise InputError(f"teacher.model.{field}={getattr(self, field)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"teacher.model.dropout={self.dropout} must be at least 0 and below 1")
