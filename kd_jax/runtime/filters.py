"""What is asked of a runtime, and what it answers."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.errors import InputError


class Recommendation(NamedTuple):
    """One item of a list; score: of the student, higher is better."""

    rank: int
    item: Any
    title: str
    score: float


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which items may be recommended.

    exclude: items that may not be. only: the items that may be; None: all. include_seen: whether
    items of the user's history may be. Items are indices, int [N].
    """

    exclude: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    only: np.ndarray | None = None
    include_seen: bool = False

    def mask(self, scores: np.ndarray, seen: Sequence[np.ndarray]) -> None:
        """Sets the scores f32 [B, I] of items that may not be recommended to -inf.

        seen: the history of each row. Raises InputError if no item is left.
        """
        if not self.include_seen:
            for row, items in zip(scores, seen, strict=True):
                row[items] = -np.inf
        if self.only is not None:
            allowed = np.zeros(scores.shape[1], bool)
            allowed[self.only] = True
            allowed[self.exclude] = False
            if not allowed.any():
                raise InputError("the filters leave no item; change 'only' or 'exclude'")
            scores[:, ~allowed] = -np.inf
        elif len(self.exclude):
            scores[:, self.exclude] = -np.inf


def check_k(k: object) -> None:
    """Raises InputError unless ``k`` is a whole number from 1."""
    if not isinstance(k, numbers.Integral) or isinstance(k, bool):
        raise InputError(f"k is {k!r}; it must be a whole number")
    if k < 1:
        raise InputError(f"k is {k}; it must be at least 1")


def as_list(values: Any, what: str) -> list[Any]:
    """Ids or names as a list; whole floats, as pandas makes of integers, become integers.

    Raises InputError for a single text or number.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise InputError(f"{what} must be a list of ids or titles; use [{values!r}]")
    return [
        int(value) if isinstance(value, float | np.floating) and value.is_integer() else value
        for value in values
    ]


def check_diversity(diversity: float) -> None:
    """Raises InputError unless ``diversity`` is between 0 and 1."""
    if not isinstance(diversity, int | float) or not 0 <= diversity <= 1:
        raise InputError(f"diversity is {diversity!r}; it must be between 0 and 1")
