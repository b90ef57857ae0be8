"""Layers that teachers and students share: dropout and a causal Transformer over histories."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> Array:
    """Random initial values with mean 0 and standard deviation ``scale``.

    The barrier keeps XLA from joining ``scale`` with the last factor of ``jax.random.normal``, so
    that the values have the same bits inside and outside a jitted function.
    """
    return jax.lax.optimization_barrier(jax.random.normal(rngs.params(), shape)) * scale


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Inverted dropout; the identity where ``rngs`` is None, as in evaluation.

    One random byte decides about an element, so the rate (and with it the scale) is rounded to a
    multiple of 1/256: this needs a quarter of the random numbers, which are the cost of dropout.
    The mask does not depend on the sharding of the array.
    """
    dropped = min(round(256 * rate), 255)
    if rngs is None or dropped == 0:
        return x
    words = jax.random.bits(rngs.dropout(), (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    draw = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)
    draw = draw[..., : x.shape[-1]]
    return jnp.where(draw >= dropped, x * (256 / (256 - dropped)), 0)


Activation = Callable[[Array], Array]


class Block(nnx.Module):
    """A pre-norm Transformer block: attention, and an MLP of ``widen`` times the width."""

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
        self.heads = heads
        self.dropout = dropout
        self.activation = activation
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.out = nnx.Linear(dim, dim, rngs=rngs)
        self.up = nnx.Linear(dim, widen * dim, rngs=rngs)
        self.down = nnx.Linear(widen * dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "BL D"],
        mask: Bool[Array, "B 1 L L"],
        rngs: nnx.Rngs | None,
        last: bool = False,
    ) -> Float[Array, "BQ D"]:
        """Runs the block on flattened positions [B * L, D].

        Flattened, a linear map is one matrix product without a transposed copy in its gradient.
        last: compute the output of the last position only (Q = 1); else Q = L.
        """
        batch = mask.shape[0]
        length = mask.shape[-1]
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3 * self.heads, -1)
        q, k, v = jnp.split(qkv, 3, axis=2)
        if last:
            x = x.reshape(batch, length, -1)[:, -1]
            q = q[:, -1:]
            mask = mask[:, :, -1:]
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        x = self._plus(x, dropout(self.out(attended), self.dropout, rngs), 0)
        hidden = self._hidden(self.norm2(x))
        return self._plus(x, dropout(self.down(hidden), self.dropout, rngs), 1)

    def _plus(self, x: Array, change: Array, part: int) -> Array:
        """The residual connection of the attention (part 0) or of the MLP (part 1)."""
        return x + change

    def _hidden(self, x: Array) -> Array:
        return self.activation(self.up(x))


class GatedBlock(Block):
    """A pre-norm block whose two changes are gated by their input, with a SwiGLU in its MLP.

    x + sigmoid(gate(x)) * change, where x is the input before its norm, gate a linear map of the
    width and change the output of the attention or of the MLP; the MLP is
    down(silu(up(x)) * side(x)). Source: the LiGR layers of Borisyuk et al., "From Features to
    Transformers: Redefining Ranking for Scalable Impact", arXiv 2502.03417, in a SASRec as in
    eSASRec, arXiv 2508.06450.
    """

    def __init__(self, dim: int, heads: int, dropout: float, widen: int, *, rngs: nnx.Rngs):
        super().__init__(dim, heads, dropout, widen, jax.nn.silu, rngs=rngs)
        self.side = nnx.Linear(dim, widen * dim, rngs=rngs)
        self.gates = nnx.List([nnx.Linear(dim, dim, rngs=rngs) for _ in range(2)])

    def _plus(self, x: Array, change: Array, part: int) -> Array:
        return x + jax.nn.sigmoid(self.gates[part](x)) * change

    def _hidden(self, x: Array) -> Array:
        return super()._hidden(x) * self.side(x)


GELU_BLOCK = functools.partial(Block, widen=4, activation=jax.nn.gelu)


class Packed(NamedTuple):
    """Where each position of a packed batch belongs (``data/examples/packed.py``), int32 [B, L].

    segment: its window; a position sees those of its own window alone. place: its position in the
    padded form.
    """

    segment: Array
    place: Array

    @classmethod
    def of(cls, batch: Batch) -> Packed | None:
        """None for a batch that is padded."""
        return cls(batch["segment"], batch["place"]) if "segment" in batch else None


class CausalTransformer(nnx.Module):
    """A causal Transformer over item vectors, oldest first.

    A history is a row, padded on the left, or one of several windows in a row (``Packed``).

    Raises InputError if ``heads`` does not divide ``dim``. Source: Kang and McAuley,
    "Self-Attentive Sequential Recommendation", ICDM 2018 (learned positions; its MLP has the width
    of the model and a ReLU), with the norm before each layer. block: makes a block of a width, a
    number of heads and a rate of dropout.
    """

    def __init__(
        self,
        dim: int,
        blocks: int,
        heads: int,
        length: int,
        dropout: float,
        *,
        block: Callable[..., Block] = GELU_BLOCK,
        rngs: nnx.Rngs,
    ):
        if dim % heads:
            raise InputError(
                f"width {dim} is not divisible by {heads} heads; change dim or heads of the teacher"
                " or student"
            )
        self.dim = dim
        self.dropout = dropout
        self.position = nnx.Param(normal(rngs, (length, dim), 0.1))
        self.blocks = nnx.List([block(dim, heads, dropout, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        history: Int[Array, "B L"],
        *,
        packed: Packed | None = None,
        rngs: nnx.Rngs | None = None,
        last: bool = False,
    ) -> Float[Array, "B Q D"]:
        """The context vector after every position (Q = L), or only the ``last`` one (Q = 1).

        x: the item vectors of ``history``, which is padded with ``PAD``. packed: of a packed batch,
        which has no last position.
        """
        batch, length, dim = x.shape
        valid = history != PAD
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        if packed is None:
            # A padded query attends to itself, so that no softmax row is empty.
            mask = (causal & valid[:, None, :]) | jnp.eye(length, dtype=bool)[None]
            position = self.position[...][None, -length:]
        else:
            assert not last
            mask = causal & (packed.segment[:, :, None] == packed.segment[:, None, :])
            # A product, since the gradient of a look-up adds row by row, which is slow on a CPU.
            place = jax.nn.one_hot(packed.place, length, dtype=x.dtype)
            position = place @ self.position[...][-length:]
        x = dropout((x + position) * valid[..., None], self.dropout, rngs)
        x = x.reshape(batch * length, dim)
        for i, block in enumerate(self.blocks):
            x = block(x, mask[:, None], rngs, last and i == len(self.blocks) - 1)
        return self.norm(x).reshape(batch, -1, dim)


def runtime_arrays(transformer: CausalTransformer) -> dict[str, Any]:
    """The fields of ``runtime.contexts.Transformer``, or of its ``GatedTransformer``.

    There must be at least one block.
    """
    blocks: list[Any] = list(transformer.blocks)

    def norm(layer: Any) -> np.ndarray:
        return np.stack([np.asarray(layer.scale[...]), np.asarray(layer.bias[...])])

    def stacked(layers: list[Any], name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}_{part}": np.stack([np.asarray(getattr(layer, part)[...]) for layer in layers])
            for part in ("kernel", "bias")
        }

    arrays: dict[str, Any] = {}
    gated = isinstance(blocks[0], GatedBlock)
    for name in ("qkv", "out", "up", "down", *("side",) * gated):
        arrays |= stacked([getattr(block, name) for block in blocks], name)
    if gated:
        arrays |= stacked([block.gates[0] for block in blocks], "attention_gate")
        arrays |= stacked([block.gates[1] for block in blocks], "mlp_gate")
    return arrays | {
        "position": np.asarray(transformer.position[...]),
        "norm": norm(transformer.norm),
        "norms": np.stack([[norm(block.norm1), norm(block.norm2)] for block in blocks]),
        "heads": blocks[0].heads,
    }
