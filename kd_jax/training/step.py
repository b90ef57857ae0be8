"""The one train step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.tables import distinct, gather_rows, scatter_rows, take, with_rows
from kd_jax.core.types import Array, Batch, Params, PyTree, TrainState
from kd_jax.distillation.objective import StepInputs, chosen_items, mean_loss
from kd_jax.distillation.teachers import TeacherFn
from kd_jax.distillation.term import Objective
from kd_jax.losses.candidates import best_items
from kd_jax.losses.sampled import draw
from kd_jax.losses.terms import Engine

AUXILIARY = "auxiliary"  # the key of auxiliary parameters beside those of the model


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """The static parts of a train step.

    graphdef: with ``state.params`` and the constants the model (``nnx.merge``). teacher_fns: by
    name, (that teacher's arrays, batch) -> its scores. lazy: only the table rows that the batch
    touches are optimised, by a ``tx`` that supports this (``lazy_adam``). table_rows: rows of
    tables that the model reads as a whole, where ``state`` has more; the additional ones stay as
    they are.
    """

    graphdef: nnx.GraphDef
    objective: Objective
    tx: optax.GradientTransformation
    total_steps: int
    teacher_fns: Mapping[str, TeacherFn] = dataclasses.field(default_factory=dict)
    engine: Engine | None = None
    lazy: bool = False
    table_rows: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Gathered(NamedTuple):
    """The inputs of a step with only the table rows that it needs.

    The rows take the place of the tables, and the inputs hold indices into them.

    rows: parameter -> int32 [K], its rows, distinct and sorted (``tables.distinct``).
    """

    rows: dict[str, Array]
    inputs: StepInputs


def gathered(spec: StepSpec, model: Any, inputs: StepInputs, key: Array) -> Gathered:
    """Gathers the table rows that a step reads.

    Item tables are gathered where the objective samples the catalogue; user tables (and item
    tables, where the batch names items) only if ``spec.lazy``.
    """
    rows: dict[str, Array] = {}
    batch = dict(inputs.batch)

    def index(kind: str, *values: Array) -> tuple[Array, tuple[Array, ...]]:
        tables = [name for name, of in model.tables.items() if of == kind and hasattr(model, name)]
        found, places = distinct(len(getattr(model, tables[0])[...]), *values)
        rows.update(dict.fromkeys(tables, found))
        return found, places

    if spec.lazy and "user" in model.tables.values():
        _, (batch["user"],) = index("user", batch["user"])
    if spec.lazy and model.owns_item_table and "item" in batch:
        _, (batch["item"],) = index("item", batch["item"])
    if not spec.objective[0].sampled:
        return Gathered(rows, inputs._replace(batch=batch))
    draws = draw(model.proposal[...], spec.objective[0].negatives, key)
    named = _named_items(spec.objective, batch, inputs, model.reads_history) | {
        "draws": draws.items
    }
    found, places = index("item", *named.values())
    at = dict(zip(named, places, strict=True))
    for name in ("targets", "history"):
        batch[name] = at.get(name, batch.get(name))
    teachers = {}
    for name, soft in inputs.teachers.items():
        scores = soft.scores
        if isinstance(scores, Listed):
            scores = scores._replace(items=at[f"list of {name}"])
        elif isinstance(scores, Factors):
            vectors = take(scores.vectors, found)
            bias = take(scores.bias, found)
            scores = Factors(scores.contexts, vectors, bias, top=at.get(f"top of {name}"))
        teachers[name] = soft._replace(scores=scores)
    items = {
        name: chosen._replace(top=at[f"candidates of {name}"], drawn=at[f"drawn of {name}"])
        for name, chosen in inputs.items.items()
    }
    warm = None if inputs.warm is None else take(inputs.warm, found)
    draws = draws._replace(items=at["draws"])
    return Gathered(
        rows,
        inputs._replace(batch=batch, teachers=teachers, warm=warm, draws=draws, items=items),
    )


def _named_items(
    objective: Objective, batch: Batch, inputs: StepInputs, reads_history: bool
) -> dict[str, Array]:
    """All arrays of item indices that a sampled objective reads."""
    found = {"targets": batch["targets"]}
    if reads_history:
        found["history"] = batch["history"]
    top = max((term.top for term in objective if term.reads_teacher), default=0)
    for name, soft in inputs.teachers.items():
        scores = soft.scores
        if isinstance(scores, Listed):
            found[f"list of {name}"] = scores.items
        elif isinstance(scores, Factors) and top:
            found[f"top of {name}"] = best_items(scores, top)
    for name, chosen in inputs.items.items():
        found[f"candidates of {name}"] = chosen.top
        found[f"drawn of {name}"] = chosen.drawn
    return found


def train_step(
    state: TrainState,
    batch: Batch,
    constants: PyTree,
    teachers: Mapping[str, PyTree],
    *,
    spec: StepSpec,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser step of any model: teacher fine-tuning, plain student and distilled student.

    constants: what the model reads and training does not change. teachers: by name, the arrays of
    ``spec.teacher_fns``. Returns the new state and the metrics 'loss', 'terms' (by name) and
    'grad_norm'. Pure: jit it with ``spec`` bound.
    """
    soft: dict[str, TeacherScores] = jax.lax.stop_gradient(
        {name: scores(teachers[name], batch) for name, scores in spec.teacher_fns.items()}
    )
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    whole: Any = nnx.merge(spec.graphdef, with_rows(state.params, dict(spec.table_rows)), constants)
    warm = None if whole.warm is None else whole.warm[...]
    items = {}
    if warm is not None:
        items = chosen_items(spec.objective, soft, len(warm), jax.random.fold_in(key, 2))
    inputs = StepInputs(
        batch, soft, warm, state.step / spec.total_steps, None, items, jax.random.fold_in(key, 3)
    )
    given = gathered(spec, whole, inputs, jax.random.fold_in(key, 1))

    def loss_fn(trained: Params) -> tuple[Array, dict[str, Array]]:
        params, auxiliary = _apart(trained)
        params = params if spec.lazy else gather_rows(params, given.rows)
        cut = {name: n for name, n in spec.table_rows.items() if name not in given.rows}
        model: Any = nnx.merge(spec.graphdef, with_rows(params, cut), constants)
        scores = model.training_scores(given.inputs.batch, rngs=nnx.Rngs(dropout=key))
        return mean_loss(spec.objective, scores, given.inputs, auxiliary, spec.engine)

    touched = given.rows if spec.lazy else {}
    everything = together(state.params, state.auxiliary)
    trained = gather_rows(everything, touched)
    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    updates, opt_state = optax.with_extra_args_support(spec.tx).update(
        grads, state.opt_state, trained, rows=touched
    )
    trained = scatter_rows(everything, touched, optax.apply_updates(trained, updates))
    params, auxiliary = _apart(trained)
    metrics = {"loss": loss, "terms": terms, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state, state.key, auxiliary), metrics


def together(params: Params, auxiliary: Params) -> Params:
    """The parameters that the optimiser updates: the model's and, if any, auxiliary ones."""
    return params | {AUXILIARY: auxiliary} if auxiliary else params


def _apart(trained: Params) -> tuple[Params, Params]:
    params = {name: value for name, value in trained.items() if name != AUXILIARY}
    return params, trained.get(AUXILIARY, {})
