"""Dual correction of the student's ranking."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.tiling import NEGATIVE
from kd_jax.losses.base import Candidates, OnPolicyLoss
from kd_jax.losses.candidates import plackett_luce


@dataclasses.dataclass(frozen=True)
class DCD(OnPolicyLoss):
    """Correction of the items that the student ranks too low or too high.

    ``picked`` items that the student ranks too low are drawn anew at every step, in proportion to
    tanh(mu · difference of the ranks), and ``picked`` that it ranks too high. The loss is the
    negative log-likelihood, in nats, of the permutations that have the first ones in the teacher's
    order, and then the others in any order, as in ``RRD``. A row without an item that is ranked too
    low has loss 0.

    Ranks are those among the row's candidates: the teacher's ``top``, the student's ``own``, and
    the ``drawn``. For the best items of a model they are its ranks in the catalogue. Source: Lee
    and Kim, "Dual Correction Strategy for Ranking Distillation in Top-N Recommender System", CIKM
    2021, the correction on the side of the users; that of the items (users of an item) needs scores
    of many users for one item and is not computed.
    """

    top: int = 100
    own: int = 100
    picked: int = 40
    mu: float = 0.1

    def __post_init__(self) -> None:
        if self.top < 1 or self.picked < 1 or not self.mu > 0:
            raise InputError(
                f"dcd: top={self.top} and picked={self.picked} must be 1 or more, and mu={self.mu}"
                " more than 0"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        valid = candidates.valid
        fixed = lax.stop_gradient(candidates.student)
        teachers = _ranks(candidates.teacher, valid)
        gap = (_ranks(fixed, valid) - teachers).astype(jnp.float32)
        low, high = (
            self._drawn(sign * gap, valid, one)
            for sign, one in zip((1, -1), jax.random.split(key), strict=True)
        )
        order = jnp.argsort(teachers, axis=1)
        low = jnp.take_along_axis(low, order, 1)
        scores = jnp.take_along_axis(candidates.student, order, 1)
        return plackett_luce(scores, low, jnp.where(high, candidates.student, NEGATIVE))

    def _drawn(
        self, gap: Float[Array, "R K"], valid: Bool[Array, "R K"], key: PRNGKeyArray
    ) -> Bool[Array, "R K"]:
        """Which candidates are drawn, by Gumbel top-k; only those with a positive ``gap`` can."""
        noise = jax.random.gumbel(key, gap.shape)
        some = valid & (gap > 0)
        chance = jnp.where(some, noise + jnp.log(jnp.tanh(self.mu * jnp.maximum(gap, 1))), NEGATIVE)
        _, places = lax.top_k(chance, min(self.picked, gap.shape[1]))
        grid = jnp.arange(len(gap))[:, None]
        return jnp.zeros(gap.shape, bool).at[grid, places].set(True) & some


def _ranks(scores: Float[Array, "R K"], valid: Bool[Array, "R K"]) -> Int[Array, "R K"]:
    """Ranks from 0 among the valid candidates, ties by column; the others come last."""
    order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf), axis=1, stable=True)
    return jnp.argsort(order, axis=1)
