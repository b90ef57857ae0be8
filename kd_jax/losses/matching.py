"""Matching of item or context vectors, as they are or through a learned projection."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.types import Params
from kd_jax.losses.base import VectorLoss


@dataclasses.dataclass(frozen=True)
class SquaredDistance(VectorLoss):
    """Half the mean squared difference of the context vectors.

    Source: Romero et al., "FitNets", ICLR 2015, equation 3, without the regressor.
    """

    of_items: ClassVar[bool] = False

    def auxiliary(self, student_dim: int, teacher_dim: int, key: PRNGKeyArray) -> Params:
        if student_dim != teacher_dim:
            raise InputError(
                f"squared_distance compares vectors of one width; the student has {student_dim} "
                f"numbers and the teacher {teacher_dim}: make them the same"
            )
        return {}

    def value(
        self,
        student: Float[Array, "N D"],
        teacher: Float[Array, "N D"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        return 0.5 * jnp.mean((student - teacher) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class ItemMatching(VectorLoss):
    """Half the mean squared difference of item vectors, after a learned affine map.

    The map takes the student's item vectors to the width of the teacher's; it is an auxiliary
    parameter. Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3
    (the map is their regressor).
    """

    def auxiliary(self, student_dim: int, teacher_dim: int, key: PRNGKeyArray) -> Params:
        scale = student_dim**-0.5
        return {
            "kernel": scale * jax.random.normal(key, (student_dim, teacher_dim)),
            "bias": jnp.zeros(teacher_dim),
        }

    def value(
        self,
        student: Float[Array, "N Ds"],
        teacher: Float[Array, "N Dt"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        projected = student @ auxiliary["kernel"] + auxiliary["bias"][None]
        return 0.5 * jnp.mean((projected - teacher) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class ContextMatching(ItemMatching):
    """Half the mean squared difference of context vectors, after a learned affine map.

    The map is that of ``ItemMatching``. Source: Romero et al., "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, equation 3.
    """

    of_items: ClassVar[bool] = False
