"""The inputs of the engines of softmax losses: terms, and arrays besides the student."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.losses.base import TARGETS, SoftmaxLoss


class Softmax(NamedTuple):
    """A softmax at a temperature, over all items or the warm ones.

    scheduled: index into the temperatures that change over training; -1 for a fixed one. apart: the
    items that are left out, see ``SoftmaxLoss.apart``.
    """

    temperature: float
    warm: bool
    scheduled: int = -1
    apart: int = 0


@dataclasses.dataclass(frozen=True)
class SoftmaxTerm:
    """A softmax loss at a temperature, over all items or the warm ones.

    scheduled: the index of its temperature among those given with the inputs, where that changes
    over training; ``temperature`` is not read then.
    """

    loss: SoftmaxLoss
    temperature: float = 1.0
    warm: bool = False
    scheduled: int = -1

    @property
    def softmax(self) -> Softmax:
        if not self.loss.reads_teacher:
            return Softmax(1.0, self.warm)
        return Softmax(self.temperature, self.warm, self.scheduled, self.loss.apart)


class Rows(NamedTuple):
    """The targets and weights of rows; all arrays have the leading axis R.

    weights: f32 [R], with sum 1 over all rows. top: int32 [R, K], the teacher's best items, for
    losses that treat them apart.
    """

    targets: Int[Array, "R M"]
    target_weights: Float[Array, "R M"]
    weights: Float[Array, " R"]
    top: Array | None = None

    def apart(self, count: int) -> Int[Array, "R M"]:
        """The items that ``SoftmaxLoss.apart`` = ``count`` names, each once, else ``PAD``."""
        if count == TARGETS:
            items = self.targets
        else:
            assert self.top is not None
            items = self.top[:, :count]
        again = jnp.any(jnp.tril(items[:, :, None] == items[:, None, :], -1), -1)
        return jnp.where(again, PAD, items)


class Inputs(NamedTuple):
    """The inputs of an engine besides the student.

    coefficients: f32 [N], weights of the terms. teacher: factors of its logits, or the logits,
    f32 [R, I]. warm: bool [I]. temperatures: f32 [N], if any changes over training.
    """

    rows: Rows
    coefficients: Array
    teacher: Factors | Array | None = None
    warm: Array | None = None
    temperatures: Array | None = None


Engine = Callable[[tuple[SoftmaxTerm, ...], bool, Factors, Inputs], Any]
