"""Fold-in: fits the embedding of a new user to their history."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kd_jax.core.types import Batch, Params
from kd_jax.distillation.objective import StepInputs, mean_loss
from kd_jax.distillation.term import Term
from kd_jax.losses.softmax import CrossEntropy
from kd_jax.models.scorer import Scorer

FOLD_IN_STEPS = 100
FOLD_IN_RATE = 0.05
FOLD_IN_DECAY = 1e-2  # of the L2 penalty
FOLD_IN_RECENCY = 5.0  # interactions: age at which a history item counts 1/e
CLICKS = (Term("clicks", CrossEntropy()),)


def fold_in(model: Scorer, batch: Batch) -> Scorer:
    """``model`` with a user table of one row, which is fitted to the user of ``batch``.

    The row minimises the cross-entropy of the user's items, weighted by recency, with a small L2
    penalty. All other parameters are unchanged.
    """
    graphdef, user, *others = nnx.split(model, nnx.PathContains("user"), ...)
    rest: Any = others[0]
    start = jax.tree.map(lambda table: jnp.zeros((1, table.shape[1]), table.dtype), user)
    tx = optax.adam(FOLD_IN_RATE)

    @jax.jit
    def fit(start: Params, rest: Params) -> Params:
        def loss(row: Params) -> jax.Array:
            merged: Any = nnx.merge(graphdef, row, rest)
            fit, _ = mean_loss(CLICKS, merged.logits(batch), StepInputs(batch))
            return fit + FOLD_IN_DECAY * optax.tree.norm(row, squared=True)

        def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
            row, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss)(row), opt_state)
            return (optax.apply_updates(row, updates), opt_state), None

        return jax.lax.scan(step, (start, tx.init(start)), None, FOLD_IN_STEPS)[0][0]

    return nnx.merge(graphdef, fit(start, rest), rest)
