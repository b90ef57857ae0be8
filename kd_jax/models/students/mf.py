"""Matrix factorisation."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from kd_jax.core.types import Array, Batch
from kd_jax.models.layers import dropout
from kd_jax.models.students.base import Inputs, Student, UserSpec, item_table, user_table


class MatrixFactorization(Student):
    """Matrix factorisation: user vector · item vector + item bias.

    Source: Koren, Bell, Volinsky, IEEE Computer 2009, equation 5.

    For ``rate`` the elementwise product of the two vectors is mapped to class logits, so that every
    class has its own weighting of the factors, plus a bias per item and class and per user and
    class.
    """

    spec = UserSpec
    reads_history = False
    tables = {
        "user": "user",
        "user_class": "user",
        "item": "item",
        "item_class": "item",
        "bias": "item",
    }

    def __init__(self, spec: UserSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.dropout = spec.dropout
        self.user = user_table(spec)
        self.item = item_table(spec.num_items, spec, rngs, inputs)
        if spec.num_classes:
            self.item_class = nnx.Param(jnp.zeros((spec.num_items, spec.num_classes)))
            self.user_class = nnx.Param(jnp.zeros((spec.num_users, spec.num_classes)))
            self.head = nnx.Linear(spec.dim, spec.num_classes, rngs=rngs)
        else:
            self.bias = nnx.Param(jnp.asarray(spec.item_bias))

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return dropout(self.user[...][batch["user"]], self.dropout, rngs)[:, None]

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        return dropout(self.item[...], self.dropout, rngs), self.bias[...]

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Array:
        if "item" not in batch:
            return super().logits(batch, rngs=rngs)
        user = dropout(self.user[...][batch["user"]], self.dropout, rngs)
        item = dropout(self.item[...][batch["item"]], self.dropout, rngs)
        bias = self.item_class[...][batch["item"]] + self.user_class[...][batch["user"]]
        return (self.head(user * item) + bias)[:, None]
