"""The cross-encoder teacher: a language model that reads the texts of user and item together.

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
    """The data and sizes from which a cross-encoder is created.

    width: of the language model's vectors. counts: f32 [I, C], the train ratings of each item by
    class. own: int8 [N], the class of each train interaction, PAD for the others. Raises InputError
    for a value out of range.
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
    """Maps the vector of a pair to C numbers, which are small at first.

    A LayerNorm, then the sum of a linear map and an MLP with one hidden layer. rate: of dropout.
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
        hidden = dropout(jax.nn.gelu(self.up(x)), self.dropout, rngs)
        return self.linear(x) + self.down(hidden)


class CrossEncoder(Scorer):
    """Class logits of a user-item pair: a head on the vector of the pair plus a prior.

    The prior is the log of the item's class shares in the item-average baseline, (counts + s ·
    average) / (count + s), where s is learned and 1 at first. A train rating is left out of the
    counts of its own item, since it would leak the target. So the model is close to the baseline at
    first, and the head learns the difference.

    encoder: the language model if it is trained, else None. A batch with ``pair_ids`` is encoded in
    the step, with gradient. Otherwise the vector of a pair is looked up by its ``interaction`` in
    ``vectors``, f32 [N, F], which is NaN where it is not computed (``with_vectors``).
    """

    example_kind = "last"
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
        """Class logits of the batch's pairs."""
        if "pair_ids" in batch:
            vectors = self.encoder(batch["pair_ids"], batch["pair_mask"])
        else:
            vectors = self.vectors[...][batch["interaction"]]
        return (self.head(vectors, rngs) + self.shares(batch))[:, None]

    def shares(self, batch: Batch) -> Float[Array, "B C"]:
        """The log of the class shares of the batch's items, each without the rating to predict."""
        counts = self.counts[...]
        average = counts.sum(0) / counts.sum()
        # Zeros where the class is PAD.
        own = jax.nn.one_hot(self.own[...][batch["interaction"]], counts.shape[1])
        left = counts[batch["item"]] - own
        weight = jnp.exp(self.smoothing[...])
        return jnp.log(left + weight * average[None]) - jnp.log(left.sum(1, keepdims=True) + weight)

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        """Placeholders, since a cross-encoder has no item vectors."""
        return jnp.zeros((len(self.counts[...]), 1)), jnp.zeros(len(self.counts[...]))


class PairRanker(Scorer):
    """A cross-encoder for ranking: one score per pair, a softmax over the target and candidates.

    Candidates are drawn by popularity and their log-Q correction is omitted, so a score is relative
    to the log of the item's popularity, which is added when items are ranked
    (``experiment/rerank.py``).
    """

    example_kind = "last"
    factorised = False

    def __init__(self, encoder: Any, hidden: int, rate: float, *, rngs: nnx.Rngs):
        super().__init__(None)
        self.encoder = encoder
        self.head = PairHead(encoder.dim, hidden, 1, rate, rngs=rngs)

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B 1 K"]:
        """Scores of the K pairs of each row, ``pair_ids`` int32 [B, K, L]; first the target."""
        ids = batch["pair_ids"]
        mask = batch["pair_mask"]
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
    """``constants`` of a cross-encoder, with the vectors of pairs computed from ``params``.

    rows: int [R], the interactions of the pairs in ``table``. how: arguments of
    ``encoding.encode``.
    """
    model: Any = nnx.merge(graphdef, params, constants)
    vectors = np.array(model.vectors[...])
    vectors[rows] = encoding.encode(model.encoder, table, **how)
    model.vectors = Frozen(jnp.asarray(vectors))
    return split(model)[2]
