"""Losses that treat a few items of a row apart from all others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.losses.base import TARGETS, Expectation, RowStatistics, SoftmaxLoss, Tile
from kd_jax.losses.softmax import STUDENT_MEAN, TEACHER_MEAN


@dataclasses.dataclass(frozen=True)
class DecoupledKL(SoftmaxLoss):
    """alpha · target part + beta · non-target part of the KL of teacher and student.

    The target part is the KL of (b, 1 - b) of the teacher and the student, where b is the
    probability of the clicked items together. The non-target part is the KL of the softmaxes over
    all other items. ``KL`` is the sum of the first, the second times 1 - b of the teacher, and, for
    several clicked items, a part within them. Source: Zhao et al., "Decoupled Knowledge
    Distillation", CVPR 2022, equation 7, for one target.
    """

    alpha: float = 1.0
    beta: float = 1.0

    apart: ClassVar[int] = TARGETS
    expectations: ClassVar[tuple[Expectation, ...]] = (TEACHER_MEAN, STUDENT_MEAN)

    def __post_init__(self) -> None:
        if not min(self.alpha, self.beta) >= 0 or not self.alpha + self.beta > 0:
            raise InputError(
                f"dkd: alpha={self.alpha} and beta={self.beta} must be 0 or more, and one of them"
                " more than 0"
            )

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        assert rows.teacher_log_z is not None
        teacher_mean, student_mean = rows.expected
        others = rows.student_log_z - student_mean + teacher_mean - rows.teacher_log_z
        student, teacher = _gaps(rows)
        targets = jax.nn.sigmoid(teacher) * (
            jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student)
        ) + jax.nn.sigmoid(-teacher) * (jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student))
        return self.alpha * targets + self.beta * others

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        assert tile.teacher is not None
        student, teacher = _gaps(rows)
        excess = self.alpha * (jax.nn.sigmoid(student) - jax.nn.sigmoid(teacher))
        return self.beta * (tile.student - tile.teacher) - excess[:, None] * tile.student


@dataclasses.dataclass(frozen=True)
class TopKL(SoftmaxLoss):
    """KL(teacher ‖ student) of the teacher's ``k`` best items and one class for all others.

    It asks nothing of how the student divides the probability of the others. It is at most ``KL``,
    by the inequality of the sum of logarithms. Source: Cover and Thomas, "Elements of Information
    Theory", 2006, theorem 2.7.1, for the inequality.
    """

    k: int = 50

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"topk_kl: k={self.k} must be 1 or more")

    @property
    def apart(self) -> int:  # type: ignore[override]
        return self.k

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        assert rows.student_named is not None and rows.teacher_named is not None
        assert rows.teacher_log_z is not None
        log_q, log_p = (
            jax.nn.log_softmax(jnp.concatenate([named, log_z[:, None]], 1), axis=1)
            for named, log_z in (
                (rows.student_named, rows.student_log_z),
                (rows.teacher_named, rows.teacher_log_z),
            )
        )
        p = jnp.exp(log_p)
        return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), 1)

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        student, teacher = (jax.nn.sigmoid(-gap) for gap in _gaps(rows))
        return (student - teacher)[:, None] * tile.student


def _gaps(rows: RowStatistics) -> tuple[Array, Array]:
    """log(probability of the named items / that of the others), of student and teacher."""
    assert rows.student_named is not None and rows.teacher_named is not None
    assert rows.teacher_log_z is not None
    return (
        jax.nn.logsumexp(rows.student_named, axis=1) - rows.student_log_z,
        jax.nn.logsumexp(rows.teacher_named, axis=1) - rows.teacher_log_z,
    )
