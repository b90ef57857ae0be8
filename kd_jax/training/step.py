"""The one train step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.tables import distinct, gather_rows, scatter_rows, take, with_rows
from kd_jax.core.types import Array, Batch, Params, PyTree, TrainState
from kd_jax.distillation.objective import Teachers, mean_loss
from kd_jax.distillation.term import Objective
from kd_jax.losses.sampled import Draws, draw, top_items
from kd_jax.losses.streamed import Engine


class Gathered(NamedTuple):
    """A step's inputs with the rows of tables that it needs in place of the tables, and indices
    into those rows.

    rows: parameter -> int32 [K], its rows, distinct and sorted (``sparse.distinct``).
    """

    rows: dict[str, Array]
    batch: Batch
    teachers: Teachers
    warm: Array | None
    draws: Draws | None


def gathered(
    model: Any, objective: Objective, batch: Batch, teachers: Teachers, key: Array, every: bool
) -> Gathered:
    """What a step reads of ``model``'s tables. Items' tables are gathered where the objective
    samples the catalogue or the batch names items; users' ones (and, for the latter, items') only
    if ``every`` asks for it.
    """
    warm = None if model.warm is None else model.warm[...]
    rows: dict[str, Array] = {}
    batch = dict(batch)

    def index(kind: str, *values: Array) -> tuple[Array, tuple[Array, ...]]:
        tables = [name for name, of in model.tables.items() if of == kind and hasattr(model, name)]
        found, places = distinct(len(getattr(model, tables[0])[...]), *values)
        rows.update(dict.fromkeys(tables, found))
        return found, places

    if every and "user" in model.tables.values():
        _, (batch["user"],) = index("user", batch["user"])
    if every and "item" in batch:
        _, (batch["item"],) = index("item", batch["item"])
    if not objective[0].sampled:
        return Gathered(rows, batch, teachers, warm, None)
    draws = draw(model.proposal[...], objective[0].negatives, key)
    values = [batch["targets"], draws.items]
    if model.reads_history:
        values.append(batch["history"])
    top = max(term.top for term in objective)
    named: list[str] = []  # teachers that name items: those they list, or score highest
    for name, soft in teachers.items():
        if isinstance(soft.scores, Listed):
            values.append(soft.scores.items)
        elif isinstance(soft.scores, Factors) and top:
            values.append(
                top_items(soft.scores, top) if soft.scores.top is None else soft.scores.top
            )
        else:
            continue
        named.append(name)
    found, (batch["targets"], items, *others) = index("item", *values)
    if model.reads_history:
        batch["history"] = others.pop(0)
    places = dict(zip(named, others, strict=True))
    cut: dict[str, TeacherScores] = {}
    for name, soft in teachers.items():
        scores = soft.scores
        if isinstance(scores, Listed):
            scores = scores._replace(items=places[name])
        elif isinstance(scores, Factors):
            vectors, bias = take(scores.vectors, found), take(scores.bias, found)
            scores = Factors(scores.contexts, vectors, bias, top=places.get(name))
        cut[name] = soft._replace(scores=scores)
    warm = None if warm is None else take(warm, found)
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
    teacher_scores: Mapping[str, Callable[[PyTree, Batch], TeacherScores]] | None = None,
    run: Engine | None = None,
    gather: bool = False,
    rows: dict[str, int] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step of any model: teacher fine-tuning, plain student and distilled student.

    ``graphdef``, ``state.params`` and ``constants`` make up the model (``nnx.merge``);
    ``constants`` are not trained. ``teacher_scores[name](teachers[name], batch)`` is what that
    teacher says, from an online teacher's parameters or from cached labels; None when no term reads
    a teacher. run: see ``catalogue.mean_losses``. gather: the rows of tables that the batch touches
    are optimised alone, for a ``tx`` that knows of rows (``kd_jax/sparse.py``). rows: of tables
    that the model reads as a whole, where ``state`` has more; those stay as they are. Pure: jit it
    with the keyword arguments bound.
    """
    progress = state.step / total_steps
    says = {name: scores(teachers[name], batch) for name, scores in (teacher_scores or {}).items()}
    soft = jax.lax.stop_gradient(says)

    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    whole: Any = nnx.merge(graphdef, with_rows(state.params, rows or {}), constants)
    given = gathered(whole, objective, batch, soft, jax.random.fold_in(key, 1), gather)

    def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
        params = params if gather else gather_rows(params, given.rows)
        params = with_rows(
            params, {name: n for name, n in (rows or {}).items() if name not in given.rows}
        )
        model: Any = nnx.merge(graphdef, params, constants)
        scores = model.training_scores(given.batch, rngs=nnx.Rngs(dropout=key))
        return mean_loss(
            objective, scores, given.batch, given.teachers, given.warm, progress, run, given.draws
        )

    touched = given.rows if gather else {}
    params = gather_rows(state.params, touched)
    (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, params, rows=touched
    )
    params = scatter_rows(state.params, touched, optax.apply_updates(params, updates))
    metrics = {"loss": loss, **means, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state, state.key), metrics
