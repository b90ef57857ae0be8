"""Pooling: from the hidden states of the tokens of a text to its vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError, nearest

POOLINGS = ("mean", "cls", "last", "max", "weightedmean", "mean_sqrt_len_tokens")


def check_pooling(pooling: str) -> None:
    """Raises InputError unless ``pooling`` is names of ``POOLINGS``, joined by '+'."""
    for name in pooling.split("+"):
        if name not in POOLINGS:
            raise InputError(f"pooling {name!r} is unknown{nearest(name, POOLINGS)}")


def pool(
    hidden: Float[Array, "B L D"],
    mask: Array,
    pooling: str,
    normalize: bool = False,
    skipped: Int[Array, " B"] | None = None,
) -> Float[Array, "B P"]:
    """One f32 vector per text, from the hidden states of its tokens.

    mask: [B, L], 0 at padding, which may be on either side. pooling: 'mean', 'max', 'cls' (first
    token), 'last', 'mean_sqrt_len_tokens' (the sum divided by the root of the number of tokens),
    'weightedmean' (weights 1, 2, 3 … by position: Muennighoff, "SGPT: GPT Sentence Embeddings for
    Semantic Search", 2022, equation 2), or several joined by '+', whose vectors are concatenated.
    normalize: whether vectors get unit length. skipped: tokens at the start of each text that are
    not pooled.
    """
    hidden = hidden.astype(jnp.float32)
    places = jnp.arange(mask.shape[1])[None] - (mask > 0).argmax(1)[:, None]
    if skipped is not None:
        mask = jnp.where(places < skipped[:, None], 0, mask)
    parts = [_pooled(hidden, mask, places, name) for name in pooling.split("+")]
    pooled = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return unit_length(pooled) if normalize else pooled


def unit_length(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Vectors scaled to length 1; a vector of zeros stays."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-24))


def _pooled(hidden: Array, mask: Array, places: Array, pooling: str) -> Float[Array, "B D"]:
    if pooling in ("mean", "weightedmean", "mean_sqrt_len_tokens"):
        weights = mask.astype(jnp.float32)
        if pooling == "weightedmean":
            weights = weights * (places + 1)
        total = jnp.einsum("bld,bl->bd", hidden, weights)
        divisor = jnp.maximum(weights.sum(1), 1e-9)[:, None]
        return total / (jnp.sqrt(divisor) if pooling == "mean_sqrt_len_tokens" else divisor)
    if pooling == "max":
        found = jnp.max(jnp.where(mask[:, :, None] > 0, hidden, jnp.finfo(jnp.float32).min), axis=1)
        return jnp.where((mask > 0).any(1)[:, None], found, 0.0)
    real = mask > 0
    index = real.argmax(1)
    if pooling == "last":
        index = mask.shape[1] - 1 - real[:, ::-1].argmax(1)
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]
