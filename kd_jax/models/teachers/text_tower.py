"""The text tower: maps the language model's vectors of texts to vectors of the teacher's width."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD, Batch
from kd_jax.models.language.encoding import Texts
from kd_jax.models.layers import dropout
from kd_jax.models.scorer import Frozen, Scorer
from kd_jax.models.teachers.spec import TeacherSpec


class Whitening(nnx.Module):
    """A frozen linear map, fitted to text vectors: centring, PCA, and scaling by std ** -power.

    components: of the PCA. Most of the variance of sentence encoders is in a few directions that
    all film titles share. Half whitening (power 0.5) balances the directions without amplifying the
    noise in the last ones.
    """

    def __init__(self, texts: Texts, components: int, power: float):
        mean, values, basis = texts.principal
        order = np.argsort(values)[::-1][:components]
        std = np.sqrt(np.maximum(values[order], 1e-8))
        scale = std**-power
        scale /= np.sqrt(np.mean((std * scale) ** 2))  # mean square 1 per component for any power
        self.mean = Frozen(jnp.asarray(mean, jnp.float32))
        self.map = Frozen(jnp.asarray(basis[:, order] * scale[None], jnp.float32))

    def __call__(self, vectors: Float[Array, "N F"]) -> Float[Array, "N K"]:
        return (vectors - self.mean[...][None]) @ self.map[...]


# Gives item vectors of about 0.3 per component.
SMALL_INIT = nnx.initializers.variance_scaling(0.1, "fan_in", "normal")


class TextTower(nnx.Module):
    """Maps texts to vectors [D]: language model, whitening, and a linear map plus an MLP.

    Live rows are encoded in the train step by ``encoder``, with gradient; the other rows have their
    stored vectors, which ``LanguageModel.refresh`` updates. encoder: None if it is frozen.
    """

    def __init__(self, texts: Texts, spec: TeacherSpec, encoder: Any, *, rngs: nnx.Rngs):
        self.encoder = encoder
        self.dropout = spec.dropout
        self.vectors = Frozen(jnp.asarray(texts.vectors))
        self.ids = Frozen(jnp.asarray(texts.ids)) if encoder is not None else None
        self.mask = Frozen(jnp.asarray(texts.mask)) if encoder is not None else None
        self.states = Frozen(jnp.asarray(texts.states)) if texts.states is not None else None
        self.starts = Frozen(jnp.asarray(texts.starts)) if texts.starts is not None else None
        whitening = None
        width = texts.vectors.shape[1]
        if spec.components:
            whitening = Whitening(texts, spec.components, spec.whitening)
            width = whitening.map.shape[1]
        self.whitening = whitening
        self.linear = nnx.Linear(width, spec.dim, kernel_init=SMALL_INIT, rngs=rngs)
        hidden_init = nnx.initializers.normal(width**-0.5)
        self.up = nnx.Linear(width, spec.hidden, kernel_init=hidden_init, rngs=rngs)
        self.down = nnx.Linear(spec.hidden, spec.dim, kernel_init=SMALL_INIT, rngs=rngs)

    def project(
        self, vectors: Float[Array, "N F"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "N D"]:
        """Maps vectors of the language model to the teacher's width; rngs: for dropout."""
        if self.whitening is not None:
            vectors = self.whitening(vectors)
        vectors = dropout(vectors, self.dropout, rngs)
        return self.linear(vectors) + self.down(jax.nn.gelu(self.up(vectors)))

    def encode(self, rows: Array, width: int | None = None) -> Float[Array, "K F"]:
        """The vectors of the texts ``rows`` [K], computed by the language model.

        width: the largest number of tokens of these texts; None: that of all texts.
        """
        assert self.ids is not None and self.mask is not None
        ids = self.ids[...][rows, :width]
        mask = self.mask[...][rows, :width]
        if self.states is None or self.starts is None:
            return self.encoder(ids, mask)
        tokens = self.starts[...][rows][:, None] + jnp.arange(ids.shape[1])[None]
        states = self.states[...][jnp.minimum(tokens, len(self.states[...]) - 1)]
        return self.encoder(ids, mask, states=states)

    def all(self, live: dict[int, Array] | None, rngs: nnx.Rngs | None) -> Float[Array, "N D"]:
        """The vectors of all texts.

        live: width -> rows to encode in this step, int32 [K], padded with PAD; None: none.
        """
        vectors = self.vectors[...]
        if self.encoder is not None and live is not None:
            for width, rows in live.items():
                encoded = self.encode(jnp.maximum(rows, 0), width)
                index = jnp.where(rows == PAD, len(vectors), rows)
                vectors = vectors.at[index].set(encoded, mode="drop")
        return self.project(vectors, rngs)

    def some(self, rows: Array, rngs: nnx.Rngs | None) -> Float[Array, "B D"]:
        """The vectors of the texts ``rows`` [B]; in training they are encoded in the step."""
        live = self.encoder is not None and rngs is not None
        return self.project(self.encode(rows) if live else self.vectors[...][rows], rngs)


class ItemTower(Scorer):
    """A language model and a text tower that are trained to predict the item vectors of a model.

    See ``experiment/adapt.py``.
    """

    example_kind = "last"

    def __init__(self, head: TextTower, encoder: Any):
        super().__init__(None)
        self.head = head
        self.encoder = encoder

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        """The vectors of the batch's texts as contexts [B, 1, D], without any items."""
        vectors = self.encoder(batch["ids"], batch["mask"], states=batch.get("states"))
        contexts = self.head.project(vectors, rngs)[:, None]
        return Factors(contexts, jnp.zeros((0, contexts.shape[-1])), jnp.zeros(0))
