"""What teachers and students are both made of: a scorer's contract and a causal Transformer over histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.catalogue import Factors
from kd_jax.errors import InputError
from kd_jax.types import PAD, Batch, Params, PyTree


class Frozen(nnx.Variable):
    """An array that a model needs and that training never changes: item text vectors, masks, counts."""


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params, PyTree]:
    """(graphdef, params, constants) with ``nnx.merge(*split(module))`` the module again: what is trained, and the rest,
    as plain nested dicts."""
    graphdef, params, *rest = nnx.split(module, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest[0])


def table_rows(graphdef: nnx.GraphDef, params: Params, kind: str | None = None) -> dict[str, int]:
    """Rows of each of the module's ``Scorer.tables``, those of one ``kind`` or all."""
    root: Any = graphdef.nodes[0]
    tables = root.metadata.tables
    return {name: params[name].shape[0] for name, of in tables.items() if name in params and kind in (None, of)}


def factorises(graphdef: nnx.GraphDef) -> bool:
    """``Scorer.factorised`` of the module."""
    root: Any = graphdef.nodes[0]
    return root.type.factorised


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> Array:
    """Random first values of this standard deviation; the same bits inside a program and outside, where XLA does not
    join ``scale`` with the factor that ``normal`` ends with."""
    return jax.lax.optimization_barrier(jax.random.normal(rngs.params(), shape)) * scale


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Inverted dropout; the identity when ``rngs`` is None, as in evaluation.

    A byte decides about an element, so the rate is rounded to a 256th (and the scale to match): a quarter of the random
    numbers, which are what dropout costs. The mask does not depend on how the array is sharded.
    """
    dropped = min(round(256 * rate), 255)
    if rngs is None or dropped == 0:
        return x
    words = jax.random.bits(rngs.dropout(), (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    draw = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return jnp.where(draw >= dropped, x * (256 / (256 - dropped)), 0)


class Scorer(nnx.Module):
    """A model that scores items for a context. Subclasses give vectors; the score is their dot product and a bias.

    Factorised scores (context vector · item vector + bias) are the project's common currency: soft labels are cached as
    vectors, losses run over any catalogue a tile at a time (``kd_jax/catalogue.py``), catalogues are ranked by one
    matrix product, and what is exported is what was trained. A model whose scores do not factorise says so
    (``factorised``) and overrides ``logits`` and ``scores``.

    positions, the training examples it learns from: 'user' (one context per user, all its items are targets), 'all' (a
    context after every history item, the next one is the target) or 'last' (one context, the last item is the target).

    tables: the parameters that have a row per 'user' or 'item', all of a kind or none. A train step may put the rows
    that its batch needs in their place, and indices into those rows into the batch (``distill.gathered``): a model that
    looks its tables up by the batch alone does not see the difference. A mesh that does not divide a table adds rows at
    its end (``sharding.even_rows``): ``catalogue`` and ``scores`` then have as many items. reads_history: whether that
    look-up includes ``history``. proposal: what negatives are drawn from where the catalogue is sampled
    (``kd_jax/sampled.py``).
    """

    positions = "user"
    factorised = True
    reads_history = True
    tables: ClassVar[dict[str, str]] = {}
    proposal: Frozen | None = None

    def __init__(self, warm: Array | np.ndarray | None):
        self.warm = Frozen(jnp.asarray(warm)) if warm is not None else None

    def items(self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None) -> tuple[Array, Array]:
        """Item vectors [I, D] and item biases [I]. ``batch`` lets a tower that is being trained encode its items."""
        raise NotImplementedError

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P D"]:
        """Context vectors; ``vectors`` are the item vectors that a history is read through."""
        raise NotImplementedError

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        """Training scores of the catalogue at every position [B, P], as their factors."""
        vectors, bias = self.items(rngs=rngs, batch=batch)
        return Factors(self.contexts(batch, vectors, rngs=rngs), vectors, bias)

    def context(self, batch: Batch, vectors: Array) -> Float[Array, "B D"]:
        """The context after the last history item; a model overrides this where it is cheaper than all of them."""
        return self.contexts(batch, vectors)[:, -1]

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        """Training logits: over the catalogue at every position (rank), or over the classes of the pair (rate)."""
        return self.factors(batch, rngs=rngs).dense()

    def training_scores(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors | Float[Array, "B P C"]:
        """``factors`` where there are such, else ``logits``."""
        return (
            self.factors(batch, rngs=rngs) if self.factorised and "item" not in batch else self.logits(batch, rngs=rngs)
        )

    def catalogue(self) -> PyTree:
        """What scoring needs of the items alone: computed once, then used for any number of users."""
        return self.items()

    def scores(self, batch: Batch, catalogue: PyTree) -> Factors | Float[Array, "B I"]:
        """Scores of the whole catalogue after the last history item: as factors, where there are such."""
        vectors, bias = catalogue
        return Factors(self.context(batch, vectors), vectors, bias)


Activation = Callable[[Array], Array]


class Block(nnx.Module):
    """A pre-norm Transformer block: attention and an MLP, ``widen`` times as wide."""

    def __init__(self, dim: int, heads: int, dropout: float, widen: int, activation: Activation, *, rngs: nnx.Rngs):
        self.heads, self.dropout, self.activation = heads, dropout, activation
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        self.qkv, self.out = nnx.Linear(dim, 3 * dim, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.up, self.down = nnx.Linear(dim, widen * dim, rngs=rngs), nnx.Linear(widen * dim, dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "BL D"], mask: Bool[Array, "B 1 L L"], rngs: nnx.Rngs | None, last: bool = False
    ) -> Float[Array, "BQ D"]:
        """Positions lie flat, [B * L, D]: one matrix product each, with no transposed copy in its gradient.

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
    """Reads item vectors oldest to newest; position p sees items up to p. Histories end at the right edge.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (learned positions; there
    the MLP has the width of the model and a ReLU), with the norm before each layer.
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
                f"width {dim} is not divisible by {heads} heads; change dim or heads of the teacher or student"
            )
        self.dim, self.dropout = dim, dropout
        self.position = nnx.Param(normal(rngs, (length, dim), 0.1))
        self.blocks = nnx.List([Block(dim, heads, dropout, widen, activation, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], history: Int[Array, "B L"], *, rngs: nnx.Rngs | None = None, last: bool = False
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
