"""The train step as one compiled program over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from kd_jax.core.tables import with_rows
from kd_jax.core.types import Batch, Params, PyTree, TrainState
from kd_jax.data.examples.base import Examples
from kd_jax.devices import sharding
from kd_jax.distillation.objective import auxiliary_params
from kd_jax.distillation.teachers import Teacher, TeacherFn
from kd_jax.distillation.term import Objective
from kd_jax.losses import sharded
from kd_jax.losses.base import VectorLoss
from kd_jax.models.scorer import table_rows
from kd_jax.training.job import Start
from kd_jax.training.step import StepSpec, together, train_step

LookUp = Callable[[Any, Any, Any], Batch]


def first_params(start: Start) -> Params:
    return start() if isinstance(start, jax.tree_util.Partial) else start


def compiled_step(
    spec: StepSpec,
    start: Start,
    *,
    mesh: Mesh,
    seed: int,
    auxiliary: Params | None = None,
    look_up: LookUp | None = None,
    programs: dict[Any, Any] | None = None,
) -> tuple[Any, TrainState]:
    """Compiles ``train_step``, scanned over the leading axis of its batches, for a mesh.

    Returns the jitted and sharded function (state, batches, tables, constants, teachers) -> (state,
    metrics of the last step), and the initial state. The engine and the table rows of ``spec`` are
    those of ``mesh``. auxiliary: the initial auxiliary parameters. look_up: if given, batches are
    row numbers [chunk, B], looked up in the tables within the program, so that Python does not run
    between two steps. programs: functions of earlier models; one of an equal ``spec``, with the
    same ``look_up`` and shardings, is taken from here, already compiled, else it is added.
    """
    shapes = jax.eval_shape(first_params, start)
    rows = table_rows(spec.graphdef, shapes)
    auxiliary = auxiliary or {}

    def initial(start: Start) -> TrainState:
        # A weakly typed scalar turns strong in the first update, and the step would be compiled
        # again for it.
        params = jax.tree.map(
            lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), first_params(start)
        )
        params = with_rows(params, sharding.even_rows(rows, mesh))
        key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
        opt_state = spec.tx.init(together(params, auxiliary))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, key, auxiliary)

    # State is created under jit with its final shardings, so that the step is compiled exactly
    # once, and so that no device ever has a table of which it is to keep a part.
    shardings = sharding.tree_shardings(jax.eval_shape(initial, start), mesh)
    state = jax.jit(initial, out_shardings=shardings)(start)
    whole = table_rows(spec.graphdef, shapes, "item")  # user tables are only looked up
    leaves, structure = jax.tree.flatten(shardings)
    static = _Static(
        spec.graphdef,
        spec.objective,
        spec.tx,
        spec.total_steps,
        tuple(spec.teacher_fns.items()),
        spec.lazy,
        tuple(whole.items()),
    )
    key = static, mesh, look_up, structure, tuple(leaves)
    programs = {} if programs is None else programs
    if key not in programs:
        programs[key] = _program(static, mesh, look_up, shardings)
    return programs[key], state


class _Static(NamedTuple):
    """The fields of a ``StepSpec`` without its engine, in a form that can be hashed."""

    graphdef: nnx.GraphDef
    objective: Objective
    tx: optax.GradientTransformation
    total_steps: int
    teacher_fns: tuple[tuple[str, TeacherFn], ...]
    lazy: bool
    table_rows: tuple[tuple[str, int], ...]


def _program(static: _Static, mesh: Mesh, look_up: LookUp | None, shardings: PyTree) -> Any:
    """The jitted scan of ``train_step``; shardings: of the state."""
    spec = StepSpec(
        **static._asdict()
        | {
            "teacher_fns": dict(static.teacher_fns),
            "engine": sharded.engine_for(mesh),
            "table_rows": dict(static.table_rows),
        }
    )
    step = functools.partial(train_step, spec=spec)

    def steps(
        state: TrainState, batches: PyTree, tables: PyTree, constants: PyTree, teachers: PyTree
    ) -> Any:
        def one(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Any]]:
            if look_up is not None:
                batch = sharding.split_batch(look_up(jnp, tables, batch), mesh)
            return step(state, batch, constants, teachers)

        state, metrics = jax.lax.scan(one, state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(shardings, sharding.batches_sharding(mesh), None, None, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def first_auxiliary(
    objective: Objective,
    graphdef: nnx.GraphDef,
    params: PyTree,
    constants: PyTree,
    teachers: Mapping[str, Teacher],
    examples: Examples,
    seed: int,
) -> Params:
    """The first auxiliary parameters of an objective; of ``params`` only the shapes are read."""
    if not any(term.head or isinstance(term.loss, VectorLoss) for term in objective):
        return {}
    batch = examples.sample(1)

    def scores(params: PyTree, constants: PyTree, batch: Batch) -> Any:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.training_scores(batch)

    student = jax.eval_shape(scores, params, constants, batch)
    given = {
        name: jax.eval_shape(teacher.scores, teacher.arrays, batch)
        for name, teacher in teachers.items()
    }
    key = jax.random.fold_in(jax.random.key(seed), 2)
    return auxiliary_params(objective, student, given, key)
