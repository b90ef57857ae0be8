"""The objective and the one train step.

An objective is a weighted sum of terms. A term that compares with a teacher needs the teacher's logits, and
nothing else distinguishes the three uses of the step: teacher fine-tuning and the plain student have a hard
cross-entropy term only, the distilled student adds terms that read the teacher. The teacher is an input of the
step, never optimised by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kd_jax import losses
from kd_jax.catalogue import Factors, Loss, Rows, Run, mean_losses
from kd_jax.errors import InputError, nearest
from kd_jax.types import Array, Batch, Params, PyTree

SCHEDULES = ("constant", "linear", "cosine")
TERMS = ("ce", "soft_ce", "kl")


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight · schedule(progress) · loss``.

    name: 'ce' (clicks), 'soft_ce' or 'kl' (teacher). temperature: of the two soft losses. schedule: of the
    weight over training, 'constant', or falling to zero by 'linear' or 'cosine'. items: softmax over 'all' items
    of the catalogue or over the 'warm' ones, those with at least one training interaction.
    """

    name: str
    weight: float = 1.0
    temperature: float = 1.0
    schedule: str = "constant"
    items: str = "all"

    def __post_init__(self) -> None:
        for value, known, field in (
            (self.name, TERMS, "name"),
            (self.schedule, SCHEDULES, "schedule"),
            (self.items, ("all", "warm"), "items"),
        ):
            if value not in known:
                raise InputError(f"distill.terms: {field} {value!r} is unknown{nearest(value, known)}")
        if not isinstance(self.weight, Real) or not 0 <= self.weight < math.inf:
            raise InputError(
                f"distill.terms: weight of {self.name!r} is {self.weight!r}; it must be a number from 0 up"
            )
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise InputError(
                f"distill.terms: temperature of {self.name!r} is {self.temperature!r}; it must be positive"
            )

    @property
    def needs_teacher(self) -> bool:
        return self.name != "ce"

    def weight_at(self, progress: Array) -> Array:
        """The weight at ``progress`` in [0, 1] of training."""
        if self.schedule == "linear":
            return self.weight * (1.0 - progress)
        if self.schedule == "cosine":
            return self.weight * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return self.weight * jnp.ones_like(progress)

    def per_position(self, logits: Array, batch: Batch, teacher_logits: Array | None, warm: Array | None) -> Array:
        """Unweighted loss of each predicted position, f32 [B, P]."""
        where = warm if self.items == "warm" else None
        if self.name == "ce":
            return losses.cross_entropy(logits, batch["targets"], batch["target_weights"], where)
        assert teacher_logits is not None
        loss = {"kl": losses.kl, "soft_ce": losses.soft_cross_entropy}[self.name]
        return loss(teacher_logits, logits, self.temperature, where)


Objective = tuple[Term, ...]


class TrainState(NamedTuple):
    """All that training changes. ``key`` is raw key data (uint32 [2]); every step folds its own number into it."""

    step: Array
    params: Params
    opt_state: PyTree
    key: Array


def mean_loss(
    objective: Objective,
    scores: Factors | Array,
    batch: Batch,
    teacher_scores: Factors | Array | None,
    warm: Array | None,
    progress: Array,
    run: Run | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the objective, and of each of its terms.

    scores and teacher_scores: [B, P, C], or the factors of scores of the catalogue: no [B, P, I] array is made then.
    warm: bool [C] or None. progress: scalar in [0, 1]. run: see ``catalogue.mean_losses``.
    """
    weights = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    coefficients = jnp.stack([term.weight_at(progress) for term in objective])
    if isinstance(scores, Factors):
        assert teacher_scores is None or isinstance(teacher_scores, Factors)
        rows = Rows(_flat(batch["targets"]), _flat(batch["target_weights"]), weights.reshape(-1))
        losses_ = tuple(Loss(t.name, float(t.temperature), t.items == "warm" and warm is not None) for t in objective)
        teacher = None if teacher_scores is None else _flat_factors(teacher_scores)
        total, means = mean_losses(losses_, coefficients, _flat_factors(scores), rows, teacher, warm, run)
    else:
        soft = teacher_scores.dense() if isinstance(teacher_scores, Factors) else teacher_scores
        means = jnp.stack([jnp.sum(t.per_position(scores, batch, soft, warm) * weights) for t in objective])
        total = jnp.sum(coefficients * means)
    return total, {term.name: mean for term, mean in zip(objective, means, strict=True)}


def _flat(x: Array) -> Array:
    """[B, P, N] -> [B * P, N]."""
    return x.reshape(-1, x.shape[-1])


def _flat_factors(factors: Factors) -> Factors:
    excluded = None if factors.excluded is None else _flat(factors.excluded)
    return factors._replace(contexts=_flat(factors.contexts), excluded=excluded)


def train_step(
    state: TrainState,
    batch: Batch,
    constants: PyTree,
    teacher: PyTree,
    *,
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: optax.GradientTransformation,
    total_steps: int,
    teacher_scores: Callable[[PyTree, Batch], Factors | Array] | None = None,
    run: Run | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step of any model: teacher fine-tuning, plain student and distilled student.

    ``graphdef``, ``state.params`` and ``constants`` make up the model (``nnx.merge``); ``constants`` are not
    trained. ``teacher_scores(teacher, batch)`` gives [B, P, C] or its factors from an online teacher's parameters or
    from cached label vectors; it is None when no term reads a teacher. run: see ``catalogue.mean_losses``. Pure: jit it
    with the keyword arguments bound.
    """
    progress = state.step / total_steps
    soft = None if teacher_scores is None else jax.lax.stop_gradient(teacher_scores(teacher, batch))

    def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
        model: Any = nnx.merge(graphdef, params, constants)
        rngs = nnx.Rngs(dropout=jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step))
        scores = model.training_scores(batch, rngs=rngs)
        warm = None if model.warm is None else model.warm[...]
        return mean_loss(objective, scores, batch, soft, warm, progress, run)

    (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, **means, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state, state.key), metrics
