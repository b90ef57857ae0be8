"""Importance-aware ranking distillation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.losses.base import Candidates, OnPolicyLoss


@dataclasses.dataclass(frozen=True)
class DLLM2Rec(OnPolicyLoss):
    """The teacher's ``top`` items are positives, weighted by their importance.

    The loss is -sum_r w_r log sigmoid(s_r), in nats, with weights of sum 1 in proportion to

        position · exp(-r / rank_scale) / sum_r exp(-r / rank_scale)
        + confidence · p_r / p_1 + consistency · (1 if the student has it among its ``own`` best)

    for the rank r = 1, 2, … of the teacher, and its probabilities p. Source: Cui et al.,
    "Distillation Matters: Empowering Sequential Recommenders to Match the Performance of Large
    Language Models", RecSys 2024 (arXiv 2405.00338). There the confidence is the distance
    between the text that the language model generates and that of the item; here it is read from
    the teacher's scores.
    """

    top: int = 10
    own: int = 10
    position: float = 0.3
    confidence: float = 0.5
    consistency: float = 0.1
    rank_scale: float = 10.0

    def __post_init__(self) -> None:
        weights = (self.position, self.confidence, self.consistency)
        if self.top < 1 or not self.rank_scale > 0:
            raise InputError(
                f"dllm2rec: top={self.top} must be 1 or more, and rank_scale={self.rank_scale} more"
                " than 0"
            )
        if not min(weights) >= 0 or not sum(weights) > 0:
            raise InputError(
                f"dllm2rec: position={weights[0]}, confidence={weights[1]} and"
                f" consistency={weights[2]} must be 0 or more, and one of them more than 0"
            )
        if self.drawn or (self.consistency and self.own < 1):
            raise InputError(
                f"dllm2rec: drawn={self.drawn} is not read, and consistency={self.consistency}"
                f" reads own={self.own} items; set drawn=0, and own to 1 or more"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        assert candidates.own is not None
        number = candidates.num_top
        valid, scores = candidates.valid[:, :number], candidates.student[:, :number]
        ranks = jnp.arange(1, number + 1, dtype=jnp.float32)
        place = jax.nn.softmax(-ranks / self.rank_scale)[None]
        teacher = candidates.teacher[:, :number]
        certain = jnp.exp(teacher - teacher.max(1, keepdims=True))
        weights = self.position * place + self.confidence * certain
        weights += self.consistency * candidates.own[:, :number]
        weights = jnp.where(valid, weights, 0.0)
        weights /= jnp.maximum(jnp.sum(weights, 1, keepdims=True), 1e-30)
        return jnp.sum(weights * jax.nn.softplus(-scores), 1)
