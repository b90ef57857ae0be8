"""The trained models of a workdir."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.core.logging import Log
from kd_jax.core.types import Params
from kd_jax.data import dataset as datasets
from kd_jax.data.prepared.folder import check_stored
from kd_jax.data.splits import TEST, VALID
from kd_jax.devices import sharding
from kd_jax.evaluation.evaluator import ScoreFn
from kd_jax.evaluation.scoring import score_function, users_at_once
from kd_jax.evaluation.tasks import Evaluation
from kd_jax.experiment import roles
from kd_jax.experiment.build_teacher import refresh
from kd_jax.experiment.builders import build, trains_language_model
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.parts import Best, ModelParts, placed
from kd_jax.experiment.renamed import check_written
from kd_jax.experiment.roles import Role
from kd_jax.training.checkpoint import Checkpoints

RESULT = "result.json"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model of an experiment.

    best: its best parameters and the constants that belong to them. step: where training had them.
    """

    experiment: Experiment
    role: Role
    seed: int
    parts: ModelParts
    best: Best
    step: int

    @property
    def folder(self) -> Path:
        return self.experiment.folder(self.role, self.seed)

    @functools.cached_property
    def on_host(self) -> Best:
        """``best`` as NumPy arrays; every process must read it."""
        return sharding.fetch(self.best[0]), sharding.fetch(self.best[1])

    @functools.cached_property
    def on_devices(self) -> Best:
        return self.place(self.best)

    @functools.cached_property
    def model(self) -> Any:
        """The model with the arrays of ``on_host``."""
        return nnx.merge(self.parts.graphdef, *self.on_host)

    def place(self, best: Best) -> Best:
        """Parameters and constants of this architecture on the devices (``parts.placed``)."""
        return placed(self.parts.graphdef, best, self.experiment.mesh)

    def evaluate(self, split: str, best: Best | None = None) -> Evaluation:
        """The evaluation on ``split``, 'valid' or 'test'; best: in place of the best parameters."""
        parts = self.parts
        evaluate = self.experiment.task.evaluation_function(parts.graphdef, split, parts.history)
        return evaluate(*(self.on_devices if best is None else self.place(best)))

    def score_function(
        self, split: int, *, params: Params | None = None, history: int | None = None
    ) -> tuple[ScoreFn, int]:
        """The scores of users who are known until ``split``, and how many users to ask for at once.

        params: in place of the best ones. history: how many of the newest items are read; None: as
        many as in training.
        """
        parts, data = self.parts, self.experiment.dataset
        best = self.on_devices if params is None else self.place((params, self.on_host[1]))
        task: Any = self.experiment.task
        devices = sharding.data_parts(best[0])
        at_once = users_at_once(parts.graphdef, task.batch_size, data.num_items, devices)
        length = parts.history if history is None else history
        return score_function(data, parts.graphdef, split, length)(*best), at_once


class TrainedModels:
    """The trained models of an experiment, read from their folders."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    def has(self, role: Role, seed: int) -> bool:
        """Whether a model is fully trained."""
        return (self.experiment.folder(role, seed) / RESULT).exists()

    def exported(self) -> Role | None:
        """The student whose first seed is exported: the first of ``roles.by_export``."""
        seed = self.experiment.seeds[0]
        return next((role for role in roles.by_export() if self.has(role, seed)), None)

    def result(self, role: Role, seed: int) -> dict[str, Any]:
        """The result of training: the fields of ``Trained`` without the parameters."""
        folder = self.experiment.folder(role, seed)
        return read_json(folder / RESULT, f"delete {folder} to train it anew")

    def best_params(self, role: Role, seed: int, parts: ModelParts) -> Params:
        """The best parameters; raises InputError for an untrained model."""
        folder = self.experiment.folder(role, seed)
        if not self.has(role, seed):
            raise InputError(
                f"{folder} holds no trained {role.name}; run the stage {role.name!r} first"
                " (--config.stages)"
            )
        return Checkpoints(folder).params(self.result(role, seed)["best_step"], parts.params)

    def open(
        self,
        role: Role,
        seed: int,
        splits: Sequence[int] = (VALID, TEST),
        parts: ModelParts | None = None,
    ) -> TrainedModel:
        """A model with its best parameters; raises InputError for an untrained one.

        splits: the splits that the model will be evaluated on. parts: where they are built already.
        """
        experiment = self.experiment
        parts = build(experiment, role, seed) if parts is None else parts
        params, constants = self.best_params(role, seed, parts), parts.constants
        if trains_language_model(experiment, role):
            constants = refresh(experiment, role, parts, splits)(params, constants)
        step = self.result(role, seed)["best_step"]
        return TrainedModel(experiment, role, seed, parts, (params, constants), step)


def written(workdir: Path) -> ConfigDict:
    """The configuration of the run that made ``workdir``.

    Raises InputError if there was no run, or if an earlier version of kd_jax made it.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} is not the workdir of a run (no {path.name} in it); give that of launch.py"
        )
    config = read_json(path, "run launch.py again")
    check_written(config, path)
    return ConfigDict(config)


def open_workdir(workdir: Path, log: Log, config: ConfigDict | None = None) -> TrainedModels:
    """Opens the trained models of a workdir for reading.

    config: the run's own with changes; None: unchanged. Raises InputError if no run made the
    workdir.
    """
    config = written(workdir) if config is None else config
    # The available devices, not those that trained the models.
    config.mesh = ConfigDict({"data": -1, "model": 1})
    experiment = Experiment(config, workdir, log)
    check_stored(workdir)
    # The stored data set, even if its source has changed.
    experiment.dataset = datasets.load(workdir / "dataset")
    return TrainedModels(experiment)
