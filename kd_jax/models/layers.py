"""What teachers and students are both made of: a scorer's contract and a causal Transformer over histories."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.errors import InputError
from kd_jax.types import PAD, Batch, Params, PyTree


class Frozen(nnx.Variable):
    """An array that a model needs and that training never changes: item text vectors, masks, counts."""


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params, PyTree]:
    """(graphdef, params, constants) with ``nnx.merge(*split(module))`` the module again: what is trained, and the rest,
    as plain nested dicts."""
    graphdef, params, *rest = nnx.split(module, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest[0])


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Inverted dropout; the identity when ``rngs`` is None, as in evaluation."""
    if rngs is None or rate == 0.0:
        return x
    return nnx.Dropout(rate)(x, deterministic=False, rngs=rngs)


class Scorer(nnx.Module):
    """A model that scores items for a context. Subclasses give vectors; the score is their dot product and a bias.

    Factorised scores (context vector · item vector + bias) are the project's common currency: soft labels are cached as
    vectors, catalogues are ranked by one matrix product, and what is exported is what was trained. A model
    whose scores do not factorise overrides ``logits`` and ``scores``.

    positions, the training examples it learns from: 'user' (one context per user, all its items are targets), 'all' (a
    context after every history item, the next one is the target) or 'last' (one context, the last item is the target).
    """

    positions = "user"

    def __init__(self, warm: Array | np.ndarray | None):
        self.warm = Frozen(jnp.asarray(warm)) if warm is not None else None

    def items(self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None) -> tuple[Array, Array]:
        """Item vectors [I, D] and item biases [I]. ``batch`` lets a tower that is being trained encode its items."""
        raise NotImplementedError

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P D"]:
        """Context vectors; ``vectors`` are the item vectors that a history is read through."""
        raise NotImplementedError

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        """Training logits: over the catalogue at every position (rank), or over the classes of the pair (rate)."""
        vectors, bias = self.items(rngs=rngs, batch=batch)
        return factorised_logits(self.contexts(batch, vectors, rngs=rngs), vectors, bias)

    def catalogue(self) -> PyTree:
        """What scoring needs of the items alone: computed once, then used for any number of users."""
        return self.items()

    def scores(self, batch: Batch, catalogue: PyTree) -> Float[Array, "B I"]:
        """Scores of the whole catalogue after the last history item."""
        vectors, bias = catalogue
        return factorised_logits(self.contexts(batch, vectors)[:, -1], vectors, bias)


def factorised_logits(contexts: Array, vectors: Array, bias: Array) -> Array:
    """context · item + bias over the catalogue: [..., D] x [I, D] + [I] -> [..., I]."""
    logits = contexts @ vectors.T
    return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)


class Block(nnx.Module):
    """A pre-norm Transformer block: attention and a GELU MLP, four times as wide."""

    def __init__(self, dim: int, heads: int, dropout: float, *, rngs: nnx.Rngs):
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        self.qkv, self.out = nnx.Linear(dim, 3 * dim, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.up, self.down = nnx.Linear(dim, 4 * dim, rngs=rngs), nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], mask: Array, rngs: nnx.Rngs | None) -> Float[Array, "B L D"]:
        batch, length, dim = x.shape
        q, k, v = jnp.split(self.qkv(self.norm1(x)).reshape(batch, length, self.heads, -1), 3, axis=-1)
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(batch, length, dim)
        x = x + dropout(self.out(attended), self.dropout, rngs)
        return x + dropout(self.down(jax.nn.gelu(self.up(self.norm2(x)))), self.dropout, rngs)


class CausalTransformer(nnx.Module):
    """Reads item vectors oldest to newest; position p sees items up to p. Histories end at the right edge.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (pre-norm, learned positions).
    """

    def __init__(self, dim: int, blocks: int, heads: int, length: int, dropout: float, *, rngs: nnx.Rngs):
        if dim % heads:
            raise InputError(
                f"width {dim} is not divisible by {heads} heads; change dim or heads of the teacher or student"
            )
        self.dim, self.dropout = dim, dropout
        self.position = nnx.Param(jax.random.normal(rngs.params(), (length, dim)) * 0.1)
        self.blocks = nnx.List([Block(dim, heads, dropout, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], history: Int[Array, "B L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B L D"]:
        length = x.shape[1]
        valid = history != PAD
        causal = jnp.tril(jnp.ones((length, length), bool))
        # A padded query attends to itself, so that no softmax row is empty.
        mask = (causal[None] & valid[:, None, :]) | jnp.eye(length, dtype=bool)[None]
        x = dropout((x + self.position[...][None, -length:]) * valid[..., None], self.dropout, rngs)
        for block in self.blocks:
            x = block(x, mask[:, None], rngs)
        return self.norm(x)
