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

from kd_jax import losses, sampled, sparse
from kd_jax.catalogue import Factors, Loss, Rows, Run, mean_losses
from kd_jax.errors import InputError, nearest
from kd_jax.types import Array, Batch, Params, PyTree, TrainState

SCHEDULES = ("constant", "linear", "cosine")
TERMS = ("ce", "soft_ce", "kl")
ITEMS = ("all", "warm", "sampled", "sampled_warm")


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight · schedule(progress) · loss``.

    name: 'ce' (clicks), 'soft_ce' or 'kl' (teacher). temperature: of the two soft losses. schedule: of the
    weight over training, 'constant', or falling to zero by 'linear' or 'cosine'. items: softmax over 'all' items
    of the catalogue or over the 'warm' ones, those with at least one training interaction; 'sampled' and
    'sampled_warm' estimate the two from ``negatives`` drawn items, the targets and the teacher's ``top`` items.
    """

    name: str
    weight: float = 1.0
    temperature: float = 1.0
    schedule: str = "constant"
    items: str = "all"
    negatives: int = 0  # of these two the rest of the terms have no use and keep 0
    top: int = 0

    def __post_init__(self) -> None:
        for value, known, field in (
            (self.name, TERMS, "name"),
            (self.schedule, SCHEDULES, "schedule"),
            (self.items, ITEMS, "items"),
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
        if self.sampled and (self.negatives < 1 or self.top < 0):
            raise InputError(
                f"distill.negatives={self.negatives}, distill.top={self.top}: for items={self.items!r} draw at least 1 "
                "negative, and take 0 or more of the teacher's top items"
            )
        if not self.sampled:
            object.__setattr__(self, "negatives", 0)
        if not self.sampled or not self.needs_teacher:
            object.__setattr__(self, "top", 0)

    @property
    def sampled(self) -> bool:
        return self.items.startswith("sampled")

    @property
    def warm(self) -> bool:
        return self.items.endswith("warm")

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
        where = warm if self.warm else None
        if self.name == "ce":
            return losses.cross_entropy(logits, batch["targets"], batch["target_weights"], where)
        assert teacher_logits is not None
        loss = {"kl": losses.kl, "soft_ce": losses.soft_cross_entropy}[self.name]
        return loss(teacher_logits, logits, self.temperature, where)


Objective = tuple[Term, ...]


def mean_loss(
    objective: Objective,
    scores: Factors | Array,
    batch: Batch,
    teacher_scores: Factors | Array | None,
    warm: Array | None,
    progress: Array,
    run: Run | None = None,
    draws: sampled.Draws | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the objective, and of each of its terms.

    scores and teacher_scores: [B, P, C], or the factors of scores of the catalogue: no [B, P, I] array is made then.
    warm: bool [C] or None. progress: scalar in [0, 1]. run: see ``catalogue.mean_losses``. draws: the negatives of an
    objective over a sample of the catalogue.
    """
    weights = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    coefficients = jnp.stack([term.weight_at(progress) for term in objective])
    if isinstance(scores, Factors):
        assert teacher_scores is None or isinstance(teacher_scores, Factors)
        rows = Rows(_flat(batch["targets"]), _flat(batch["target_weights"]), weights.reshape(-1))
        losses_ = tuple(Loss(t.name, float(t.temperature), t.warm and warm is not None) for t in objective)
        teacher = None if teacher_scores is None else _flat_factors(teacher_scores)
        student = _flat_factors(scores)
        if draws is None:
            total, means = mean_losses(losses_, coefficients, student, rows, teacher, warm, run)
        else:
            total, means = sampled.mean_losses(losses_, coefficients, student, rows, draws, teacher, warm)
    else:
        soft = (
            teacher_scores.dense()[..., : scores.shape[-1]] if isinstance(teacher_scores, Factors) else teacher_scores
        )
        means = jnp.stack([jnp.sum(t.per_position(scores, batch, soft, warm) * weights) for t in objective])
        total = jnp.sum(coefficients * means)
    return total, {term.name: mean for term, mean in zip(objective, means, strict=True)}


def _flat(x: Array) -> Array:
    """[B, P, N] -> [B * P, N]."""
    return x.reshape(-1, x.shape[-1])


def _flat_factors(factors: Factors) -> Factors:
    excluded, top = (None if items is None else _flat(items) for items in (factors.excluded, factors.top))
    return factors._replace(contexts=_flat(factors.contexts), excluded=excluded, top=top)


class Gathered(NamedTuple):
    """A step's inputs with the rows of tables that it needs in place of the tables, and indices into those rows.

    rows: parameter -> int32 [K], its rows, distinct and sorted (``sparse.distinct``).
    """

    rows: dict[str, Array]
    batch: Batch
    teacher: Factors | Array | None
    warm: Array | None
    draws: sampled.Draws | None


def gathered(
    model: Any, objective: Objective, batch: Batch, teacher: Factors | Array | None, key: Array, every: bool
) -> Gathered:
    """What a step reads of ``model``'s tables. Items' tables are gathered where the objective samples the catalogue or
    the batch names items; users' ones (and, for the latter, items') only if ``every`` asks for it."""
    warm = None if model.warm is None else model.warm[...]
    rows: dict[str, Array] = {}
    batch = dict(batch)

    def index(kind: str, *values: Array) -> tuple[Array, tuple[Array, ...]]:
        tables = [name for name, of in model.tables.items() if of == kind and hasattr(model, name)]
        found, places = sparse.distinct(len(getattr(model, tables[0])[...]), *values)
        rows.update(dict.fromkeys(tables, found))
        return found, places

    if every and "user" in model.tables.values():
        _, (batch["user"],) = index("user", batch["user"])
    if every and "item" in batch:
        _, (batch["item"],) = index("item", batch["item"])
    if not objective[0].sampled:
        return Gathered(rows, batch, teacher, warm, None)
    draws = sampled.draw(model.proposal[...], objective[0].negatives, key)
    values = [batch["targets"], draws.items]
    if model.reads_history:
        values.append(batch["history"])
    top = max(term.top for term in objective)
    if isinstance(teacher, Factors) and top:
        values.append(sampled.top_items(teacher, top) if teacher.top is None else teacher.top)
    found, (batch["targets"], items, *others) = index("item", *values)
    if model.reads_history:
        batch["history"] = others[0]
    if isinstance(teacher, Factors):
        vectors, bias = sparse.take(teacher.vectors, found), sparse.take(teacher.bias, found)
        teacher = Factors(teacher.contexts, vectors, bias, top=others[-1] if top else None)
    warm = None if warm is None else sparse.take(warm, found)
    return Gathered(rows, batch, teacher, warm, draws._replace(items=items))


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
    gather: bool = False,
    rows: dict[str, int] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step of any model: teacher fine-tuning, plain student and distilled student.

    ``graphdef``, ``state.params`` and ``constants`` make up the model (``nnx.merge``); ``constants`` are not
    trained. ``teacher_scores(teacher, batch)`` gives [B, P, C] or its factors from an online teacher's parameters or
    from cached label vectors; it is None when no term reads a teacher. run: see ``catalogue.mean_losses``. gather: the
    rows of tables that the batch touches are optimised alone, for a ``tx`` that knows of rows (``kd_jax/sparse.py``).
    rows: of tables that the model reads as a whole, where ``state`` has more; those stay as they are. Pure: jit it with
    the keyword arguments bound.
    """
    progress = state.step / total_steps
    soft = None if teacher_scores is None else jax.lax.stop_gradient(teacher_scores(teacher, batch))

    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    whole: Any = nnx.merge(graphdef, sparse.with_rows(state.params, rows or {}), constants)
    given = gathered(whole, objective, batch, soft, jax.random.fold_in(key, 1), gather)

    def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
        params = params if gather else sparse.gather(params, given.rows)
        params = sparse.with_rows(params, {name: n for name, n in (rows or {}).items() if name not in given.rows})
        model: Any = nnx.merge(graphdef, params, constants)
        scores = model.training_scores(given.batch, rngs=nnx.Rngs(dropout=key))
        return mean_loss(objective, scores, given.batch, given.teacher, given.warm, progress, run, given.draws)

    touched = given.rows if gather else {}
    params = sparse.gather(state.params, touched)
    (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optax.with_extra_args_support(tx).update(grads, state.opt_state, params, rows=touched)
    params = sparse.scatter(state.params, touched, optax.apply_updates(params, updates))
    metrics = {"loss": loss, **means, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state, state.key), metrics
