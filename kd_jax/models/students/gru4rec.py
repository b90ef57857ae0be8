"""GRU4Rec."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from kd_jax.core.types import PAD, Array, Batch
from kd_jax.models.layers import dropout
from kd_jax.models.students.base import Inputs, SequenceSpec, SequenceStudent, at_least_one
from kd_jax.runtime.contexts import Recurrent


@dataclasses.dataclass(frozen=True)
class GRU4RecSpec(SequenceSpec):
    hidden: int = 64  # numbers of the state

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "hidden")


class GRU4Rec(SequenceStudent):
    """A layer of gated recurrent units over item embeddings, which are tied with the output.

    The context after an item is a linear map of the state after it. Source: Hidasi et al.,
    "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016; the cell is that of
    ``nnx.GRUCell``. Their ranking losses (the same, and CIKM 2018) are replaced by the full
    softmax.
    """

    spec = GRU4RecSpec

    def __init__(self, spec: GRU4RecSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.dropout = spec.dropout
        self.length = spec.history
        self.cell = nnx.GRUCell(spec.dim, spec.hidden, rngs=rngs)
        self.out = nnx.Linear(spec.hidden, spec.dim, rngs=rngs)

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self.out(dropout(self._states(batch, vectors, rngs), self.dropout, rngs))

    def context(self, batch: Batch, vectors: Array) -> Array:
        newest = {"history": batch["history"][:, -self.length :]}
        return self.out(self._states(newest, vectors, None)[:, -1])

    def _states(self, batch: Batch, vectors: Array, rngs: nnx.Rngs | None) -> Float[Array, "B L H"]:
        """The state after every item; it is 0 before the first one of a history or window."""
        history = batch["history"]
        known = history != PAD
        after = jnp.roll(known, 1, axis=1).at[:, 0].set(False)  # whether an item came before
        if "segment" in batch:
            after &= batch["segment"] == jnp.roll(batch["segment"], 1, axis=1)
        x = vectors[jnp.maximum(history, 0)] * vectors.shape[1] ** 0.5
        # The input's products of all positions at once; only those of the state wait for another.
        given = self.cell.dense_i(dropout(x, self.dropout, rngs))

        def step(state: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            given, after = here
            state = state * after[:, None]
            reset, update, new = jnp.split(given, 3, axis=-1)
            by_state = jnp.split(self.cell.dense_h(state), 3, axis=-1)
            reset = jax.nn.sigmoid(reset + by_state[0])
            update = jax.nn.sigmoid(update + by_state[1])
            new = jnp.tanh(new + reset * by_state[2])
            state = (1 - update) * new + update * state
            return state, state

        first = jnp.zeros((len(history), self.cell.hidden_features), given.dtype)
        _, states = jax.lax.scan(step, first, (given.swapaxes(0, 1), after.T))
        return states.swapaxes(0, 1) * known[..., None]

    def runtime_context(self) -> Recurrent:
        def read(param: Any) -> np.ndarray:
            return np.asarray(param[...])

        return Recurrent(
            read(self.cell.dense_i.kernel),
            read(self.cell.dense_i.bias),
            read(self.cell.dense_h.kernel),
            read(self.out.kernel),
            read(self.out.bias),
            self.length,
        )
