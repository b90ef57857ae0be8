"""Losses over a softmax: cross-entropy with clicks, and divergences from a teacher."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from kd_jax.losses.base import Expectation, RowStatistics, SoftmaxLoss, Tile

TEACHER_MEAN = Expectation(True, lambda student, teacher: teacher)
STUDENT_MEAN = Expectation(True, lambda student, teacher: student)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(SoftmaxLoss):
    """-sum_m w_m log p(target_m), in nats, of the clicks; the temperature is 1.

    Several weighted targets make a distribution, which is how matrix factorisation learns from a
    whole history at once. ``slope`` is that of the log-normaliser alone: an engine multiplies it by
    the row's target weight and subtracts the weights at the targets.
    """

    reads_teacher: ClassVar[bool] = False

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        assert rows.target_weight is not None and rows.target_logit is not None
        return rows.target_weight * rows.student_log_z - rows.target_logit

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        return tile.student


@dataclasses.dataclass(frozen=True)
class SoftCrossEntropy(SoftmaxLoss):
    """Cross-entropy of the student against the teacher's distribution.

    Source: Hinton, Vinyals, Dean, 2015, section 2.
    """

    expectations: ClassVar[tuple[Expectation, ...]] = (STUDENT_MEAN,)
    entropy_coefficient: ClassVar[float | None] = 0.0

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        (student_mean,) = rows.expected
        return rows.student_log_z - student_mean

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        assert tile.teacher is not None
        return tile.student - tile.teacher


@dataclasses.dataclass(frozen=True)
class KL(SoftmaxLoss):
    """KL(teacher ‖ student): ``SoftCrossEntropy`` minus the teacher's entropy.

    Source: Hinton, Vinyals, Dean, 2015, section 2.
    """

    expectations: ClassVar[tuple[Expectation, ...]] = (TEACHER_MEAN, STUDENT_MEAN)
    entropy_coefficient: ClassVar[float | None] = -1.0

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        assert rows.teacher_log_z is not None
        teacher_mean, student_mean = rows.expected
        return rows.student_log_z - student_mean + teacher_mean - rows.teacher_log_z

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        assert tile.teacher is not None
        return tile.student - tile.teacher
