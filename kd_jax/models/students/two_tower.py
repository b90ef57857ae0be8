"""A two-tower student that reads item texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.core.types import Batch
from kd_jax.models.layers import dropout
from kd_jax.models.scorer import Frozen
from kd_jax.models.students.base import (
    ITEM_TEXT,
    HistorySpec,
    Inputs,
    Student,
    at_least_one,
    item_table,
)
from kd_jax.runtime.contexts import MeanTower


@dataclasses.dataclass(frozen=True)
class TwoTowerSpec(HistorySpec):
    hidden: int = 128  # width of the hidden layer of each tower
    offset: bool = False  # whether every item has a learned vector beside that of its text

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "hidden")
        if self.vectors != "random":
            raise InputError(
                f"vectors={self.vectors!r}: its item tower reads the text itself; set it to"
                " 'random'"
            )


class Tower(nnx.Module):
    """A linear map with a residual MLP of one hidden layer."""

    def __init__(self, width: int, hidden: int, out: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, out, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, out, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... D"]:
        return self.linear(x) + self.down(jax.nn.gelu(self.up(x)))


def _standardised(text: Float[Array, "I F"]) -> Float[Array, "I F"]:
    """Centred, and divided by the standard deviation over all numbers."""
    centred = text - text.mean(0, keepdims=True)
    return centred / (jnp.sqrt(jnp.mean(centred**2)) + 1e-8)


class TwoTower(Student):
    """Two towers: one over the texts of items, and one over the user's history.

    The item tower reads the language model's vector of an item's text; without item texts it is a
    table of item IDs. The user tower reads the mean of the history's item vectors.

    The text vectors are centred and scaled to unit variance, and fixed; the towers and the item
    biases are trained. With ``offset`` an item's vector is that of the tower plus one of its own,
    which starts at 0 (and stays there for an item without a train interaction, in a softmax over
    'warm' items), as in the embedding distillation of Cui et al., "Distillation Matters", RecSys
    2024. Source of the towers: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus
    Item Recommendations", RecSys 2019, section 3; the mean of the history as in Covington, Adams
    and Sargin, RecSys 2016, section 3.2.
    """

    spec = TwoTowerSpec
    inputs = (ITEM_TEXT,)
    example_kind = "last"
    rows = {"id": "item", "offset": "item", "bias": "item"}

    def __init__(self, spec: TwoTowerSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.dropout = spec.dropout
        self.bias = nnx.Param(jnp.asarray(spec.item_bias))
        self.user = Tower(spec.dim, spec.hidden, spec.dim, rngs=rngs)
        text = inputs.get(ITEM_TEXT)
        self.id = item_table(spec.num_items, spec, rngs, inputs) if text is None else None
        self.text = None if text is None else Frozen(_standardised(jnp.asarray(text, jnp.float32)))
        width = 0 if text is None else text.shape[1]
        self.item = Tower(width, spec.hidden, spec.dim, rngs=rngs) if width else None
        own = spec.offset and text is not None
        self.offset = nnx.Param(jnp.zeros((spec.num_items, spec.dim))) if own else None
        self.length = spec.history

    def runtime_context(self) -> MeanTower:
        arrays: dict[str, Any] = {
            f"{layer}_{part}": np.asarray(getattr(getattr(self.user, layer), part)[...])
            for layer in ("linear", "up", "down")
            for part in ("kernel", "bias")
        }
        return MeanTower(**arrays, length=self.length)

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        if self.id is not None:
            vectors = self.id[...]
        else:
            assert self.item is not None and self.text is not None
            vectors = self.item(dropout(self.text[...], self.dropout, rngs))
            if self.offset is not None:
                vectors += self.offset[...]
        return vectors, self.bias[...]

    def contexts(
        self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B 1 D"]:
        history = batch["history"][:, -self.length :]
        known = (history >= 0)[..., None]
        total = jnp.sum(vectors[jnp.maximum(history, 0)] * known, axis=1)
        mean = total / jnp.maximum(known.sum(axis=1), 1)
        return self.user(dropout(mean, self.dropout, rngs))[:, None]
