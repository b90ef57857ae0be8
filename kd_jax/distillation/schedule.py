"""Numbers that may change over training: weights and temperatures of terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest

SHAPES: dict[str, Callable[[Array], Array]] = {
    "constant": lambda progress: jnp.ones_like(progress),
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}
FIELDS = ("start", "end", "schedule")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` over training.

    schedule: 'constant' (at ``start``), 'linear' or 'cosine' (half a period).
    """

    start: float
    end: float = 0.0
    schedule: str = "constant"

    @property
    def constant(self) -> bool:
        return self.schedule == "constant" or self.start == self.end

    def at(self, progress: Array) -> Array:
        """The number at ``progress`` in [0, 1] of training, f32 of its shape."""
        left = SHAPES[self.schedule](progress)
        return self.end + (self.start - self.end) * left

    @classmethod
    def of(cls, value: Any, field: str, *, positive: bool = False) -> Schedule:
        """The schedule of a config value: a number, or a section with the fields ``FIELDS``.

        A section with an end is linear by default. Raises InputError, which names ``field``, for
        any other value; for a number below 0; and, with ``positive``, for 0.
        """
        if not isinstance(value, Mapping | ConfigDict):
            return cls(_number(value, field, positive))
        for name in value:
            if name not in FIELDS:
                raise InputError(f"{field}.{name} is unknown{nearest(name, FIELDS)}")
        start = _number(value.get("start"), f"{field}.start", positive)
        end = _number(value.get("end", start), f"{field}.end", positive)
        shape = value.get("schedule", "linear")
        if shape not in SHAPES:
            raise InputError(f"{field}.schedule={shape!r} is unknown{nearest(shape, SHAPES)}")
        if shape == "constant" and end != start:
            raise InputError(
                f"{field}.end={end:g}: schedule='constant' stays at start={start:g}; leave end out,"
                " or use schedule='linear' or 'cosine'"
            )
        return cls(start, end, shape)


def _number(value: Any, field: str, positive: bool) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < 0 or (positive and value == 0):
        bound = "more than 0" if positive else "0 or more"
        raise InputError(f"{field}={value!r} must be a number, {bound}")
    return float(value)
