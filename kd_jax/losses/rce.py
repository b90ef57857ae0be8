"""Rejuvenated cross-entropy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.tiling import NEGATIVE
from kd_jax.losses.base import Candidates, OnPolicyLoss


@dataclasses.dataclass(frozen=True)
class RCE(OnPolicyLoss):
    """Cross-entropy over items, closed under the student's ranking as far as can be.

    The teacher's ``top`` items are those that are also among the student's ``own``, and the rest.
    A cross-entropy over a set bounds NDCG from below if every item that the student ranks above one
    of the set is in it. For the first part the set is the student's own items. For the rest it is
    the rest, the student's own and the ``drawn`` items. The loss is (1 - g) · first + g · second,
    with g = exp(-beta · share of the teacher's items that are in the first part). Teacher and
    student are softmaxes over the set of each part, in nats.

    Source: Zhu and Zhang, "Rejuvenating Cross-Entropy Loss in Knowledge Distillation for
    Recommender Systems", arXiv 2509.20989. There the second set is a sample in proportion to
    both models' scores; here it has the student's best items without sampling.
    """

    top: int = 100
    own: int = 100
    drawn: int = 100
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.top < 1 or self.own < 1 or not self.beta >= 0:
            raise InputError(
                f"rce: top={self.top} and own={self.own} must be 1 or more, and beta={self.beta} 0"
                " or more"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        assert candidates.own is not None
        best = candidates.valid & (jnp.arange(candidates.valid.shape[1]) < candidates.num_top)[None]
        own = candidates.valid & candidates.own
        shared, rest = best & own, best & ~own
        overlap = shared.sum(1) / jnp.maximum(best.sum(1), 1)
        second = jnp.exp(-self.beta * overlap)
        return (1 - second) * _cross_entropy(candidates, own, shared) + second * _cross_entropy(
            candidates, candidates.valid, rest
        )


def _cross_entropy(
    candidates: Candidates, inside: Bool[Array, "R K"], counted: Bool[Array, "R K"]
) -> Float[Array, " R"]:
    """-sum p log q over the ``counted`` items, of softmaxes over those ``inside``."""
    log_q, log_p = (
        jax.nn.log_softmax(jnp.where(inside, scores, NEGATIVE), axis=1)
        for scores in (candidates.student, candidates.teacher)
    )
    return -jnp.sum(jnp.where(counted, jnp.exp(log_p) * log_q, 0.0), axis=1)
