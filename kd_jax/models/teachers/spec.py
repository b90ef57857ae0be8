"""What a bi-encoder is built from."""

from __future__ import annotations

import dataclasses

import numpy as np

from kd_jax.core.errors import InputError, nearest

ITEM_FEATURES = ("text", "id", "text+id")
CONTEXTS = ("items", "text")
SOFTMAXES = ("full", "in_batch", "sampled")


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """What a teacher is built from.

    bias: f32 [I] item bias to start at; warm: bool [I], or None. components, whitening: of the PCA
    that a frozen language model's vectors go through (components=0: none). num_classes > 0: rate
    pairs instead of ranking the catalogue. trends: f32 [S, I, K] features of the items at S moments
    (``kd_jax/data/trends.py``), or None. softmax, over which items a teacher learns while its
    language model is trained: the catalogue ('full'), or the items that the step encodes: those of
    the batch ('in_batch') and ``negatives`` drawn ones ('sampled'), with log-Q correction.
    hard_negatives: items per row that the teacher itself scores highest, encoded too. share: f32
    [I] of the training interactions, or None.
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
