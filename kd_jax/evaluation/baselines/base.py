"""What a baseline is: fitted to clicks alone, with no teacher and no text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float32, Int32

from kd_jax.core.scores import Factors
from kd_jax.evaluation.batching import CSR

Clicks: TypeAlias = "scipy.sparse.csr_array"  # f32 [U, I], 1 where the user chose the item
# (users int32 [B], their clicks before the split [B, I]) -> scores [B, I] or factors
Scores = Callable[[Int32[np.ndarray, " B"], Clicks], Float32[np.ndarray, "B I"] | Factors]


class TooLarge(Exception):
    """The data are too large for a baseline; the message ends a sentence that names it."""


@dataclass(frozen=True)
class Fitted:
    """A fitted baseline.

    scores: an item without a click in training has 0. params: the numbers that it consists of.
    factorised: whether ``scores`` returns factors.
    """

    scores: Scores
    params: int
    factorised: bool = False


class Baseline(Protocol):
    """A model to compare with. settings: those that it is fitted with, to choose from."""

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]: ...

    @property
    def fit(self) -> Callable[..., Fitted]:
        """The model of clicks in training [U, I] with a setting, given by name.

        Raises TooLarge before it takes time or memory.
        """
        ...


def clicked(clicks: Clicks) -> Bool[np.ndarray, " I"]:
    """Whether an item has a click."""
    return np.bincount(clicks.indices, minlength=clicks.shape[1]) > 0


def clicks_of(csr: CSR, num_items: int) -> Clicks:
    """The distinct pairs of (indptr [U + 1], items), each 1, in the order of items."""
    indptr, items = csr
    found = scipy.sparse.csr_array(
        (np.ones(len(items), np.float32), items, indptr), shape=(len(indptr) - 1, num_items)
    )
    found.sum_duplicates()
    found.data[:] = 1.0
    return found
