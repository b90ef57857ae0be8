"""Terms by the names of their losses, and their mean loss with everything at its default."""

import functools

import jax
import jax.numpy as jnp

from kd_jax.distillation.objective import StepInputs, mean_loss
from kd_jax.distillation.schedule import Schedule
from kd_jax.distillation.term import OWN, Term
from kd_jax.losses import LOSSES


def term(loss, weight=1.0, temperature=1.0, *, name=None, teacher=OWN, hyper=None, **fields):
    """name: the loss's, with that of the teacher behind it where that is not the run's own."""
    return Term(
        name or (f"{loss}:{teacher}" if teacher else loss),
        LOSSES[loss](**(hyper or {})),
        Schedule.of(weight, "weight"),
        Schedule.of(temperature, "temperature", positive=True),
        teacher=teacher,
        **fields,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="engine")
def loss_of(
    objective, scores, batch, teachers=None, warm=None, progress=0.0, draws=None, engine=None,
    auxiliary=None, items=None, key=None,
):  # fmt: skip
    """``mean_loss`` with all inputs by name."""
    inputs = StepInputs(batch, teachers or {}, warm, jnp.asarray(progress), draws, items or {}, key)
    return mean_loss(objective, scores, inputs, auxiliary, engine)
