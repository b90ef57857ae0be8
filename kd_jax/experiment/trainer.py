"""Training the model of a role, once per seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core.files import write_json
from kd_jax.core.types import Array, Params
from kd_jax.data.splits import VALID
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.distillation.teachers import Teacher, fit_to_device, precomputed
from kd_jax.distillation.term import OWN
from kd_jax.experiment.build_teacher import refresh
from kd_jax.experiment.builders import build, examples_of, recipe_of, trains_language_model
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.objectives import objective, starts_from_teacher
from kd_jax.experiment.origin import origin_of
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import RESULT
from kd_jax.training import loop
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.job import OnScore, Start, Trained, TrainingJob
from kd_jax.training.loop import train


def fit(
    store: LabelStore,
    role: Role,
    seeds: Sequence[int] | None = None,
    on_score: OnScore | None = None,
) -> None:
    """Trains a role's model for each of ``seeds`` where it is not trained; None: all seeds.

    on_score: see ``TrainingJob``. Raises InputError for a model in the workdir that another
    configuration has trained.
    """
    experiment, models = store.experiment, store.models
    programs: dict[Any, Any] = {}  # the seeds of a role share a compiled step
    for seed in experiment.seeds if seeds is None else seeds:
        folder, title = experiment.folder(role, seed), f"{role.name} (seed {seed})"
        with Checkpoints(folder, identity_of(experiment, role, seed)) as checkpoints:
            if agreed(models.has(role, seed)):
                checkpoints.check_there(models.result(role, seed)["best_step"])
                experiment.log.note(f"{title}: up to date")
                continue
            trained = _train(store, role, seed, checkpoints, programs, on_score)
        score = experiment.task.format_score(trained.best_score)
        experiment.log.note(
            f"{title}: best on validation: {score} at step {trained.best_step} of {trained.steps}"
        )
        names = [field.name for field in dataclasses.fields(trained) if field.name != "params"]
        if leader():
            write_json(folder / RESULT, {name: getattr(trained, name) for name in names})
        barrier("result")


def _train(
    store: LabelStore,
    role: Role,
    seed: int,
    checkpoints: Checkpoints,
    programs: dict[Any, Any],
    on_score: OnScore | None,
) -> Trained:
    experiment, earlier = store.experiment, store.earlier
    older = origin_of(experiment, role, seed)
    if older is not None:
        earlier.keep_constants(role, seed)
    parts, recipe = build(experiment, role, seed), recipe_of(experiment, role)
    terms = objective(experiment, role)
    known = store.teachers(role, seed, parts)
    start: Start | None = _start(experiment, role, parts, known)
    if older is not None:
        fresh = parts.params if start is None else start
        start = earlier.start(role, seed, parts, fresh)
        recipe = recipe.shortened(older["share"], older.get("rate", 1.0))
    teachers = {term.teacher: known[term.teacher] for term in terms if term.reads_teacher}
    judge = experiment.task.evaluation_function(parts.graphdef, "valid", parts.history, full=False)
    mine = sharding.local_rows(experiment.mesh, recipe.batch_size)
    rows = recipe.batch_size if mine is None else len(mine)
    examples = examples_of(experiment, role, parts, seed, rows)
    budget = int(loop.TABLES_SHARE * sharding.device_memory())
    if not sharding.splits_items(experiment.mesh):
        teachers = precomputed(teachers, terms, budget // 4)
    teachers, examples = fit_to_device(teachers, examples, budget)
    live = trains_language_model(experiment, role)
    job = TrainingJob(
        role.name,
        seed,
        parts.graphdef,
        parts.params if start is None else start,
        parts.constants,
        examples,
        terms,
        recipe,
        lambda params, constants: experiment.task.score(judge(params, constants)),
        checkpoints,
        experiment.mesh,
        experiment.log,
        teachers=teachers,
        refresh=refresh(experiment, role, parts, (VALID,)) if live else None,
        traces=_traces(experiment, role, seed) if experiment.config.trace else None,
        trained=older is not None,
        steps=0 if older is not None and older["share"] == 0 else None,
        programs=programs,
        on_score=on_score,
    )
    return train(job)


def _start(
    experiment: Experiment, role: Role, parts: ModelParts, teachers: dict[str, Teacher]
) -> jax.tree_util.Partial | None:
    """The function that creates a model's initial parameters.

    It copies the item biases of the role's own teacher if the student is configured to start there.
    """
    wanted = not role.is_teacher and starts_from_teacher(experiment.settings(role))
    if not wanted or OWN not in teachers or "bias" not in parts.params:
        return parts.start
    bias = np.asarray(teachers[OWN].bias())
    return jax.tree_util.Partial(_with_bias, parts.start, bias)


def _with_bias(start: jax.tree_util.Partial, bias: Array) -> Params:
    return start() | {"bias": bias}


def _traces(experiment: Experiment, role: Role, seed: int) -> Path:
    """The folder for the traces of this process."""
    process = (f"process{jax.process_index()}",) if jax.process_count() > 1 else ()
    folder = experiment.folder(role, seed)
    return experiment.workdir.joinpath("trace", folder.name, *process)
