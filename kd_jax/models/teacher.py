"""The teacher: a bi-encoder whose item tower is a language model and whose context tower reads the history.

Item vector = projection of the language model's vector of the item's text, plus (optionally) a learned item embedding.
Context vector = causal Transformer over the item vectors of the history, or a projection of the language model's
vector of the history written as text. Score = their dot product and an item bias, softmax over the catalogue. The
control teacher is the same class with learned item IDs alone: what it gives to a student is not the language
model's doing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.catalogue import NEGATIVE, Factors
from kd_jax.errors import InputError, nearest
from kd_jax.models.layers import CausalTransformer, Frozen, Scorer, dropout
from kd_jax.types import PAD, Batch

ITEM_FEATURES = ("text", "id", "text+id")
CONTEXTS = ("items", "text")
SOFTMAXES = ("full", "in_batch", "sampled")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Language-model vectors of a list of texts, f32 [N, F]; with the tokens when the language model is being trained
    and must read them again.

    ids, mask: int32 [N, T]. states: [tokens, F] of the layers that are not trained, if they are kept
    (``data/text.frozen_states``); those of text n start at ``starts[n]``.
    """

    vectors: np.ndarray
    ids: np.ndarray | None = None
    mask: np.ndarray | None = None
    states: np.ndarray | None = None
    starts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """What a teacher is built from.

    bias: f32 [I] item bias to start at; warm: bool [I], or None. components, whitening: of the PCA that a frozen
    language model's vectors go through (components=0: none). num_classes > 0: rate pairs instead of ranking the
    catalogue. trends: f32 [S, I, K] features of the items at S moments (``kd_jax/data/trends.py``), or None. softmax,
    over which items a teacher learns while its language model is trained: the catalogue ('full'), or the items that the
    step encodes: those of the batch ('in_batch') and ``negatives`` drawn ones ('sampled'), with log-Q correction.
    hard_negatives: items per row that the teacher itself scores highest, encoded too. share: f32 [I] of the training
    interactions, or None.
    """

    num_items: int
    bias: np.ndarray
    warm: np.ndarray | None
    item_features: str = "text"
    context: str = "items"
    dim: int = 64
    blocks: int = 2
    heads: int = 2
    history: int = 20
    hidden: int = 256
    dropout: float = 0.2
    init_scale: float = 0.1
    train_bias: bool = True
    components: int = 128
    whitening: float = 0.5
    num_classes: int = 0
    softmax: str = "full"
    negatives: int = 0
    hard_negatives: int = 0
    share: np.ndarray | None = None
    trends: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field, known in (("item_features", ITEM_FEATURES), ("context", CONTEXTS), ("softmax", SOFTMAXES)):
            value = getattr(self, field)
            if value not in known:
                raise InputError(f"teacher.{field}={value!r} is unknown{nearest(value, known)}")
        for field in ("dim", "blocks", "heads", "hidden", "history"):
            if getattr(self, field) < 1:
                raise InputError(f"teacher.{field}={getattr(self, field)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"teacher.dropout={self.dropout} must be at least 0 and below 1")


class Whitening(nnx.Module):
    """A frozen linear map fitted to text vectors: centre, PCA to ``components``, scale by std ** -power.

    Sentence encoders put most of their variance into a few directions that say 'this is a film title'. Half
    whitening (power 0.5) evens the directions out without blowing up the noise of the last ones.
    """

    def __init__(self, vectors: np.ndarray, components: int, power: float):
        centred = vectors - vectors.mean(0)
        values, basis = np.linalg.eigh(centred.T @ centred / len(vectors))
        order = np.argsort(values)[::-1][:components]
        std = np.sqrt(np.maximum(values[order], 1e-8))
        scale = std**-power
        scale /= np.sqrt(np.mean((std * scale) ** 2))  # unit mean square per component, whatever the power
        self.mean = Frozen(jnp.asarray(vectors.mean(0), jnp.float32))
        self.map = Frozen(jnp.asarray(basis[:, order] * scale[None], jnp.float32))

    def __call__(self, vectors: Float[Array, "N F"]) -> Float[Array, "N K"]:
        return (vectors - self.mean[...][None]) @ self.map[...]


_small = nnx.initializers.variance_scaling(0.1, "fan_in", "normal")  # item vectors of length about 0.3 per component
READ_SCALE = 3.0  # and so of about unit length where the Transformer reads them
TREND_SCALE, TREND_WEIGHT = 1, 3.3  # start at the log of the 3-day count: the best single trend on validation


class TextTower(nnx.Module):
    """Texts -> vectors of the teacher's width: (language model) -> whitening -> linear plus residual MLP.

    ``live`` rows are encoded by ``encoder`` now, with gradient; the others enter with the vectors they were
    last given (``refresh``).
    """

    def __init__(self, texts: Texts, spec: TeacherSpec, encoder: Any, *, rngs: nnx.Rngs):
        self.encoder, self.dropout = encoder, spec.dropout
        self.vectors = Frozen(jnp.asarray(texts.vectors))
        self.ids = Frozen(jnp.asarray(texts.ids)) if encoder is not None else None
        self.mask = Frozen(jnp.asarray(texts.mask)) if encoder is not None else None
        self.states = Frozen(jnp.asarray(texts.states)) if texts.states is not None else None
        self.starts = Frozen(jnp.asarray(texts.starts)) if texts.starts is not None else None
        self.whitening = Whitening(texts.vectors, spec.components, spec.whitening) if spec.components else None
        width = self.whitening.map.shape[1] if self.whitening is not None else texts.vectors.shape[1]
        self.linear = nnx.Linear(width, spec.dim, kernel_init=_small, rngs=rngs)
        self.up = nnx.Linear(width, spec.hidden, kernel_init=nnx.initializers.normal(width**-0.5), rngs=rngs)
        self.down = nnx.Linear(spec.hidden, spec.dim, kernel_init=_small, rngs=rngs)

    def project(self, vectors: Float[Array, "N F"], rngs: nnx.Rngs | None = None) -> Float[Array, "N D"]:
        if self.whitening is not None:
            vectors = self.whitening(vectors)
        vectors = dropout(vectors, self.dropout, rngs)
        return self.linear(vectors) + self.down(jax.nn.gelu(self.up(vectors)))

    def encode(self, rows: Array, width: int | None = None) -> Float[Array, "K F"]:
        """The language model's vectors, computed now, of these rows' texts [K], which have at most ``width`` tokens."""
        assert self.ids is not None and self.mask is not None
        ids, mask = self.ids[...][rows, :width], self.mask[...][rows, :width]
        if self.states is None or self.starts is None:
            return self.encoder(ids, mask)
        places = self.starts[...][rows][:, None] + jnp.arange(ids.shape[1])[None]
        return self.encoder(ids, mask, states=self.states[...][jnp.minimum(places, len(self.states[...]) - 1)])

    def all(self, live: dict[int, Array] | None, rngs: nnx.Rngs | None) -> Float[Array, "N D"]:
        """Every text's vector; ``live``: width -> int32 [K], padded with PAD, are the rows to encode now."""
        vectors = self.vectors[...]
        if self.encoder is not None and live is not None:
            for width, rows in live.items():
                fresh = self.encode(jnp.maximum(rows, 0), width)
                vectors = vectors.at[jnp.where(rows == PAD, len(vectors), rows)].set(fresh, mode="drop")
        return self.project(vectors, rngs)

    def some(self, rows: Array, rngs: nnx.Rngs | None) -> Float[Array, "B D"]:
        """The vectors of these rows, [B] -> [B, D], encoded now in training."""
        live = self.encoder is not None and rngs is not None
        return self.project(self.encode(rows) if live else self.vectors[...][rows], rngs)


class BiEncoder(Scorer):
    """Context vector · item vector + item bias over the catalogue; or class logits of a user-item pair.

    encoder: the language model when it is trained (``teacher.train`` not 'head'), else None: then the
    texts' vectors were computed once and for all. While it is trained, the items of the batch
    (``batch['live_items']``) are encoded in the step and the rest of the catalogue enters the softmax with the
    vectors of the last refresh: the softmax is over the whole catalogue at the cost of a batch (``spec.softmax``).

    With trends an item's vector is followed by its K trend features at the moment of the batch, a context's by the K
    weights it gives them; what all contexts share, a weighting of the trends that depends on the item, is the bias. The
    scores stay a dot product and a bias, and items that a context has seen do not compete in training, as they never do
    in a ranking. A batch without a moment is at the end of training.
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
        self.text = TextTower(items, spec, encoder, rngs=rngs) if "text" in features and items is not None else None
        self.written = TextTower(contexts, spec, encoder, rngs=rngs) if contexts is not None else None
        self.transformer = (
            CausalTransformer(spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout, rngs=rngs)
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

    def items(self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None) -> tuple[Array, Array]:
        batch = batch or {}
        if self.hard_negatives and "live_items" in batch:
            batch = batch | {"live_items": batch["live_items"] | {None: self._hardest(batch)}}
        vectors = jnp.zeros(())
        if self.text is not None:
            vectors = self.text.all(batch.get("live_items"), rngs)
        if self.id is not None:
            vectors = vectors + dropout(self.id[...], self.dropout, rngs)
        correction = self._log_q(batch) if self.softmax != "full" and "live_items" in batch else None
        if self.trends is None:
            bias = self.bias[...]
            return vectors, bias if correction is None else bias - correction
        moment = batch["snapshot"][0] if "snapshot" in batch else -1
        features = self.trends[...][moment]
        by_item = jnp.sum(features * (vectors @ self.trend_of_item[...]), axis=1)
        bias = features @ self.trend[...] + by_item + self.bias[...]
        return jnp.concatenate([vectors, features], axis=1), bias if correction is None else bias - correction

    def _hardest(self, batch: Batch) -> Array:
        """For every row the ``hard_negatives`` items that score highest now and are neither read nor wanted, flat."""
        plain = {key: value for key, value in batch.items() if key != "live_items"}
        vectors, bias = self.items(batch=plain)
        scores = Factors(self._contexts(plain, vectors, None, True)[:, -1], vectors, bias).dense()
        known = jnp.concatenate([batch["history"], batch["targets"][:, -1]], axis=1)
        rows = jnp.arange(len(scores))[:, None]
        scores = scores.at[rows, jnp.where(known == PAD, scores.shape[1], known)].set(-jnp.inf, mode="drop")
        return jax.lax.stop_gradient(jax.lax.top_k(scores, self.hard_negatives)[1].ravel())

    def _log_q(self, batch: Batch) -> Float[Array, " I"]:
        """The log of how likely each item was to be encoded in this step, to be taken off its score; a huge number for
        those that were not. Of m interactions and n drawn items one is item i with probability 1 - (1 - p_i)^(m + n).

        Source: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019.
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

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P D"]:
        return self._contexts(batch, vectors, rngs, self.positions == "last")

    def context(self, batch: Batch, vectors: Array) -> Float[Array, "B D"]:
        return self._contexts(batch, vectors, None, True)[:, -1]

    def _contexts(self, batch: Batch, vectors: Array, rngs: nnx.Rngs | None, last: bool) -> Float[Array, "B P D"]:
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
        return jnp.concatenate([contexts * self.gain[...], contexts @ self.trend_of_context[...]], axis=-1)

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        factors = super().factors(batch, rngs=rngs)
        return factors if self.trends is None else factors._replace(excluded=batch["history"][:, None])

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        if "item" not in batch:
            return super().logits(batch, rngs=rngs)
        vectors, _ = self.items(rngs=rngs, batch=batch)
        context, item = self.contexts(batch, vectors, rngs=rngs)[:, -1], vectors[batch["item"]]
        pair = jnp.concatenate([context, item, context * item], axis=-1)
        return (self.head(pair) + self.item_class[...][batch["item"]])[:, None]


class ItemTower(Scorer):
    """A language model and a text tower's head, which learn the vectors that another model has for its items
    (``kd_jax/adapt.py``)."""

    positions = "last"
    factorised = False

    def __init__(self, head: TextTower, encoder: Any):
        super().__init__(None)
        self.head, self.encoder = head, encoder

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B 1 D"]:
        """The vectors of the batch's texts, read now: what the objective compares, in place of logits."""
        vectors = self.encoder(batch["ids"], batch["mask"], states=batch.get("states"))
        return self.head.project(vectors, rngs)[:, None]
