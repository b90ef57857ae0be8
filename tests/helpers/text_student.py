"""The smallest student that reads item texts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx

from kd_jax.models.layers import dropout
from kd_jax.models.scorer import Frozen
from kd_jax.models.students.base import (
    ITEM_TEXT,
    Student,
    UserSpec,
    item_table,
    rank_only,
    user_table,
)

NAME = "linear_text"


@dataclasses.dataclass(frozen=True)
class LinearTextSpec(UserSpec):
    def __post_init__(self):
        super().__post_init__()
        rank_only(self)


class LinearText(Student):
    """User vector · a linear map of the item's text vector, or an item table without text."""

    spec = LinearTextSpec
    inputs = (ITEM_TEXT,)
    reads_history = False
    tables = {"user": "user"}

    def __init__(self, spec, inputs, *, rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.dropout = spec.dropout
        self.user = user_table(spec)
        self.bias = nnx.Param(jnp.asarray(spec.item_bias))
        text = inputs.get(ITEM_TEXT)
        self.text = None if text is None else Frozen(jnp.asarray(text))
        if text is None:
            self.item = item_table(spec.num_items, spec, rngs, inputs)
        else:
            self.map = nnx.Linear(text.shape[1], spec.dim, use_bias=False, rngs=rngs)

    def items(self, *, rngs=None, batch=None):
        return self.item[...] if self.text is None else self.map(self.text[...]), self.bias[...]

    def contexts(self, batch, vectors, *, rngs=None):
        return dropout(self.user[...][batch["user"]], self.dropout, rngs)[:, None]
