"""The one training loop: step, log, evaluate, checkpoint, resume."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import optax

from kd_jax.core.errors import InputError
from kd_jax.core.logging import Bar
from kd_jax.data.examples.base import batches
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed, barrier
from kd_jax.devices.profiling import Meter, device_time, matmul_flops, trace
from kd_jax.models.scorer import table_rows
from kd_jax.training.compiled import compiled_step, first_auxiliary, first_params
from kd_jax.training.job import Trained, TrainingJob
from kd_jax.training.preemption import Preempted, Preemption
from kd_jax.training.step import StepSpec

TABLES_SHARE = 0.25  # of a device's memory that the tables of the training examples may take

_norm = jax.jit(optax.tree.norm)


def train(job: TrainingJob) -> Trained:
    """Trains until the recipe ends or validation stops improving; returns the best parameters.

    Training starts from the newest checkpoint or, without one, from ``job.start``: an interrupted
    run continues bit for bit. Raises Diverged when the loss is no longer finite (the last good
    checkpoint is kept), and Preempted after SIGTERM or Ctrl-C.
    """
    sharding.check_batch_size(job.recipe.batch_size, job.mesh, f"batch size of {job.name}")
    return _Loop(job).run()


class Diverged(InputError):
    """The loss is no longer finite."""


class _Loop:
    """The state of one ``train``."""

    def __init__(self, job: TrainingJob):
        self.job, recipe, mesh = job, job.recipe, job.mesh
        examples = job.examples
        resident = agreed(
            examples.on_device and examples.nbytes <= TABLES_SHARE * sharding.device_memory()
        )
        self.rows = examples.rows_of(recipe.batch_size, mesh.shape["data"])
        # Batches of one program are stacked, so they must have the same shapes.
        self.chunk = recipe.chunk if examples.one_shape else 1
        self.shapes = jax.eval_shape(first_params, job.start)
        spec = StepSpec(
            job.graphdef,
            job.objective,
            recipe.tx(),
            recipe.steps,
            {name: teacher.scores for name, teacher in job.teachers.items()},
            lazy=recipe.sparse,
        )
        auxiliary = first_auxiliary(
            job.objective, job.graphdef, self.shapes, job.constants, job.teachers, examples,
            job.seed,
        )  # fmt: skip
        self.step_fn, self.state = compiled_step(
            spec,
            job.start,
            mesh=mesh,
            seed=job.seed,
            auxiliary=auxiliary,
            look_up=examples.look_up if resident else None,
            programs=job.programs,
        )
        self.constants = sharding.put(job.constants, mesh)
        teachers = {name: teacher.arrays for name, teacher in job.teachers.items()}
        self.teachers = sharding.put_labels(teachers, mesh)
        self.tables = sharding.put_whole(examples.tables, mesh) if resident else None
        self.data = batches(
            examples,
            batch_size=self.rows,
            num_batches=recipe.steps,
            seed=job.seed,
            chunk=self.chunk,
            gather=not resident,
            part=sharding.local_rows(mesh, self.rows),
        )
        self._restore()
        if job.refresh is not None:
            self._refresh()
        self.step = self.first = int(self.state.step)
        self.last = recipe.steps if job.steps is None else job.steps
        self.best = job.checkpoints.best()
        self.earlier = job.checkpoints.seconds()
        self.started = time.perf_counter()
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.meter = Meter(mesh.size)

    def _restore(self) -> None:
        """Restores the newest checkpoint, if any."""
        job = self.job
        rows = table_rows(job.graphdef, self.shapes)
        stored, self.cut, even = sharding.storing(self.state, rows, job.mesh)
        newest = job.checkpoints.latest()
        if newest is not None:
            self.state = even(job.checkpoints.restore(newest, stored, self.data))
            job.log.note(f"{job.title}: resumes from the checkpoint of step {newest}")

    def _refresh(self) -> None:
        """Recomputes the language model's vectors from whole weights.

        Processes share the texts.
        """
        assert self.job.refresh is not None
        fetched = sharding.fetch((self.state.params, self.constants))
        self.constants = sharding.put(self.job.refresh(*fetched), self.job.mesh)

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    @property
    def finished(self) -> bool:
        recipe = self.job.recipe
        patience = recipe.patience * recipe.eval_every
        stopped = self.best is not None and self.step - self.best[0] >= patience
        return stopped or self.step >= self.last

    def run(self) -> Trained:
        job = self.job
        total = job.recipe.steps
        with (
            Preemption() as preemption,
            job.log.stage(job.title, total=total, start=self.step) as bar,
        ):
            if job.trained and self.best is None:
                self._validate(bar)
            while not self.finished:
                metrics = self._advance()
                due = self.step % job.recipe.eval_every == 0 or self.step == total
                if self.pending is not None and self.pending[0] % job.recipe.log_every < self.chunk:
                    # Of the program before this one: it is ready, or so nearly that the device has
                    # work.
                    self._report(bar, *self.pending)
                self.pending = self.step, metrics
                if due:
                    self._validate(bar)
                if preemption.requested():
                    self._stop(preemption, due)
        job.checkpoints.wait()
        assert self.best is not None
        params = job.checkpoints.params(self.best[0], self.shapes)
        return Trained(params, self.best[0], self.best[1], self.step, self.seconds)

    def _advance(self) -> dict[str, Any]:
        """Runs one program of ``chunk`` steps; returns the metrics of the last step."""
        job, chunk, meter = self.job, self.chunk, self.meter
        with meter.time("input"):
            stacked = sharding.put_batches(next(self.data), job.mesh, self.rows)
        given = (stacked, self.tables, self.constants, self.teachers)
        if self.step == self.first:
            meter.flops = matmul_flops(self.step_fn, self.state, *given) // chunk
        traced = job.traces is not None and self.step == self.first + 2 * chunk
        with meter.time("dispatch"), trace(job.traces if traced else None):
            self.state, metrics = self.step_fn(self.state, *given)
            if job.traces is not None:
                jax.block_until_ready(self.state)
        if traced and job.traces is not None:
            if sums := device_time(job.traces, chunk):
                at = self.step + chunk
                job.log.write(model=job.name, seed=job.seed, step=at, device_ms=sums)
            meter.reset(ahead=chunk)  # tracing is no training
        if self.step == self.first:
            meter.reset(ahead=chunk)  # it was compiled
        self.step += chunk
        meter.step(chunk)
        return metrics

    def _report(self, bar: Bar, at: int, metrics: dict[str, Any]) -> None:
        job = self.job
        with self.meter.time("wait"):
            values = jax.tree.map(float, metrics)
        terms = values["terms"]
        self._check_finite({**terms, "loss": values["loss"], "grad_norm": values["grad_norm"]}, at)
        cost = self.meter.read(self.rows * job.examples.per_row)
        job.log.write(model=job.name, seed=job.seed, step=at, **values, **cost)
        shown = terms | {"loss": values["loss"]}
        bar.update(at, shown, cost.get("examples_per_second"))

    def _validate(self, bar: Bar) -> None:
        """Evaluates the parameters of this step and saves them."""
        job, chunk = self.job, self.chunk
        if self.pending is not None:
            self.meter.step(chunk)  # nothing runs ahead of what is measured
            self._report(bar, *self.pending)
            self.pending = None
        # The loss is that of the parameters before this step; those after it will be saved.
        self._check_finite({"param_norm": float(_norm(self.state.params))}, self.step)
        if job.refresh is not None:
            self._refresh()
        score = job.evaluate(self.state.params, self.constants)
        job.log.write(model=job.name, seed=job.seed, step=self.step, valid={job.log.metric: score})
        job.checkpoints.save(self.cut(self.state), self.data, score, self.seconds)
        if self.best is None or score > self.best[1]:
            self.best = (self.step, score)
        if job.on_score is not None:
            job.on_score(self.step, score)
        self.meter.reset(ahead=chunk)

    def _stop(self, preemption: Preemption, due: bool) -> None:
        """Saves and raises Preempted; due: whether this step has been saved already."""
        job = self.job
        if not due and job.refresh is None:  # refreshed constants are right at an evaluation only
            self._check_finite({"param_norm": float(_norm(self.state.params))}, self.step)
            job.checkpoints.save(self.cut(self.state), self.data, None)
        job.checkpoints.wait()
        saved = job.checkpoints.latest()
        barrier("preempted")  # the first to leave would take the others' runtime with it
        job.log.note(
            f"{preemption.signal.name}: {job.title} is saved at step {saved or 0}; the same command"
            " resumes it"
        )
        raise Preempted(preemption.signal)

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        if all(math.isfinite(value) for value in values.values()):
            return
        checkpoints = self.job.checkpoints
        checkpoints.wait()
        kept, folder = checkpoints.latest(), checkpoints.folder
        where = f"the checkpoint of step {kept} is kept: use another --workdir, or delete {folder}"
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise Diverged(
            f"{self.job.name}: the loss is not finite at step {step} ({shown}); lower the learning"
            " rate or set clip_norm, and start again; "
            + ("no checkpoint was written yet" if kept is None else where)
        )
