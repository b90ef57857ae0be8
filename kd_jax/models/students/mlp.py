"""A multilayer perceptron over user and item embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.types import Array, Batch, PyTree
from kd_jax.models.layers import dropout
from kd_jax.models.students.base import (
    Inputs,
    Student,
    UserSpec,
    at_least_one,
    item_table,
    user_table,
)
from kd_jax.runtime.store import Hidden


@dataclasses.dataclass(frozen=True)
class MLPSpec(UserSpec):
    hidden: int = 32  # width of the hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "hidden")


class MLP(Student):
    """An MLP with one hidden layer over the concatenated user and item vectors.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, equation 10, with one hidden
    layer.

    The first layer is split into a user half and an item half, so a catalogue is scored without
    building the concatenation for every pair; items go through the hidden layer in chunks, [B,
    chunk, hidden] at a time.
    """

    spec = MLPSpec
    factorised = False
    reads_history = False
    tables = {"user": "user", "item": "item", "bias": "item"}
    chunk = 1024

    def __init__(self, spec: MLPSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.dropout = spec.dropout
        self.user = user_table(spec)
        self.item = item_table(spec.num_items, spec, rngs, inputs)
        self.user_in = nnx.Linear(spec.dim, spec.hidden, rngs=rngs)
        self.item_in = nnx.Linear(spec.dim, spec.hidden, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(spec.hidden, max(1, spec.num_classes), rngs=rngs)
        if not spec.num_classes:
            self.bias = nnx.Param(jnp.asarray(spec.item_bias))

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Array:
        user = self.user_in(dropout(self.user[...][batch["user"]], self.dropout, rngs))
        if "item" in batch:
            item = self.item_in(dropout(self.item[...][batch["item"]], self.dropout, rngs))
            return self.out(jax.nn.relu(user + item))[:, None]
        return self._all(user, self.item_in(dropout(self.item[...], self.dropout, rngs)))[:, None]

    def runtime_hidden(self) -> Hidden:
        arrays: Any = (
            *(self.user_in.kernel, self.user_in.bias, self.item_in.kernel),
            *(self.out.kernel, self.out.bias),
        )
        return Hidden(*(np.asarray(array[...]) for array in arrays))

    def catalogue(self) -> PyTree:
        return self.item_in(self.item[...])

    def scores(self, batch: Batch, catalogue: PyTree) -> Array:
        return self._all(self.user_in(self.user[...][batch["user"]]), catalogue)

    def _all(self, user: Array, hidden: Array) -> Array:
        count = hidden.shape[0]
        chunk = min(self.chunk, count)
        hidden = jnp.pad(hidden, ((0, -count % chunk), (0, 0))).reshape(-1, chunk, hidden.shape[-1])

        # recompute the [B, chunk, hidden] activations in the backward pass instead of keeping them
        @jax.checkpoint
        def score(part: Array) -> Array:
            return self.out(jax.nn.relu(user[:, None] + part[None]))[..., 0]

        scores = jnp.moveaxis(jax.lax.map(score, hidden), 0, 1).reshape(user.shape[0], -1)
        return scores[:, :count] + self.bias[...][None]
