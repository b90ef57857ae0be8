"""Types for scores: factors of the catalogue's scores, scores of listed items, teacher scores."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.core.tiling import EXCLUDED, set_at


class Factors(NamedTuple):
    """Factorised scores of the catalogue: contexts · vectors + bias.

    contexts: [..., D]. vectors: [I, D], the item vectors. bias: f32 [I]. excluded: int32 [..., L],
    items that a row excludes, padded with ``PAD``; or None. top: int32 [..., K], the items to which
    a teacher gives the highest scores, where known (``losses/sampled.py`` reads them); or None.
    """

    contexts: Array
    vectors: Array
    bias: Array
    excluded: Array | None = None
    top: Array | None = None

    def dense(self) -> Float[Array, "*B I"]:
        """The scores as one array; excluded items get ``EXCLUDED``."""
        return factor_logits(self, 0)


class Listed(NamedTuple):
    """Scores of a few items; all other items have probability 0.

    items: int32 [..., K], distinct, padded with ``PAD``. logits: f32 [..., K].
    """

    items: Array
    logits: Array


class TeacherScores(NamedTuple):
    """A teacher's scores for a batch.

    scores: factors of the catalogue's scores, scores of listed items, or logits f32 [B, P, C] of
    the classes or of the catalogue.
    weights: f32 [B, P], the teacher's confidence at each position, 0 where it has no scores; None:
    1 everywhere.
    """

    scores: Factors | Listed | Array
    weights: Array | None = None


def factor_logits(factors: Factors, offset: Array | int) -> Array:
    """The scores, f32 [..., C], of the C items in ``factors``.

    offset: index in the catalogue of the first of these items, by which ``factors.excluded`` is
    read.
    """
    contexts, vectors, bias, excluded, _ = factors
    logits = jnp.einsum("...d,cd->...c", contexts, vectors, preferred_element_type=jnp.float32)
    logits = logits + bias.astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + bias.shape)
    return logits if excluded is None else set_at(logits, excluded, offset, EXCLUDED)
