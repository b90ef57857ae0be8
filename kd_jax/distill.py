"""The objective and the one train step.

An objective is a weighted sum of terms. A term that compares with a teacher needs that teacher's scores, and
nothing else distinguishes the three uses of the step: teacher fine-tuning and the plain student have a hard
cross-entropy term only, the distilled student adds terms that read teachers. Teachers are an input of the step, never
optimised by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kd_jax import losses, sampled, sparse
from kd_jax.catalogue import Factors, Listed, Loss, Rows, Run, Soft, mean_losses
from kd_jax.errors import InputError, nearest
from kd_jax.types import Array, Batch, Params, PyTree, TrainState

SCHEDULES = ("constant", "linear", "cosine")
TERMS = ("ce", "soft_ce", "kl")
ITEMS = ("all", "warm", "sampled", "sampled_warm")
OWN = "teacher"  # the name, among a student's teachers, of the run's own


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight · schedule(progress) · loss``.

    name: 'ce' (clicks), 'soft_ce' or 'kl' (teacher). temperature: of the two soft losses. schedule: of the
    weight over training, 'constant', or falling to zero by 'linear' or 'cosine'. items: softmax over 'all' items
    of the catalogue or over the 'warm' ones, those with at least one training interaction; 'sampled' and
    'sampled_warm' estimate the two from ``negatives`` drawn items, the targets and the teacher's ``top`` items.
    teacher: the name of the one it reads; '' is the run's own.
    """

    name: str
    weight: float = 1.0
    temperature: float = 1.0
    schedule: str = "constant"
    items: str = "all"
    negatives: int = 0  # of these two the rest of the terms have no use and keep 0
    top: int = 0
    teacher: str = OWN
    NAMES: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        for value, known, field in (
            (self.name, self.NAMES, "name"),
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
        if not self.needs_teacher and self.teacher not in ("", OWN):
            raise InputError(
                f"distill.terms: {self.name!r} learns from clicks and reads no teacher; leave {self.teacher!r} out"
            )
        object.__setattr__(self, "teacher", self.teacher or OWN)
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

    @property
    def label(self) -> str:
        """What it is called in the log: 'kl', or 'kl:big' where the teacher 'big' is not the run's own."""
        return self.name if self.teacher == OWN else f"{self.name}:{self.teacher}"

    def weight_at(self, progress: Array) -> Array:
        """The weight at ``progress`` in [0, 1] of training."""
        if self.schedule == "linear":
            return self.weight * (1.0 - progress)
        if self.schedule == "cosine":
            return self.weight * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return self.weight * jnp.ones_like(progress)

    def per_position(self, logits: Array, batch: Batch, soft: Soft | None, warm: Array | None) -> Array:
        """Unweighted loss of each predicted position, f32 [B, P]."""
        where = warm if self.warm else None
        if self.name == "ce":
            return losses.cross_entropy(logits, batch["targets"], batch["target_weights"], where)
        assert soft is not None
        if isinstance(soft.scores, Listed):
            p, entropy = losses.listed(*soft.scores, self.temperature, where)
            found = losses.cross_entropy(logits / self.temperature, soft.scores.items, p, where)
            return self.temperature**2 * (found - entropy if self.name == "kl" else found)
        loss = {"kl": losses.kl, "soft_ce": losses.soft_cross_entropy}[self.name]
        # Where tables are split, a teacher's may have rows at their end that are no items.
        teacher = soft.scores.dense()[..., : logits.shape[-1]] if isinstance(soft.scores, Factors) else soft.scores
        return loss(teacher, logits, self.temperature, where)


Objective = tuple[Term, ...]


Teachers = Mapping[str, Soft]


def mean_loss(
    objective: Objective,
    scores: Factors | Array,
    batch: Batch,
    teachers: Teachers | None,
    warm: Array | None,
    progress: Array,
    run: Run | None = None,
    draws: sampled.Draws | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the objective, and of each of its terms.

    scores: [B, P, C], or the factors of scores of the catalogue: no [B, P, I] array is made then. teachers: what each
    one that a term reads says about the batch. A position counts in its terms by the batch's weight times the
    teacher's, over the sum of the batch's alone: one that the teacher gives 0 adds nothing and lifts no other. warm:
    bool [C] or None. progress: scalar in [0, 1]. run: see ``catalogue.mean_losses``. draws: the negatives of an
    objective over a sample of the catalogue.
    """
    teachers = teachers or {}
    weights = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    coefficients = jnp.stack([term.weight_at(progress) for term in objective])

    def trusted(name: str) -> Array:
        soft = teachers.get(name)
        return weights if soft is None or soft.weights is None else weights * soft.weights

    if isinstance(scores, Factors):
        total, means = _from_factors(objective, coefficients, scores, batch, teachers, trusted, warm, run, draws)
    else:
        means = jnp.stack(
            [
                jnp.sum(term.per_position(scores, batch, teachers.get(term.teacher), warm) * trusted(_reads(term)))
                for term in objective
            ]
        )
        total = jnp.sum(coefficients * means)
    return total, {term.label: mean for term, mean in zip(objective, means, strict=True)}


def _reads(term: Term) -> str:
    """The teacher whose trust counts; none for clicks."""
    return term.teacher if term.needs_teacher else ""


def _from_factors(
    objective: Objective,
    coefficients: Array,
    scores: Factors,
    batch: Batch,
    teachers: Teachers,
    trusted: Callable[[str], Array],
    warm: Array | None,
    run: Run | None,
    draws: sampled.Draws | None,
) -> tuple[Array, Array]:
    """``mean_loss`` from the student's factors: (the sum, the means [N]).

    All terms of one teacher are found together, the clicks with those of the first that is trusted alike everywhere.
    Every further teacher, and every term of a list, makes the student's logits once more.
    """
    student = _flat_factors(scores)

    def visit(losses_: tuple[Loss, ...], scale: Array, student: Factors, rows: Rows, teacher: Any = None) -> Any:
        if draws is None:
            return mean_losses(losses_, scale, student, rows, teacher, warm, run)
        return sampled.mean_losses(losses_, scale, student, rows, draws, teacher, warm)

    alike = (name for name, soft in teachers.items() if isinstance(soft.scores, Factors) and soft.weights is None)
    first = next(alike, "")
    groups: dict[str, list[int]] = {}
    for i, term in enumerate(objective):
        groups.setdefault(term.teacher if term.needs_teacher else first, []).append(i)
    totals, means = [], [jnp.zeros(())] * len(objective)
    for name, members in groups.items():
        soft, counted = teachers.get(name), trusted(name).reshape(-1)
        if soft is not None and isinstance(soft.scores, Listed):
            items, logits = map(_flat, soft.scores)
            for i in members:
                term = objective[i]
                on_warm, square = term.warm and warm is not None, float(term.temperature) ** 2
                p, entropy = losses.listed(items, logits, term.temperature, warm if on_warm else None)
                cooled = student._replace(
                    contexts=student.contexts / term.temperature, bias=student.bias / term.temperature
                )
                total, (mean,) = visit(
                    (Loss("ce", 1.0, on_warm),), square * coefficients[i, None], cooled, Rows(items, p, counted)
                )
                constant = square * jnp.sum(counted * entropy) if term.name == "kl" else 0.0
                totals.append(total - coefficients[i] * constant)
                means[i] = square * mean - constant
            continue
        teacher = None if soft is None else soft.scores
        assert teacher is None or isinstance(teacher, Factors)
        rows = Rows(_flat(batch["targets"]), _flat(batch["target_weights"]), counted)
        terms = [objective[i] for i in members]
        losses_ = tuple(Loss(t.name, float(t.temperature), t.warm and warm is not None) for t in terms)
        scale = coefficients if len(members) == len(objective) else coefficients[jnp.array(members)]
        total, found = visit(losses_, scale, student, rows, teacher and _flat_factors(teacher))
        totals.append(total)
        for i, mean in zip(members, found, strict=True):
            means[i] = mean
    return sum(totals[1:], totals[0]), jnp.stack(means)


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
    teachers: Teachers
    warm: Array | None
    draws: sampled.Draws | None


def gathered(model: Any, objective: Objective, batch: Batch, teachers: Teachers, key: Array, every: bool) -> Gathered:
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
        return Gathered(rows, batch, teachers, warm, None)
    draws = sampled.draw(model.proposal[...], objective[0].negatives, key)
    values = [batch["targets"], draws.items]
    if model.reads_history:
        values.append(batch["history"])
    top = max(term.top for term in objective)
    named: list[str] = []  # teachers that name items: those they list, or score highest
    for name, soft in teachers.items():
        if isinstance(soft.scores, Listed):
            values.append(soft.scores.items)
        elif isinstance(soft.scores, Factors) and top:
            values.append(sampled.top_items(soft.scores, top) if soft.scores.top is None else soft.scores.top)
        else:
            continue
        named.append(name)
    found, (batch["targets"], items, *others) = index("item", *values)
    if model.reads_history:
        batch["history"] = others.pop(0)
    places = dict(zip(named, others, strict=True))
    cut: dict[str, Soft] = {}
    for name, soft in teachers.items():
        scores = soft.scores
        if isinstance(scores, Listed):
            scores = scores._replace(items=places[name])
        elif isinstance(scores, Factors):
            vectors, bias = sparse.take(scores.vectors, found), sparse.take(scores.bias, found)
            scores = Factors(scores.contexts, vectors, bias, top=places.get(name))
        cut[name] = soft._replace(scores=scores)
    warm = None if warm is None else sparse.take(warm, found)
    return Gathered(rows, batch, cut, warm, draws._replace(items=items))


def train_step(
    state: TrainState,
    batch: Batch,
    constants: PyTree,
    teachers: Mapping[str, PyTree],
    *,
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: optax.GradientTransformation,
    total_steps: int,
    teacher_scores: Mapping[str, Callable[[PyTree, Batch], Soft]] | None = None,
    run: Run | None = None,
    gather: bool = False,
    rows: dict[str, int] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step of any model: teacher fine-tuning, plain student and distilled student.

    ``graphdef``, ``state.params`` and ``constants`` make up the model (``nnx.merge``); ``constants`` are not
    trained. ``teacher_scores[name](teachers[name], batch)`` is what that teacher says, from an online teacher's
    parameters or from cached labels; None when no term reads a teacher. run: see ``catalogue.mean_losses``. gather: the
    rows of tables that the batch touches are optimised alone, for a ``tx`` that knows of rows (``kd_jax/sparse.py``).
    rows: of tables that the model reads as a whole, where ``state`` has more; those stay as they are. Pure: jit it with
    the keyword arguments bound.
    """
    progress = state.step / total_steps
    says = {name: scores(teachers[name], batch) for name, scores in (teacher_scores or {}).items()}
    soft = jax.lax.stop_gradient(says)

    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    whole: Any = nnx.merge(graphdef, sparse.with_rows(state.params, rows or {}), constants)
    given = gathered(whole, objective, batch, soft, jax.random.fold_in(key, 1), gather)

    def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
        params = params if gather else sparse.gather(params, given.rows)
        params = sparse.with_rows(params, {name: n for name, n in (rows or {}).items() if name not in given.rows})
        model: Any = nnx.merge(graphdef, params, constants)
        scores = model.training_scores(given.batch, rngs=nnx.Rngs(dropout=key))
        return mean_loss(objective, scores, given.batch, given.teachers, given.warm, progress, run, given.draws)

    touched = given.rows if gather else {}
    params = sparse.gather(state.params, touched)
    (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optax.with_extra_args_support(tx).update(grads, state.opt_state, params, rows=touched)
    params = sparse.scatter(state.params, touched, optax.apply_updates(params, updates))
    metrics = {"loss": loss, **means, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state, state.key), metrics
