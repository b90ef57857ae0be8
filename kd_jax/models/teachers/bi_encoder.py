"""The teacher: a bi-encoder whose item tower is a language model and whose context tower reads the
history.

Item vector = projection of the language model's vector of the item's text, plus (optionally) a
learned item embedding. Context vector = causal Transformer over the item vectors of the history, or
a projection of the language model's vector of the history written as text. Score = their dot
product and an item bias, softmax over the catalogue. The control teacher is the same class with
learned item IDs alone: what it gives to a student is not the language model's doing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE
from kd_jax.core.types import PAD, Batch
from kd_jax.models.language.encoding import Texts
from kd_jax.models.layers import CausalTransformer, dropout
from kd_jax.models.scorer import Frozen, Scorer
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.models.teachers.text_tower import TextTower

READ_SCALE = 3.0  # and so of about unit length where the Transformer reads them
TREND_SCALE, TREND_WEIGHT = (
    1,
    3.3,
)  # start at the log of the 3-day count: the best single trend on validation


class BiEncoder(Scorer):
    """Context vector · item vector + item bias over the catalogue; or class logits of a user-item
    pair.

    encoder: the language model when it is trained (``teacher.lm.train`` not 'head'), else None:
    the texts' vectors were computed once and for all. While it is trained, the items of the batch
    (``batch['live_items']``) are encoded in the step and the rest of the catalogue enters the
    softmax with the vectors of the last refresh: the softmax is over the whole catalogue at the
    cost of a batch (``spec.softmax``).

    With trends an item's vector is followed by its K trend features at the moment of the batch, a
    context's by the K weights it gives them; what all contexts share, a weighting of the trends
    that depends on the item, is the bias. The scores stay a dot product and a bias, and items that
    a context has seen do not compete in training, as they never do in a ranking. A batch without a
    moment is at the end of training.
    """

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
        self.softmax, self.hard_negatives = spec.softmax, spec.hard_negatives
        self.negatives = spec.negatives if spec.softmax == "sampled" else 0
        self.share = Frozen(jnp.asarray(spec.share)) if spec.share is not None else None
        features = spec.item_features.split("+")
        table = jax.random.normal(rngs.params(), (spec.num_items, spec.dim)) * spec.init_scale
        self.id = nnx.Param(table) if "id" in features else None
        self.text = (
            TextTower(items, spec, encoder, rngs=rngs)
            if "text" in features and items is not None
            else None
        )
        self.written = (
            TextTower(contexts, spec, encoder, rngs=rngs) if contexts is not None else None
        )
        self.transformer = (
            CausalTransformer(
                spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout, rngs=rngs
            )
            if contexts is None
            else None
        )
        self.positions = "all" if contexts is None and not spec.num_classes else "last"
        self.trends = Frozen(jnp.asarray(spec.trends)) if spec.trends is not None else None
        if spec.trends is not None:
            self.positions, k = "last", spec.trends.shape[-1]
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
        batch = batch or {}
        if self.hard_negatives and "live_items" in batch:
            batch = batch | {"live_items": batch["live_items"] | {None: self._hardest(batch)}}
        vectors = jnp.zeros(())
        if self.text is not None:
            vectors = self.text.all(batch.get("live_items"), rngs)
        if self.id is not None:
            vectors = vectors + dropout(self.id[...], self.dropout, rngs)
        correction = (
            self._log_q(batch) if self.softmax != "full" and "live_items" in batch else None
        )
        if self.trends is None:
            bias = self.bias[...]
            return vectors, bias if correction is None else bias - correction
        moment = batch["snapshot"][0] if "snapshot" in batch else -1
        features = self.trends[...][moment]
        by_item = jnp.sum(features * (vectors @ self.trend_of_item[...]), axis=1)
        bias = features @ self.trend[...] + by_item + self.bias[...]
        return jnp.concatenate(
            [vectors, features], axis=1
        ), bias if correction is None else bias - correction

    def _hardest(self, batch: Batch) -> Array:
        """For every row the ``hard_negatives`` items that score highest now and are neither read
        nor wanted, flat.
        """
        plain = {key: value for key, value in batch.items() if key != "live_items"}
        vectors, bias = self.items(batch=plain)
        scores = Factors(self._contexts(plain, vectors, None, True)[:, -1], vectors, bias).dense()
        known = jnp.concatenate([batch["history"], batch["targets"][:, -1]], axis=1)
        rows = jnp.arange(len(scores))[:, None]
        scores = scores.at[rows, jnp.where(known == PAD, scores.shape[1], known)].set(
            -jnp.inf, mode="drop"
        )
        return jax.lax.stop_gradient(jax.lax.top_k(scores, self.hard_negatives)[1].ravel())

    def _log_q(self, batch: Batch) -> Float[Array, " I"]:
        """The log of how likely each item was to be encoded in this step, to be taken off its
        score; a huge number for those that were not. Of m interactions and n drawn items one is
        item i with probability 1 - (1 - p_i)^(m + n).

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
        return log_q if hard is None else log_q.at[hard].set(0.0)  # the hardest are always in

    def contexts(
        self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B P D"]:
        return self._contexts(batch, vectors, rngs, self.positions == "last")

    def context(self, batch: Batch, vectors: Array) -> Float[Array, "B D"]:
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
        return self._with_trends(self.transformer(x, history, rngs=rngs, last=last))

    def _with_trends(self, contexts: Float[Array, "B P D"]) -> Float[Array, "B P DK"]:
        if self.trends is None:
            return contexts
        return jnp.concatenate(
            [contexts * self.gain[...], contexts @ self.trend_of_context[...]], axis=-1
        )

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        factors = super().factors(batch, rngs=rngs)
        return (
            factors if self.trends is None else factors._replace(excluded=batch["history"][:, None])
        )

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        if "item" not in batch:
            return super().logits(batch, rngs=rngs)
        vectors, _ = self.items(rngs=rngs, batch=batch)
        context, item = self.contexts(batch, vectors, rngs=rngs)[:, -1], vectors[batch["item"]]
        pair = jnp.concatenate([context, item, context * item], axis=-1)
        return (self.head(pair) + self.item_class[...][batch["item"]])[:, None]
