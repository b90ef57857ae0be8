"""Relaxed ranking distillation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.tiling import NEGATIVE
from kd_jax.losses.base import CandidateLoss, Candidates
from kd_jax.losses.candidates import plackett_luce


@dataclasses.dataclass(frozen=True)
class RRD(CandidateLoss):
    """Relaxed ranking distillation: a listwise loss on a sample of the teacher's best items.

    It is the negative log-likelihood, in nats, of the permutations that have ``interesting`` of the
    teacher's items first, in the teacher's order, and then the drawn items in any order.

    The interesting items are drawn anew at every step among the teacher's ``top``, the item of rank
    r in proportion to exp(-r / rank_scale), by Gumbel top-k. Source: Kang et al., "DE-RRD: A
    Knowledge Distillation Framework for Recommender System", CIKM 2020.
    """

    top: int = 100
    drawn: int = 40
    interesting: int = 40
    rank_scale: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.interesting <= self.top or not self.rank_scale > 0:
            raise InputError(
                f"rrd: interesting={self.interesting} must be from 1 to top={self.top}, and"
                f" rank_scale={self.rank_scale} more than 0"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        number = candidates.num_top
        valid = candidates.valid[:, :number]
        noise = jax.random.gumbel(key, valid.shape)
        chances = noise - (jnp.arange(number) / self.rank_scale)[None]
        _, picked = lax.top_k(jnp.where(valid, chances, NEGATIVE), min(self.interesting, number))
        picked = jnp.sort(picked, axis=1)  # in the teacher's order
        taken = jnp.take_along_axis(valid, picked, 1)
        scores = jnp.take_along_axis(candidates.student[:, :number], picked, 1)
        rest = jnp.where(candidates.valid[:, number:], candidates.student[:, number:], NEGATIVE)
        return plackett_luce(scores, taken, rest)
