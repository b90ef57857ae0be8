"""The cross-encoder: the language model reads a user's text and an item's together, and a small
head judges the pair.

Source: Nogueira and Cho, "Passage Re-ranking with BERT", 2019 (two texts in one input, a classifier
on its vector).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.core.types import Batch, Params, PyTree
from kd_jax.data.text import TokenTable
from kd_jax.models.language import encoding
from kd_jax.models.layers import dropout
from kd_jax.models.scorer import Frozen, Scorer, split


@dataclasses.dataclass(frozen=True)
class CrossSpec:
    """What a cross-encoder is built from.

    width: of the language model's vectors. counts: f32 [I, C] training ratings of each item by
    class. own: int8 [N], the class of each interaction that is among those, PAD for the others.
    """

    width: int
    counts: np.ndarray
    own: np.ndarray
    hidden: int = 256
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InputError(f"teacher.model.hidden={self.hidden} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"teacher.model.dropout={self.dropout} must be at least 0 and below 1")


class PairHead(nnx.Module):
    """A pair's vector -> C numbers, small at first: LayerNorm, and an MLP of one hidden layer
    beside a linear map.
    """

    def __init__(self, width: int, hidden: int, out: int, rate: float, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.dropout = rate
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, out, kernel_init=small, rngs=rngs)
        self.linear = nnx.Linear(width, out, kernel_init=small, rngs=rngs)

    def __call__(self, vectors: Float[Array, "N F"], rngs: nnx.Rngs | None) -> Float[Array, "N C"]:
        x = dropout(self.norm(vectors), self.dropout, rngs)
        return self.linear(x) + self.down(dropout(jax.nn.gelu(self.up(x)), self.dropout, rngs))


class CrossEncoder(Scorer):
    """Class logits of a user-item pair: a head on the language model's vector of the pair's text,
    beside the log of the item's class shares.

    The shares are those of the item-average baseline, (counts + s · average) / (count + s) with s =
    1 at first and learned; a training rating is left out of its own item's counts, or the head
    would learn from an answer that it is told. So the model starts about where the baseline stands,
    and the head learns what is left.

    encoder: the language model when it is trained, else None. A batch with ``pair_ids`` is read
    now, with gradient; otherwise a pair's vector is looked up by its ``interaction``: ``vectors``
    f32 [N, F], NaN where nothing was computed (``with_vectors``).
    """

    positions = "last"
    factorised = False

    def __init__(
        self,
        spec: CrossSpec,
        vectors: np.ndarray | None = None,
        encoder: Any = None,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(None)
        self.encoder = encoder
        if vectors is None:
            vectors = np.full((len(spec.own), spec.width), np.nan, np.float32)
        self.vectors = Frozen(jnp.asarray(vectors))
        self.counts = Frozen(jnp.asarray(spec.counts, jnp.float32))
        self.own = Frozen(jnp.asarray(spec.own, jnp.int8))
        self.smoothing = nnx.Param(jnp.zeros(()))
        self.head = PairHead(spec.width, spec.hidden, spec.counts.shape[1], spec.dropout, rngs=rngs)

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B 1 C"]:
        if "pair_ids" in batch:
            vectors = self.encoder(batch["pair_ids"], batch["pair_mask"])
        else:
            vectors = self.vectors[...][batch["interaction"]]
        return (self.head(vectors, rngs) + self.shares(batch))[:, None]

    def shares(self, batch: Batch) -> Float[Array, "B C"]:
        """Log of the class shares of the batch's items, each without the rating that is asked
        for.
        """
        counts = self.counts[...]
        average = counts.sum(0) / counts.sum()
        own = jax.nn.one_hot(
            self.own[...][batch["interaction"]], counts.shape[1]
        )  # zeros where it is PAD
        left, weight = counts[batch["item"]] - own, jnp.exp(self.smoothing[...])
        return jnp.log(left + weight * average[None]) - jnp.log(left.sum(1, keepdims=True) + weight)

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        """Nothing: it has no vectors of items alone."""
        return jnp.zeros((len(self.counts[...]), 1)), jnp.zeros(len(self.counts[...]))


class PairRanker(Scorer):
    """A cross-encoder that ranks: one number per pair, a softmax over the target and drawn
    candidates.

    Candidates are drawn by popularity, so that the number says how much better an item fits this
    user than its popularity lets one expect: the log of that popularity is what a sampled softmax
    would take off again (log-Q correction), and it is added where items are ranked
    (``kd_jax/rerank.py``).
    """

    positions = "last"
    factorised = False

    def __init__(self, encoder: Any, hidden: int, rate: float, *, rngs: nnx.Rngs):
        super().__init__(None)
        self.encoder = encoder
        self.head = PairHead(encoder.dim, hidden, 1, rate, rngs=rngs)

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B 1 K"]:
        """Of the K pairs of each row, ``pair_ids`` int32 [B, K, L]; the target is the first."""
        ids, mask = batch["pair_ids"], batch["pair_mask"]
        vectors = self.encoder(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1]))
        return self.head(vectors, rngs).reshape(len(ids), 1, -1)


def with_vectors(
    graphdef: nnx.GraphDef,
    params: Params,
    constants: PyTree,
    *,
    rows: np.ndarray,
    table: TokenTable,
    **how: Any,
) -> PyTree:
    """``constants`` of a cross-encoder whose language model is trained, with the vectors of these
    pairs computed from ``params``. rows: int [R], the interactions of the pairs of ``table``. how:
    see ``text.encode``.
    """
    model: Any = nnx.merge(graphdef, params, constants)
    vectors = np.array(model.vectors[...])
    vectors[rows] = encoding.encode(model.encoder, table, **how)
    model.vectors = Frozen(jnp.asarray(vectors))
    return split(model)[2]
