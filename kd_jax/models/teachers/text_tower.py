"""From texts to vectors of the width of the teacher."""

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
    """A frozen linear map fitted to text vectors: centre, PCA to ``components``, scale by std **
    -power.

    Sentence encoders put most of their variance into a few directions that say 'this is a film
    title'. Half whitening (power 0.5) evens the directions out without blowing up the noise of the
    last ones.
    """

    def __init__(self, vectors: np.ndarray, components: int, power: float):
        centred = vectors - vectors.mean(0)
        values, basis = np.linalg.eigh(centred.T @ centred / len(vectors))
        order = np.argsort(values)[::-1][:components]
        std = np.sqrt(np.maximum(values[order], 1e-8))
        scale = std**-power
        scale /= np.sqrt(
            np.mean((std * scale) ** 2)
        )  # unit mean square per component, whatever the power
        self.mean = Frozen(jnp.asarray(vectors.mean(0), jnp.float32))
        self.map = Frozen(jnp.asarray(basis[:, order] * scale[None], jnp.float32))

    def __call__(self, vectors: Float[Array, "N F"]) -> Float[Array, "N K"]:
        return (vectors - self.mean[...][None]) @ self.map[...]


SMALL_INIT = nnx.initializers.variance_scaling(
    0.1, "fan_in", "normal"
)  # item vectors of length about 0.3 per component


class TextTower(nnx.Module):
    """Texts -> vectors of the teacher's width: (language model) -> whitening -> linear plus
    residual MLP.

    ``live`` rows are encoded by ``encoder`` now, with gradient; the others enter with the vectors
    they were last given (``refresh``).
    """

    def __init__(self, texts: Texts, spec: TeacherSpec, encoder: Any, *, rngs: nnx.Rngs):
        self.encoder, self.dropout = encoder, spec.dropout
        self.vectors = Frozen(jnp.asarray(texts.vectors))
        self.ids = Frozen(jnp.asarray(texts.ids)) if encoder is not None else None
        self.mask = Frozen(jnp.asarray(texts.mask)) if encoder is not None else None
        self.states = Frozen(jnp.asarray(texts.states)) if texts.states is not None else None
        self.starts = Frozen(jnp.asarray(texts.starts)) if texts.starts is not None else None
        self.whitening = (
            Whitening(texts.vectors, spec.components, spec.whitening) if spec.components else None
        )
        width = (
            self.whitening.map.shape[1] if self.whitening is not None else texts.vectors.shape[1]
        )
        self.linear = nnx.Linear(width, spec.dim, kernel_init=SMALL_INIT, rngs=rngs)
        self.up = nnx.Linear(
            width, spec.hidden, kernel_init=nnx.initializers.normal(width**-0.5), rngs=rngs
        )
        self.down = nnx.Linear(spec.hidden, spec.dim, kernel_init=SMALL_INIT, rngs=rngs)

    def project(
        self, vectors: Float[Array, "N F"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "N D"]:
        if self.whitening is not None:
            vectors = self.whitening(vectors)
        vectors = dropout(vectors, self.dropout, rngs)
        return self.linear(vectors) + self.down(jax.nn.gelu(self.up(vectors)))

    def encode(self, rows: Array, width: int | None = None) -> Float[Array, "K F"]:
        """The language model's vectors, computed now, of these rows' texts [K], which have at most
        ``width`` tokens.
        """
        assert self.ids is not None and self.mask is not None
        ids, mask = self.ids[...][rows, :width], self.mask[...][rows, :width]
        if self.states is None or self.starts is None:
            return self.encoder(ids, mask)
        places = self.starts[...][rows][:, None] + jnp.arange(ids.shape[1])[None]
        return self.encoder(
            ids, mask, states=self.states[...][jnp.minimum(places, len(self.states[...]) - 1)]
        )

    def all(self, live: dict[int, Array] | None, rngs: nnx.Rngs | None) -> Float[Array, "N D"]:
        """Every text's vector; ``live``: width -> int32 [K], padded with PAD, are the rows to
        encode now.
        """
        vectors = self.vectors[...]
        if self.encoder is not None and live is not None:
            for width, rows in live.items():
                fresh = self.encode(jnp.maximum(rows, 0), width)
                vectors = vectors.at[jnp.where(rows == PAD, len(vectors), rows)].set(
                    fresh, mode="drop"
                )
        return self.project(vectors, rngs)

    def some(self, rows: Array, rngs: nnx.Rngs | None) -> Float[Array, "B D"]:
        """The vectors of these rows, [B] -> [B, D], encoded now in training."""
        live = self.encoder is not None and rngs is not None
        return self.project(self.encode(rows) if live else self.vectors[...][rows], rngs)


class ItemTower(Scorer):
    """A language model and a text tower's head, which learn the vectors that another model has for
    its items (``kd_jax/adapt.py``).
    """

    positions = "last"

    def __init__(self, head: TextTower, encoder: Any):
        super().__init__(None)
        self.head, self.encoder = head, encoder

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        """The vectors of the batch's texts, encoded now, as contexts [B, 1, D] of no items."""
        vectors = self.encoder(batch["ids"], batch["mask"], states=batch.get("states"))
        contexts = self.head.project(vectors, rngs)[:, None]
        return Factors(contexts, jnp.zeros((0, contexts.shape[-1])), jnp.zeros(0))
