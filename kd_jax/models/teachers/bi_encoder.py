"""The bi-encoder teacher: an item tower with a language model, and a context tower.

Item vector: a projection of the language model's vector of the item's text, plus (optionally) a
learned item embedding. Context vector: a causal Transformer over the item vectors of the history,
or a projection of the language model's vector of the history as text. Score: their dot product and
an item bias, with a softmax over the catalogue. The control teacher is the same class with learned
item embeddings only; the gain of its student is not due to a language model.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE
from kd_jax.core.types import PAD, Batch
from kd_jax.models.language.encoding import Texts
from kd_jax.models.layers import CausalTransformer, Packed, dropout, runtime_arrays
from kd_jax.models.scorer import Frozen, Scorer
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.models.teachers.text_tower import TextTower
from kd_jax.runtime.contexts import TeacherTransformer

READ_SCALE = 3.0  # gives the inputs of the Transformer about unit length
# Initial weight of the log of the 3-day count, the best single popularity feature on validation.
TREND_SCALE = 1
TREND_WEIGHT = 3.3


class BiEncoder(Scorer):
    """Context vector · item vector + item bias over the catalogue, or class logits of a pair.

    items, contexts: the texts of the items, and of the histories if they are read as text; None
    without text. encoder: the language model if it is trained (``teacher.lm.train`` other than
    'head'), else None. While it is trained, the step encodes the items of the batch
    (``batch['live_items']``), and the other items have the vectors of the last refresh: a softmax
    over the whole catalogue at the cost of a batch (``spec.softmax``).

    With trends, the vector of an item is extended by its K popularity features at the time of the
    batch, and that of a context by K weights for them; a weighting of the features by item, shared
    by all contexts, is part of the bias. So a score is still a dot product and a bias. Items in the
    history are excluded from the softmax in training, as they are in the ranking. A batch without
    ``snapshot`` is at the end of training.
    """

    reads_packed = True
    rows = {"id": "item", "bias": "item", "item_class": "item"}

    def __init__(
        self,
        spec: TeacherSpec,
        items: Texts | None = None,
        contexts: Texts | None = None,
        encoder: Any = None,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(spec.warm)
        bias = jnp.asarray(spec.bias)
        self.bias = nnx.Param(bias) if spec.train_bias else Frozen(bias)
        self.dropout = spec.dropout
        self.softmax = spec.softmax
        self.hard_negatives = spec.hard_negatives
        self.negatives = spec.negatives if spec.softmax == "sampled" else 0
        self.share = Frozen(jnp.asarray(spec.share)) if spec.share is not None else None
        features = spec.item_features.split("+")
        table = jax.random.normal(rngs.params(), (spec.num_items, spec.dim)) * spec.init_scale
        self.id = nnx.Param(table) if "id" in features else None
        item_texts = items if "text" in features else None
        self.text = _tower(item_texts, spec, encoder, rngs)
        self.written = _tower(contexts, spec, encoder, rngs)
        self.transformer = _transformer(spec, rngs) if contexts is None else None
        self.example_kind = "all" if contexts is None and not spec.num_classes else "last"
        self.trends = Frozen(jnp.asarray(spec.trends)) if spec.trends is not None else None
        if spec.trends is not None:
            self.example_kind = "last"
            k = spec.trends.shape[-1]
            self.trend = nnx.Param(jnp.zeros(k).at[TREND_SCALE].set(TREND_WEIGHT))
            self.trend_of_item = nnx.Param(jnp.zeros((spec.dim, k)))
            self.trend_of_context = nnx.Param(jnp.zeros((spec.dim, k)))
            self.gain = nnx.Param(jnp.array(0.3))
        self.rating = nnx.Embed(spec.num_classes, spec.dim, rngs=rngs) if spec.num_classes else None
        if spec.num_classes:
            self.head = nnx.Linear(3 * spec.dim, spec.num_classes, rngs=rngs)
            self.item_class = nnx.Param(jnp.zeros((spec.num_items, spec.num_classes)))

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        """Item vectors [I, D] and biases [I]; with trends, at the time of the batch."""
        batch = batch or {}
        if self.hard_negatives and "live_items" in batch:
            batch = batch | {"live_items": batch["live_items"] | {None: self._hardest(batch)}}
        vectors = jnp.zeros(())
        if self.text is not None:
            vectors = self.text.all(batch.get("live_items"), rngs)
        if self.id is not None:
            vectors = vectors + dropout(self.id[...], self.dropout, rngs)
        bias = self.bias[...]
        if self.trends is not None:
            snapshot = batch["snapshot"][0] if "snapshot" in batch else -1
            features = self.trends[...][snapshot]
            by_item = jnp.sum(features * (vectors @ self.trend_of_item[...]), axis=1)
            bias = features @ self.trend[...] + by_item + bias
            vectors = jnp.concatenate([vectors, features], axis=1)
        if self.softmax != "full" and "live_items" in batch:
            bias = bias - self._log_q(batch)
        return vectors, bias

    def _hardest(self, batch: Batch) -> Array:
        """The ``hard_negatives`` items of each row with the highest scores, flattened.

        Items of the history and targets are left out.
        """
        plain = {key: value for key, value in batch.items() if key != "live_items"}
        vectors, bias = self.items(batch=plain)
        scores = Factors(self._contexts(plain, vectors, None, True)[:, -1], vectors, bias).dense()
        known = jnp.concatenate([batch["history"], batch["targets"][:, -1]], axis=1)
        rows = jnp.arange(len(scores))[:, None]
        known = jnp.where(known == PAD, scores.shape[1], known)
        scores = scores.at[rows, known].set(-jnp.inf, mode="drop")
        return jax.lax.stop_gradient(jax.lax.top_k(scores, self.hard_negatives)[1].ravel())

    def _log_q(self, batch: Batch) -> Float[Array, " I"]:
        """The log of each item's probability to be encoded in this step.

        It is subtracted from the scores; a huge number for items that are not encoded. Among m
        interactions and n drawn items, item i occurs with probability 1 - (1 - p_i)^(m + n).
        Source: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
        Recommendations", RecSys 2019.
        """
        assert self.share is not None
        share = self.share[...]
        drawn = sum(jnp.sum(batch[key] != PAD) for key in ("history", "targets")) + self.negatives
        log_q = jnp.log(-jnp.expm1(drawn * jnp.log1p(-share)))
        live = dict(batch["live_items"])
        hard = live.pop(None, None)
        outside = jnp.ones(share.shape, bool)
        for rows in (*live.values(), batch["targets"].ravel()):
            outside = outside.at[jnp.where(rows == PAD, len(share), rows)].set(False, mode="drop")
        log_q = jnp.where(outside, -NEGATIVE, log_q)
        return log_q if hard is None else log_q.at[hard].set(0.0)  # hard negatives: probability 1

    def contexts(
        self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B P D"]:
        """The context vector after each predicted position."""
        return self._contexts(batch, vectors, rngs, self.example_kind == "last")

    def context(self, batch: Batch, vectors: Array) -> Float[Array, "B D"]:
        """The context vector after the whole history."""
        return self._contexts(batch, vectors, None, True)[:, -1]

    def _contexts(
        self, batch: Batch, vectors: Array, rngs: nnx.Rngs | None, last: bool
    ) -> Float[Array, "B P D"]:
        if self.written is not None:
            return self._with_trends(self.written.some(batch["context_row"], rngs)[:, None])
        history = batch["history"]
        assert self.transformer is not None
        x = READ_SCALE * vectors[jnp.maximum(history, 0)][..., : self.transformer.dim]
        if self.rating is not None:
            x = x + self.rating(jnp.maximum(batch["history_class"], 0))
        packed = Packed.of(batch)
        found = self.transformer(x, history, packed=packed, rngs=rngs, last=last)
        return self._with_trends(found)

    def _with_trends(self, contexts: Float[Array, "B P D"]) -> Float[Array, "B P DK"]:
        if self.trends is None:
            return contexts
        weights = contexts @ self.trend_of_context[...]
        return jnp.concatenate([contexts * self.gain[...], weights], axis=-1)

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        """Factors of the scores; with trends, items of the history are excluded."""
        factors = super().factors(batch, rngs=rngs)
        if self.trends is None:
            return factors
        return factors._replace(excluded=batch["history"][:, None])

    def runtime_context(self) -> TeacherTransformer | None:
        """Its model of histories for ``kd_jax.runtime``, in NumPy.

        None for a teacher that reads histories as text, rates pairs, or has no block.
        """
        body = self.transformer
        if body is None or self.rating is not None or not len(body.blocks):
            return None
        output = np.eye(body.dim, dtype=np.float32)
        if self.trends is not None:
            weights = np.asarray(self.trend_of_context[...])
            output = np.concatenate([output * np.asarray(self.gain[...]), weights], axis=1)
        return TeacherTransformer(**runtime_arrays(body), scale=READ_SCALE, output=output)

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        """Logits of the catalogue or, for a batch of pairs, of the rating classes [B, 1, C]."""
        if "item" not in batch:
            return super().logits(batch, rngs=rngs)
        vectors, _ = self.items(rngs=rngs, batch=batch)
        context = self.contexts(batch, vectors, rngs=rngs)[:, -1]
        item = vectors[batch["item"]]
        pair = jnp.concatenate([context, item, context * item], axis=-1)
        return (self.head(pair) + self.item_class[...][batch["item"]])[:, None]


def _tower(
    texts: Texts | None, spec: TeacherSpec, encoder: Any, rngs: nnx.Rngs
) -> TextTower | None:
    return None if texts is None else TextTower(texts, spec, encoder, rngs=rngs)


def _transformer(spec: TeacherSpec, rngs: nnx.Rngs) -> CausalTransformer:
    return CausalTransformer(
        spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout, rngs=rngs
    )
