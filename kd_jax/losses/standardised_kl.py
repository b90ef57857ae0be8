"""KL of standardised logits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from kd_jax.core.scores import Factors
from kd_jax.losses.softmax import KL

TINY = 1e-12  # the least variance: logits that are all the same stay the same


@dataclasses.dataclass(frozen=True)
class StandardisedKL(KL):
    """``KL`` of logits that are divided by their standard deviation over the items of the row.

    A small student then matches the shape of the teacher's logits, and need not reach their size.
    The deviation is that of all items that take part, for each model its own; the student's has a
    gradient. Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
    algorithm 1; the mean, which it takes off, does not change a softmax.
    """

    standardised: ClassVar[bool] = True
    entropy_coefficient: ClassVar[float | None] = None


def of_factors(factors: Factors, count: int, warm: Bool[Array, " I"] | None) -> Factors:
    """Factors of the standardised logits, with one more number for the bias.

    The variance of context · item + bias over the items is a quadratic form of the context, so no
    array of rows x items is made. count: the items that take part are among the first ``count``,
    and, if given, ``warm``.
    """
    kind = factors.vectors.dtype
    both = jnp.concatenate(
        [factors.vectors[:count].astype(jnp.float32), factors.bias[:count, None]], 1
    )
    share = jnp.ones(count) if warm is None else warm.astype(jnp.float32)
    share /= jnp.maximum(jnp.sum(share), 1.0)
    centred = both - (share @ both)[None]
    covariance = (share[:, None] * centred).T @ centred
    ones = jnp.ones((*factors.contexts.shape[:-1], 1))
    contexts = jnp.concatenate([factors.contexts.astype(jnp.float32), ones], -1)
    variance = jnp.einsum("...d,de,...e->...", contexts, covariance, contexts)
    contexts *= lax.rsqrt(jnp.maximum(variance, TINY))[..., None]
    return factors._replace(
        contexts=contexts.astype(kind), vectors=both.astype(kind), bias=jnp.zeros(count)
    )


def of_logits(logits: Array, where: Bool[Array, " C"] | None) -> Array:
    """Dense logits f32 [..., C], divided by their deviation over the classes that take part."""
    logits = logits.astype(jnp.float32)
    share = jnp.ones(logits.shape[-1]) if where is None else where.astype(jnp.float32)
    share /= jnp.maximum(jnp.sum(share), 1.0)
    centred = logits - (logits @ share)[..., None]
    variance = (centred**2) @ share
    return centred * lax.rsqrt(jnp.maximum(variance, TINY))[..., None]
