"""Checkpoints, written and read with Orbax, which no other module imports.

A checkpoint is ``<model>/checkpoints/<step>/`` with two items: ``state`` (params, optimiser state,
step and key as a plain nested dict of arrays, which restores without kd_jax) and ``data`` (the
Grain iterator's position). The best on validation and the newest are kept. Saving is asynchronous
and atomic: a killed run leaves the previous ones whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from kd_jax.core.errors import InputError
from kd_jax.core.files import difference, read_json, write_json
from kd_jax.core.types import Params, PyTree, TrainState
from kd_jax.devices.processes import barrier, leader


def _rank(metrics: PyTree) -> tuple[float, int]:
    return metrics["score"], -metrics["step"]  # of two equally good ones the earlier


def to_plain(state: TrainState) -> dict[str, Any]:
    """A nested dict of arrays with string keys, whatever containers optax and Flax use inside."""
    return serialization.to_state_dict(_present(state))


def _present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that are not empty."""
    fields = state._asdict()
    return fields if state.auxiliary else {k: v for k, v in fields.items() if k != "auxiliary"}


def _bound(folder: Path) -> bool:
    """Whether the checkpoints in ``folder`` belong to an identity.

    An identity in a folder without any checkpoint does not count.
    """
    steps = folder / "checkpoints"
    written = steps.is_dir() and any(path.name.isdigit() for path in steps.iterdir())
    return written and (folder / "identity.json").exists()


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raises InputError if ``folder`` holds checkpoints of another identity.

    The message names the first fields that differ.
    """
    note = folder / "identity.json"
    if not _bound(folder):
        return
    changed = difference(read_json(note, f"delete {folder} to train it anew"), identity)
    if changed:
        raise InputError(
            f"{folder} holds checkpoints of another config ({changed}); use another --workdir,"
            " restore those values, or delete that folder"
        )


class Checkpoints:
    """The checkpoints of one model in ``folder``/checkpoints, bound to an ``identity``.

    identity: everything that determines the parameters (config of the model, its training, data
    checksum, teacher). Raises InputError if the folder holds checkpoints of another identity,
    naming the first fields that differ.
    """

    def __init__(self, folder: Path, identity: dict[str, Any] | None = None):
        self.folder = folder
        note = folder / "identity.json"
        if identity is not None:
            check_identity(folder, identity)
            barrier("identity")
            if leader() and not _bound(folder):
                write_json(note, identity)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(
                [
                    LatestN(1),
                    BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=lambda metrics: metrics["score"],  # without it Orbax does not write the metrics
            cleanup_tmp_directories=identity is not None,
            read_only=identity is None,
        )
        for path in (folder / "checkpoints").glob("*/metrics/metrics"):
            if path.parts[-3].isdigit():  # else it is still being written
                with self._reading(
                    int(path.parts[-3])
                ):  # Orbax reads them too, but fails without saying which
                    json.loads(path.read_text())
        self._manager = ocp.CheckpointManager(
            (folder / "checkpoints").absolute(),
            options=options,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        state: TrainState,
        data: grain.DatasetIterator,
        score: float | None,
        seconds: float = 0.0,
    ) -> None:
        """Starts writing ``state`` and the position of ``data``.

        score: on validation, higher is better; None: not evaluated. seconds: training time so far.
        """
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                # One number, the same in all processes: another number of them may go on from it.
                state=ocp.args.PyTreeSave(to_plain(state)),
                data=ocp.args.JsonSave(data.get_state()),
            ),
            metrics=(
                None if score is None else {"score": float(score), "step": step, "seconds": seconds}
            ),
        )

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """Step and validation score of the best checkpoint."""
        best = max(self._scored(), key=_rank, default=None)
        return None if best is None else (best["step"], best["score"])

    def seconds(self) -> float:
        """Training time in seconds, up to the last checkpoint with a score.

        Training that is repeated after a kill is counted once.
        """
        return max((metrics["seconds"] for metrics in self._scored()), default=0.0)

    def _scored(self) -> list[dict[str, Any]]:
        """The metrics of each checkpoint that has a score."""
        return [
            metrics
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step))
        ]

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Converts the errors of reading a damaged checkpoint to InputError.

        Orbax and TensorStore report a damaged file by many types, bare Exception among them.
        """
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:
            self.check_there(step)
            reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            raise InputError(
                f"{self._path(step)} is damaged ({reason}); {self._cure(step)}"
            ) from error

    def check_there(self, step: int) -> None:
        """Raises InputError if the checkpoint of ``step`` is missing; its content is not read."""
        if not self._path(step).exists():
            raise InputError(
                f"{self._path(step)} is missing; delete {self.folder} to train it anew"
            )

    def _path(self, step: int) -> Path:
        return self.folder / "checkpoints" / str(step)

    def _cure(self, step: int) -> str:
        anew = f"delete {self.folder} to train it anew"
        older = [
            int(path.name) for path in self._path(step).parent.iterdir() if path.name.isdigit()
        ]
        older = [other for other in older if other < step]
        # What is finished is not resumed.
        if not older or (self.folder / "result.json").exists():
            return anew
        return (
            f"{anew}, or {self._path(step)} alone to resume from the checkpoint of step"
            f" {max(older)}"
        )

    def restore(self, step: int, like: TrainState, data: grain.DatasetIterator) -> TrainState:
        """Restores the state of ``step``, with the shapes and shardings of ``like``.

        The position of ``data`` is restored too. Raises InputError, as all methods that read, if
        the checkpoint is missing or damaged.
        """
        plain = to_plain(like)
        args = ocp.args.PyTreeRestore(
            plain, restore_args=ocp.checkpoint_utils.construct_restore_args(plain)
        )
        with self._reading(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=args, data=ocp.args.JsonRestore())
            )
            data.set_state(restored["data"])
        return TrainState(**serialization.from_state_dict(_present(like), restored["state"]))

    def plain(self, step: int) -> dict[str, Any]:
        """The whole state of ``step`` as a nested dict of host arrays."""
        folder = (self._path(step) / "state").absolute()
        with self._reading(step), ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder).item_metadata
            if metadata is None:
                raise FileNotFoundError("no metadata")
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
            )
            return checkpointer.restore(folder, restore_args=as_numpy)

    def params(self, step: int, like: Params) -> Params:
        """The parameters of ``step`` as host arrays, checked against ``like``.

        Raises InputError if a parameter is missing or has another shape.
        """
        params = self.plain(step)["params"]
        have, want = _shapes(params), _shapes(serialization.to_state_dict(like))
        if have != want:
            name = next(n for n in sorted(have.keys() | want.keys()) if have.get(n) != want.get(n))
            raise InputError(
                f"{self.folder}: parameter {name} has shape {have.get(name)}, the config asks for "
                f"{want.get(name)}; the checkpoint belongs to another config"
            )
        return serialization.from_state_dict(like, params)

    def wait(self) -> None:
        """Waits until all checkpoints are on disk.

        Raises the error of a failed write, for example of a full disk.
        """
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        """Waits for pending writes; nothing is written to the folder afterwards.

        This also holds after an exception, which is not replaced by one of a failed write.
        """
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self._manager.close()


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(np.shape(leaf))
        for path, leaf in leaves
    }
