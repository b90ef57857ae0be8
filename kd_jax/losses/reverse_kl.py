"""Reverse KL."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from kd_jax.losses.base import Expectation, RowStatistics, SoftmaxLoss, Tile


@dataclasses.dataclass(frozen=True)
class ReverseKL(SoftmaxLoss):
    """KL(student ‖ teacher), which is mode-seeking.

    A student that cannot match the teacher's whole distribution matches its peaks, where ``KL``
    spreads over all of it. Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language
    Models", ICLR 2024, equation 1.
    """

    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(False, lambda student, teacher: student),
        Expectation(False, lambda student, teacher: teacher),
    )

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        assert rows.teacher_log_z is not None
        student_mean, teacher_mean = rows.expected
        return student_mean - rows.student_log_z - teacher_mean + rows.teacher_log_z

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        assert tile.teacher_logits is not None
        student_mean, teacher_mean = rows.expected
        gap = tile.student_logits - tile.teacher_logits
        return tile.student * (gap - (student_mean - teacher_mean)[:, None])
