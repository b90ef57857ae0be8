"""Jensen-Shannon divergences: from teacher and student to a mixture of the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.losses.base import RowStatistics, SoftmaxLoss, Tile

Sums = tuple[Callable[[Array, Array], Array], ...]


class ToMixture(SoftmaxLoss):
    """β KL(teacher ‖ m) + (1 - β) KL(student ‖ m), m = β teacher + (1 - β) student."""

    @property
    def share(self) -> float:
        """β."""
        raise NotImplementedError

    @property
    def log_prob_sums(self) -> Sums:  # type: ignore[override]
        return (
            lambda student, teacher: (
                jnp.exp(teacher) * (teacher - self._log_mixture(student, teacher))
            ),
            lambda student, teacher: (
                jnp.exp(student) * (student - self._log_mixture(student, teacher))
            ),
        )

    def _log_mixture(self, student: Array, teacher: Array) -> Array:
        return jnp.logaddexp(jnp.log1p(-self.share) + student, jnp.log(self.share) + teacher)

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        of_teacher, of_student = rows.sums
        return self.share * of_teacher + (1 - self.share) * of_student

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        assert tile.teacher_logits is not None and rows.teacher_log_z is not None
        student = tile.student_logits - rows.student_log_z[:, None]
        teacher = tile.teacher_logits - rows.teacher_log_z[:, None]
        gap = student - self._log_mixture(student, teacher)
        return (1 - self.share) * tile.student * (gap - rows.sums[1][:, None])


@dataclasses.dataclass(frozen=True)
class JensenShannon(ToMixture):
    """½ KL(teacher ‖ mixture) + ½ KL(student ‖ mixture), where the mixture is the mean of the two.

    Bounded by log 2, where ``KL`` is not. Source: Lin, "Divergence measures based on the Shannon
    entropy", IEEE Transactions on Information Theory 1991, section IV.
    """

    share: ClassVar[float] = 0.5


@dataclasses.dataclass(frozen=True)
class GeneralisedJS(ToMixture):
    """``ToMixture`` with another share than ``JensenShannon``, which it is at β = 1/2.

    beta: in (0, 1). Divided by β it tends to ``KL`` as β goes to 0, and divided by 1 - β to
    ``ReverseKL`` as β goes to 1. It is at most the entropy of (β, 1 - β). Source: Agarwal et al.,
    "On-Policy Distillation of Language Models", ICLR 2024, section 2; Lin, IEEE Transactions on
    Information Theory 1991, equation 4.1.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise InputError(
                f"generalised_js: beta={self.beta} must be between 0 and 1; use loss='kl' for the"
                " limit at 0, loss='reverse_kl' for that at 1"
            )

    @property
    def share(self) -> float:
        return self.beta
