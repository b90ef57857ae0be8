"""A run: what a configuration stands for, and the models that were trained from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.core.logging import Log
from kd_jax.core.types import Params, PyTree
from kd_jax.data import dataset as datasets
from kd_jax.data.splits import TEST, VALID
from kd_jax.devices import sharding
from kd_jax.experiment.config import trains_text
from kd_jax.experiment.renamed import check_written
from kd_jax.experiment.setup import ModelParts, Setup
from kd_jax.training.checkpoint import Checkpoints


def written(workdir: Path) -> ConfigDict:
    """The configuration of the run that made ``workdir``. Raises InputError if there was none."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} is not the workdir of a run (no {path.name} in it); give that of launch.py"
        )
    config = read_json(path, "run launch.py again")
    check_written(config, path)
    return ConfigDict(config)


class Run(Setup):
    """A configuration, the devices it runs on, and the trained models in its workdir."""

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        super().__init__(config, workdir, log)
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)

    @classmethod
    def opened(cls, workdir: Path, log: Log, config: ConfigDict | None = None) -> Self:
        """The run that made ``workdir``, for reading its models. config: its own with changes,
        None: as it is there. Raises InputError if it is no run's.
        """
        config = written(workdir) if config is None else config
        config.mesh = ConfigDict(
            {"data": -1, "model": 1}
        )  # the devices at hand, not those that trained it
        run = cls(config, workdir, log)
        run.dataset = datasets.load(
            workdir / "dataset"
        )  # as it is there, whatever became of its source
        return run

    def is_trained(self, model: str, seed: int) -> bool:
        return (self.folder(model, seed) / "result.json").exists()

    def result(self, model: str, seed: int) -> dict[str, Any]:
        folder = self.folder(model, seed)
        return read_json(folder / "result.json", f"delete {folder} to train it anew")

    def best_params(self, model: str, seed: int, built: ModelParts) -> Params:
        """The best parameters of a trained model."""
        folder = self.folder(model, seed)
        if not self.is_trained(model, seed):
            raise InputError(
                f"{folder} holds no trained {model}; run the stage {model!r} first"
                " (--config.stages)"
            )
        return Checkpoints(folder).params(self.result(model, seed)["best_step"], built.params)

    def best(
        self, model: str, seed: int, built: ModelParts, splits: Sequence[int] = (VALID, TEST)
    ) -> tuple[Params, PyTree]:
        """``best_params``, and the constants that belong to them. splits: to be judged."""
        params = self.best_params(model, seed, built)
        if model.endswith("teacher") and trains_text(self.settings(model).teacher):
            return params, self.refresh(built, splits)(params, built.constants)
        return params, built.constants
