"""The one training loop: step, log, evaluate, checkpoint, resume. Teacher, student and distilled
student use it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.core.tables import with_rows
from kd_jax.core.types import Array, Batch, Params, PyTree, TrainState
from kd_jax.data.examples.base import Examples, batches
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed, barrier
from kd_jax.devices.profiling import Meter, device_time, matmul_flops, trace
from kd_jax.distillation.teachers import TeacherFn
from kd_jax.distillation.term import Objective
from kd_jax.losses import sharded
from kd_jax.models.scorer import table_rows
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.preemption import Preempted, Preemption
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import train_step

TABLES_SHARE = 0.25  # of a device's memory that the tables of the training examples may take


@dataclasses.dataclass(frozen=True)
class Trained:
    """The best parameters on validation and how they came about."""

    params: Params
    best_step: int
    best_score: float
    steps: int
    # of wall time, validation included, in all the processes that trained it one after another
    seconds: float


Start = (
    Params | jax.tree_util.Partial
)  # the first parameters, or what gives them in a program that places them


def train(
    graphdef: nnx.GraphDef,
    start: Start,
    constants: PyTree,
    *,
    name: str,
    seed: int,
    examples: Examples,
    objective: Objective,
    recipe: Recipe,
    evaluate: Callable[[Params, PyTree], float],
    checkpoints: Checkpoints,
    mesh: Mesh,
    log: Log,
    teachers: Mapping[str, PyTree] | None = None,
    teacher_scores: Mapping[str, TeacherFn] | None = None,
    refresh: Callable[[Params, PyTree], PyTree] | None = None,
    traces: Path | None = None,
) -> Trained:
    """Train from ``start``, or from the newest checkpoint, until ``recipe`` says stop; return the
    best.

    teachers, teacher_scores: by name, the arrays of each and what turns them and a batch into what
    it says (``kd_jax/labels.py``). evaluate: (params, constants) -> validation score, higher is
    better. refresh: (params, constants) -> constants, called at the start and before every
    evaluation, for constants that follow the parameters. A run that was cut off continues bit for
    bit. traces: a folder for an XProf trace of the third program, when everything is warm, and what
    it says is logged; every program is then waited for. Raises InputError when the loss is no
    longer finite (the last good checkpoint stays), Preempted after SIGTERM.
    """
    sharding.check_batch_size(recipe.batch_size, mesh, f"batch size of {name}")
    resident = agreed(
        examples.on_device and examples.nbytes <= TABLES_SHARE * sharding.device_memory()
    )
    chunk = recipe.chunk if examples.one_shape else 1  # batches of one program are stacked
    step_fn, state = compiled_step(
        graphdef,
        start,
        objective=objective,
        tx=recipe.tx(),
        total_steps=recipe.steps,
        mesh=mesh,
        seed=seed,
        teacher_scores=teacher_scores,
        look_up=examples.look_up if resident else None,
        gather=recipe.sparse,
    )
    constants = sharding.put(constants, mesh)
    arrays = sharding.put_labels(teachers or {}, mesh)
    tables = sharding.put_whole(examples.tables, mesh) if resident else None
    data = batches(
        examples,
        batch_size=recipe.batch_size,
        num_batches=recipe.steps,
        seed=seed,
        chunk=chunk,
        gather=not resident,
        part=sharding.local_rows(mesh, recipe.batch_size),
    )
    shapes = jax.eval_shape(_first, start)
    stored, cut, even = sharding.storing(state, table_rows(graphdef, shapes), mesh)
    newest = checkpoints.latest()
    if newest is not None:
        state = even(checkpoints.restore(newest, stored, data))
        log.note(f"{name} (seed {seed}): goes on from the checkpoint of step {newest}")

    def refreshed(state: TrainState, constants: PyTree) -> PyTree:
        """The language model's vectors are computed by every host for itself, from whole
        weights.
        """
        assert refresh is not None
        return sharding.put(refresh(*sharding.fetch((state.params, constants))), mesh)

    if refresh is not None:
        constants = refreshed(state, constants)
    step = first = int(state.step)
    best, earlier = checkpoints.best(), checkpoints.seconds()
    started = time.perf_counter()
    pending: tuple[int, dict[str, Array]] | None = None
    meter, norm = Meter(mesh.size), jax.jit(optax.tree.norm)

    def stopped() -> bool:
        return best is not None and step - best[0] >= recipe.patience * recipe.eval_every

    def report(at: int, metrics: dict[str, Array]) -> None:
        with meter.time("wait"):
            values = {key: float(value) for key, value in metrics.items()}
        _check_finite(values, name, at, checkpoints)
        cost = meter.read(recipe.batch_size)
        log.write(model=name, seed=seed, step=at, **values, **cost)
        bar.update(at, values, cost.get("examples_per_second"))

    with (
        Preemption() as preemption,
        log.stage(f"{name} (seed {seed})", total=recipe.steps, start=step) as bar,
    ):
        while step < recipe.steps and not stopped():
            with meter.time("input"):
                stacked = sharding.put_batches(next(data), mesh, recipe.batch_size)
            if step == first:
                meter.flops = (
                    matmul_flops(step_fn, state, stacked, tables, constants, arrays) // chunk
                )
            with meter.time("dispatch"), trace(traces if step == first + 2 * chunk else None):
                state, metrics = step_fn(state, stacked, tables, constants, arrays)
                if traces is not None:
                    jax.block_until_ready(state)
            if traces is not None and step == first + 2 * chunk:
                if told := device_time(traces, chunk):
                    log.write(model=name, seed=seed, step=step + chunk, device_ms=told)
                meter.reset(ahead=chunk)  # tracing is no training
            if step == first:
                meter.reset(ahead=chunk)  # it was compiled
            step += chunk
            meter.step(chunk)
            due = step % recipe.eval_every == 0 or step == recipe.steps
            if pending is not None and pending[0] % recipe.log_every < chunk:
                report(
                    *pending
                    # of the program before this one: it is ready, or so nearly that the device has work
                )
            pending = step, metrics
            if due:
                meter.step(chunk)  # nothing runs ahead of what is measured
                report(*pending)
                pending = None
                # The loss is that of the parameters before this step; those after it are what will
                # be saved.
                _check_finite({"param_norm": float(norm(state.params))}, name, step, checkpoints)
                if refresh is not None:
                    constants = refreshed(state, constants)
                score = evaluate(state.params, constants)
                log.write(model=name, seed=seed, step=step, valid={log.metric: score})
                checkpoints.save(cut(state), data, score, earlier + time.perf_counter() - started)
                if best is None or score > best[1]:
                    best = (step, score)
                meter.reset(ahead=chunk)
            if preemption.requested():
                if (
                    not due and refresh is None
                ):  # refreshed constants are right at an evaluation only
                    checkpoints.save(cut(state), data, None)
                checkpoints.wait()
                saved = checkpoints.latest()
                barrier("preempted")  # the first to leave would take the others' runtime with it
                by = preemption.signal.name
                log.note(
                    f"{by}: {name} (seed {seed}) is saved at step {saved or 0}; the same command"
                    " resumes it"
                )
                raise Preempted(preemption.signal)
    checkpoints.wait()
    assert best is not None
    return Trained(
        checkpoints.params(best[0], shapes),
        best[0],
        best[1],
        step,
        earlier + time.perf_counter() - started,
    )


def _first(start: Start) -> Params:
    return start() if isinstance(start, jax.tree_util.Partial) else start


def compiled_step(
    graphdef: nnx.GraphDef,
    start: Start,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    total_steps: int,
    mesh: Mesh,
    seed: int,
    teacher_scores: Mapping[str, TeacherFn] | None = None,
    look_up: Callable[[Any, Any, Any], Batch] | None = None,
    gather: bool = False,
) -> tuple[Any, TrainState]:
    """``train_step`` scanned over the leading axis of its batches, jitted and sharded, and the
    first state.

    (state, batches, tables, constants, teachers) -> (state, metrics of the last step). With
    ``look_up`` the batches are row numbers [chunk, B], looked up in the tables within the program,
    so that Python is not asked between two steps.
    """

    shapes = jax.eval_shape(_first, start)
    rows = table_rows(graphdef, shapes)

    def initial(start: Start) -> TrainState:
        # A weakly typed scalar turns strong in the first update, and the step would be compiled
        # again for it.
        params = jax.tree.map(
            lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), _first(start)
        )
        params = with_rows(params, sharding.even_rows(rows, mesh))
        key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key)

    # State is created under jit with its final shardings, so that the step is compiled exactly
    # once, and so that no device ever has a table of which it is to keep a part.
    shardings = sharding.tree_shardings(jax.eval_shape(initial, start), mesh)
    state = jax.jit(initial, out_shardings=shardings)(start)
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        objective=objective,
        tx=tx,
        total_steps=total_steps,
        teacher_scores=teacher_scores,
        run=sharded.engine_for(mesh),
        gather=gather,
        rows=table_rows(graphdef, shapes, "item"),  # users are only looked up
    )

    def steps(
        state: TrainState, batches: PyTree, tables: PyTree, constants: PyTree, teachers: PyTree
    ) -> Any:
        def one(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
            if look_up is not None:
                batch = sharding.split_batch(look_up(jnp, tables, batch), mesh)
            return step(state, batch, constants, teachers)

        state, metrics = jax.lax.scan(one, state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    jitted = jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(shardings, sharding.batches_sharding(mesh), None, None, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    return jitted, state


def _check_finite(values: dict[str, float], name: str, step: int, checkpoints: Checkpoints) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    checkpoints.wait()
    kept, folder = checkpoints.latest(), checkpoints.folder
    raise InputError(
        f"{name}: the loss is not finite at step {step}"
        f" ({', '.join(f'{k}={v:.4g}' for k, v in values.items())}); lower the learning rate or set"
        " clip_norm, and start again; "
        + (
            "no checkpoint was written yet"
            if kept is None
            else f"the checkpoint of step {kept} is kept: use another --workdir, or delete {folder}"
        )
    )
