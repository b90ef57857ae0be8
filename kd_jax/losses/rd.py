"""Ranking distillation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.tiling import NEGATIVE
from kd_jax.losses.base import CandidateLoss, Candidates


@dataclasses.dataclass(frozen=True)
class RD(CandidateLoss):
    """Ranking distillation: the teacher's ``top`` items are further positives, with weights.

    The loss is -sum_r w_r log sigmoid(s_r), in nats, with weights of sum 1. w_r is in proportion to
    exp(-r / rank_scale), for the rank r = 1, 2, … of the teacher, times
    tanh(max(mu (rank_s - r), 0)), which is 0 where the student ranks the item as high as the
    teacher; mu=0 leaves that factor out. The student's rank is estimated from the ``drawn`` items:
    1 + floor(n (items - 1) / drawn), where n of them score at least as high and are none of the
    teacher's: a student that scores all items alike has all its ranks to learn. A row without any
    weight has loss 0. Source: Tang and Wang, "Ranking Distillation: Learning Compact Ranking Models
    With High Performance for Recommender System", KDD 2018.
    """

    top: int = 10
    drawn: int = 100
    rank_scale: float = 10.0
    mu: float = 0.1

    def __post_init__(self) -> None:
        if self.top < 1 or not self.rank_scale > 0 or not self.mu >= 0:
            raise InputError(
                f"rd: top={self.top} must be 1 or more, rank_scale={self.rank_scale} more than 0,"
                f" and mu={self.mu} 0 or more"
            )
        if self.mu and self.drawn < 1:
            raise InputError(
                f"rd: ranks of the student are estimated from drawn={self.drawn} items; draw"
                " at least 1, or set mu=0"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        number = candidates.num_top
        valid, scores = candidates.valid[:, :number], candidates.student[:, :number]
        ranks = jnp.arange(1, number + 1, dtype=jnp.float32)[None]
        weights = jnp.where(valid, jnp.exp(-ranks / self.rank_scale), 0.0)
        if self.mu:
            fixed = lax.stop_gradient(candidates.student)
            others = jnp.where(candidates.valid[:, number:], fixed[:, number:], NEGATIVE)
            higher = jnp.sum(others[:, None, :] >= fixed[:, :number, None], -1)
            found = 1 + jnp.floor(higher * ((candidates.num_items - 1) / self.drawn))
            weights *= jnp.tanh(jnp.maximum(self.mu * (found - ranks), 0.0))
        weights /= jnp.maximum(jnp.sum(weights, 1, keepdims=True), 1e-30)
        return jnp.sum(weights * jax.nn.softplus(-scores), 1)
