"""The trained models of a workdir."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.core.logging import Log
from kd_jax.core.types import Params, PyTree
from kd_jax.data import dataset as datasets
from kd_jax.data.splits import TEST, VALID
from kd_jax.experiment import roles
from kd_jax.experiment.build_teacher import refresh
from kd_jax.experiment.builders import trains_language_model
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.renamed import check_written
from kd_jax.experiment.roles import Role
from kd_jax.training.checkpoint import Checkpoints

RESULT = "result.json"


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

    def best(
        self, role: Role, seed: int, parts: ModelParts, splits: Sequence[int] = (VALID, TEST)
    ) -> tuple[Params, PyTree]:
        """``best_params``, and the constants that belong to them.

        splits: the splits that the model will be evaluated on.
        """
        params = self.best_params(role, seed, parts)
        if trains_language_model(self.experiment, role):
            return params, refresh(self.experiment, role, parts, splits)(params, parts.constants)
        return params, parts.constants


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
    # The stored data set, even if its source has changed.
    experiment.dataset = datasets.load(workdir / "dataset")
    return TrainedModels(experiment)
