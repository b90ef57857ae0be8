"""Evaluations that are kept in the workdir, so that a run which is started again repeats none."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import fingerprint, plain_value, read_tensors, write_tensors
from kd_jax.evaluation.tasks import Evaluation
from kd_jax.experiment.config import selects
from kd_jax.experiment.experiment import Experiment

Row = dict[str, Any]  # an entry of ``models`` in metrics.json
Found = tuple[Row, dict[str, Evaluation]]  # evaluations by split

PLAIN = tuple(field.name for field in dataclasses.fields(Evaluation) if field.name != "per_user")
REST = "rest"  # the tensor of all that is no array, as JSON
NOT_READ = ("lists", "bootstrap", "baselines")  # fields of eval that no single evaluation reads


class Evaluations:
    """The evaluations of a run.

    One is kept in ``cache/evaluations`` under the fingerprint of all that it depends on: the data,
    the fields of ``eval`` and ``rate``, the devices, the versions of kd_jax's code, of JAX and of
    NumPy, and the ``key`` that is given. The rates in it are those that were measured then.
    Processes that share a run evaluate anew, since what one finds on its disk the others may not.
    names: of the metrics whose values of each user are kept. asked, found: how many were asked for,
    and how many of them were there.
    """

    def __init__(self, experiment: Experiment, names: Collection[str]):
        c, impressions = experiment.config, experiment.dataset.impressions
        fields = {name: value for name, value in c.eval.to_dict().items() if name not in NOT_READ}
        kinds = [device.device_kind for device in jax.devices()]
        self._names = names
        self.asked = self.found = 0
        self._common = fingerprint([
            list(names),
            [experiment.dataset.checksum, impressions and impressions.checksum, c.data.to_dict()],
            [c.task, selects(c), fields, c.rate.to_dict()],
            [kinds, c.mesh.to_dict(), code(), jax.__version__, np.__version__],
        ])  # fmt: skip
        self._folder = experiment.workdir / "cache/evaluations"

    def kept(self, key: Any, evaluate: Callable[[], Found]) -> Found:
        """What ``evaluate`` returns, or returned for this key before."""
        if jax.process_count() > 1:
            return evaluate()
        path = self._folder / f"{self._common}-{fingerprint(key)}.safetensors"
        self.asked += 1
        if (found := _read(path)) is not None:
            self.found += 1
            return found
        found = evaluate()
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(path, found, self._names)
        return found

    def prune(self) -> None:
        """Deletes those of other data, settings and versions."""
        for path in self._folder.glob("*.safetensors"):
            if not path.name.startswith(self._common):
                path.unlink()


@functools.cache
def code() -> str:
    """A hash of the package's modules."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, found: Found, names: Collection[str]) -> None:
    row, evaluations = found
    tensors = {
        f"{split} {name}": values
        for split, one in evaluations.items()
        for name, values in one.per_user.items()
        if name in names
    }
    plain = {
        split: {field: getattr(one, field) for field in PLAIN} for split, one in evaluations.items()
    }
    rest = json.dumps([row, plain], default=plain_value).encode()
    write_tensors(path, tensors | {REST: np.frombuffer(rest, np.uint8)})


def _read(path: Path) -> Found | None:
    """None where there is none, or a damaged one: it is made again."""
    try:
        tensors = read_tensors(path, "run again")
        row, plain = json.loads(tensors.pop(REST).tobytes())
    except (InputError, KeyError, ValueError):
        return None
    arrays: dict[str, dict[str, np.ndarray]] = {split: {} for split in plain}
    for key, values in tensors.items():
        split, _, name = key.partition(" ")
        arrays[split][name] = values
    found = {split: Evaluation(**one, per_user=arrays[split]) for split, one in plain.items()}
    return row, found
