"""SASRec."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.core.errors import InputError
from kd_jax.core.types import Array, Batch
from kd_jax.models.layers import CausalTransformer
from kd_jax.models.scorer import Scorer
from kd_jax.models.students.base import StudentSpec, item_table


class SASRec(Scorer):
    """A causal Transformer over item embeddings, tied with the output. Source: Kang and McAuley,
    ICDM 2018, with the full softmax of Klenitskiy and Vasilev, RecSys 2023, in place of the sampled
    binary loss.
    """

    positions = "all"
    tables = {"item": "item", "bias": "item"}

    def __init__(self, spec: StudentSpec, *, rngs: nnx.Rngs):
        super().__init__(spec.warm)
        if spec.num_classes:
            raise InputError("student.name='sasrec' ranks only; for task='rate' use 'mf' or 'mlp'")
        if spec.dim % spec.heads:
            raise InputError(
                f"student.sasrec.dim={spec.dim} is no multiple of"
                f" student.sasrec.heads={spec.heads}; change one of them"
            )
        self.item = item_table(spec.num_items, spec, rngs)
        self.bias = nnx.Param(jnp.asarray(spec.bias))
        self.transformer = CausalTransformer(
            *(spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout),
            widen=1,
            activation=jax.nn.relu,
            rngs=rngs,
        )

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self._read(batch["history"], vectors, rngs=rngs)

    def context(self, batch: Batch, vectors: Array) -> Array:
        return self._read(batch["history"], vectors, last=True)[:, 0]

    def _read(self, history: Array, vectors: Array, **how: Any) -> Array:
        return self.transformer(
            vectors[jnp.maximum(history, 0)] * vectors.shape[1] ** 0.5, history, **how
        )

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        return self.item[...], self.bias[...]
