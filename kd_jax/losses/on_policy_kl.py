"""KL over the student's own best items."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.tiling import NEGATIVE
from kd_jax.losses.base import Candidates, OnPolicyLoss


@dataclasses.dataclass(frozen=True)
class OnPolicyKL(OnPolicyLoss):
    """KL(teacher ‖ student) over the items that the student ranks highest, as the teacher scores.

    Both softmaxes are over the student's ``own`` best items of this step and the ``drawn`` ones; a
    ``top`` adds the teacher's. A row in which a teacher that lists items lists no candidate has
    loss 0. Source: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024,
    section 3, whose student samples the outputs that the teacher scores; here it ranks items.
    """

    own: int = 50
    drawn: int = 50

    def __post_init__(self) -> None:
        if self.own < 1:
            raise InputError(
                f"on_policy_kl: own={self.own} must be 1 or more; use loss='kl' for all items"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        scored = candidates.valid & (candidates.teacher > NEGATIVE / 2)
        log_p = jax.nn.log_softmax(jnp.where(scored, candidates.teacher, NEGATIVE), axis=1)
        log_q = jax.nn.log_softmax(
            jnp.where(candidates.valid, candidates.student, NEGATIVE), axis=1
        )
        return jnp.sum(jnp.where(scored, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=1)
