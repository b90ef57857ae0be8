"""Trackers: experiment logs of other tools that get the events of metrics.jsonl as scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kd_jax.core.errors import InputError, nearest


class Tracker(Protocol):
    """A log of scalars by model, seed and step."""

    def write(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        """run: model and seed, such as 'teacher.seed0'."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``workdir``/tensorboard/<run>, written by tensorboardX, without TensorFlow."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError(
                "trackers: 'tensorboard' needs tensorboardX; pip install 'kd_jax[tensorboard]'"
            ) from None
        self._writer: Any = SummaryWriter
        self._folder = workdir / "tensorboard"
        self._runs: dict[str, Any] = {}

    def write(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        if run not in self._runs:
            self._runs[run] = self._writer(str(self._folder / run))
        for name, value in scalars.items():
            self._runs[run].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._runs.values():
            writer.close()


class WandB:
    """A run of Weights & Biases with the configuration; its files are in ``workdir``/wandb.

    Scalars are named <run>/<scalar> and have the step of the run as their x axis.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise InputError("trackers: 'wandb' needs wandb; pip install wandb") from None
        workdir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(dir=str(workdir), name=workdir.name, config=dict(config))
        self._known: set[str] = set()

    def write(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        if run not in self._known:
            self._run.define_metric(f"{run}/step")
            self._run.define_metric(f"{run}/*", step_metric=f"{run}/step")
            self._known.add(run)
        values = {f"{run}/{name}": value for name, value in scalars.items()}
        self._run.log(values | {f"{run}/step": step})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


def check(names: Sequence[str]) -> None:
    """Raises InputError for an unknown name."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"trackers: {name!r} is unknown{nearest(name, TRACKERS)}")


def scalars(event: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of an event, those of nested dicts as 'outer/inner'."""
    found: dict[str, float] = {}
    for key, value in event.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found
