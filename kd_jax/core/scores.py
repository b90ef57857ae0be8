"""Scores as they are passed around: factors, short lists, and the scores of a teacher."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.core.tiling import EXCLUDED, set_at


class Factors(NamedTuple):
    """Scores of the catalogue as their factors. contexts: [..., D]; vectors: [I, D]; bias: f32 [I].

    excluded: int32 [..., L], items that the row does not choose from, padded with ``PAD``; or None.
    top: int32 [..., K], a teacher's items of highest score, where they are known
    (``kd_jax/sampled.py`` reads them); or None.
    """

    contexts: Array
    vectors: Array
    bias: Array
    excluded: Array | None = None
    top: Array | None = None

    def dense(self) -> Float[Array, "*B I"]:
        """The scores themselves."""
        return factor_logits(self, 0)


class Listed(NamedTuple):
    """Scores of a few items; all others have probability 0. items: int32 [..., K], distinct, padded
    with ``PAD``; logits: f32 [..., K].
    """

    items: Array
    logits: Array


class TeacherScores(NamedTuple):
    """What a teacher says about a batch. scores: of the catalogue as factors, of listed items, or
    [B, P, C]. weights: f32 [B, P], how far it is to be trusted at each position, 0 where it says
    nothing; None: 1 everywhere.
    """

    scores: Factors | Listed | Array
    weights: Array | None = None


def factor_logits(factors: Factors, offset: Array | int) -> Array:
    """f32 [..., C] of the factors' items, those from ``offset`` on."""
    contexts, vectors, bias, excluded, _ = factors
    logits = jnp.einsum("...d,cd->...c", contexts, vectors, preferred_element_type=jnp.float32)
    logits = logits + bias.astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + bias.shape)
    return logits if excluded is None else set_at(logits, excluded, offset, EXCLUDED)
