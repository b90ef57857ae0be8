"""What teachers and students are both made of: a scorer's contract and a causal Transformer over
histories.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> Array:
    """Random first values of this standard deviation; the same bits inside a program and outside,
    where XLA does not join ``scale`` with the factor that ``normal`` ends with.
    """
    return jax.lax.optimization_barrier(jax.random.normal(rngs.params(), shape)) * scale


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Inverted dropout; the identity when ``rngs`` is None, as in evaluation.

    A byte decides about an element, so the rate is rounded to a 256th (and the scale to match): a
    quarter of the random numbers, which are what dropout costs. The mask does not depend on how the
    array is sharded.
    """
    dropped = min(round(256 * rate), 255)
    if rngs is None or dropped == 0:
        return x
    words = jax.random.bits(rngs.dropout(), (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    draw = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[
        ..., : x.shape[-1]
    ]
    return jnp.where(draw >= dropped, x * (256 / (256 - dropped)), 0)


Activation = Callable[[Array], Array]


class Block(nnx.Module):
    """A pre-norm Transformer block: attention and an MLP, ``widen`` times as wide."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        widen: int,
        activation: Activation,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.dropout, self.activation = heads, dropout, activation
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        self.qkv, self.out = nnx.Linear(dim, 3 * dim, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(dim, widen * dim, rngs=rngs),
            nnx.Linear(widen * dim, dim, rngs=rngs),
        )

    def __call__(
        self,
        x: Float[Array, "BL D"],
        mask: Bool[Array, "B 1 L L"],
        rngs: nnx.Rngs | None,
        last: bool = False,
    ) -> Float[Array, "BQ D"]:
        """Positions lie flat, [B * L, D]: one matrix product each, with no transposed copy in its
        gradient.

        last: only the last position (Q = 1) is computed, but for keys and values; else Q = L.
        """
        batch, length = mask.shape[0], mask.shape[-1]
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3 * self.heads, -1)
        q, k, v = jnp.split(qkv, 3, axis=2)
        if last:
            x, q, mask = x.reshape(batch, length, -1)[:, -1], q[:, -1:], mask[:, :, -1:]
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        x = x + dropout(self.out(attended), self.dropout, rngs)
        return x + dropout(self.down(self.activation(self.up(self.norm2(x)))), self.dropout, rngs)


class CausalTransformer(nnx.Module):
    """Reads item vectors oldest to newest; position p sees items up to p. Histories end at the
    right edge.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (learned
    positions; there the MLP has the width of the model and a ReLU), with the norm before each
    layer.
    """

    def __init__(
        self,
        dim: int,
        blocks: int,
        heads: int,
        length: int,
        dropout: float,
        *,
        widen: int = 4,
        activation: Activation = jax.nn.gelu,
        rngs: nnx.Rngs,
    ):
        if dim % heads:
            raise InputError(
                f"width {dim} is not divisible by {heads} heads; change dim or heads of the teacher"
                " or student"
            )
        self.dim, self.dropout = dim, dropout
        self.position = nnx.Param(normal(rngs, (length, dim), 0.1))
        self.blocks = nnx.List(
            [Block(dim, heads, dropout, widen, activation, rngs=rngs) for _ in range(blocks)]
        )
        self.norm = nnx.LayerNorm(dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        history: Int[Array, "B L"],
        *,
        rngs: nnx.Rngs | None = None,
        last: bool = False,
    ) -> Float[Array, "B Q D"]:
        """The context after every position (Q = L), or after the ``last`` alone (Q = 1)."""
        batch, length, dim = x.shape
        valid = history != PAD
        causal = jnp.tril(jnp.ones((length, length), bool))
        # A padded query attends to itself, so that no softmax row is empty.
        mask = (causal[None] & valid[:, None, :]) | jnp.eye(length, dtype=bool)[None]
        x = dropout((x + self.position[...][None, -length:]) * valid[..., None], self.dropout, rngs)
        x = x.reshape(batch * length, dim)
        for i, block in enumerate(self.blocks):
            x = block(x, mask[:, None], rngs, last and i == len(self.blocks) - 1)
        return self.norm(x).reshape(batch, -1, dim)
