"""Soft labels on disk: the scores of a teacher for every training example.

A ranking label is a context vector: with the item vectors and biases it gives the teacher's logits
over the whole catalogue exactly, at D numbers per context instead of I. Of windows of a history the
positions that hold an item have one, the padding has none. A rating label is the pair's class
logits. Both ways go through the same ``BiEncoder`` methods, so they give the same loss. A list of a
few items that some other system wrote (``kd_jax/data/lists.py``) is a row number in a table of such
lists.

    python -m kd_jax.labels --workdir=runs/quickstart     # compare a sample with its teachers
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, read_tensors, write_json, write_tensors
from kd_jax.core.types import PAD, Array, Batch
from kd_jax.data.examples.base import Examples

TOLERANCE = 1e-4  # of a logit that is computed again


@dataclasses.dataclass(frozen=True)
class Labeller:
    """The labels of one teacher.

    shared: the arrays that all rows read. label: batch -> the arrays that have a row for each
    example, {'contexts': [B, P, D]}, {'logits': [B, 1, C]} or {'list': int32 [B, P]}, and 'weights'
    [B, P] where the confidence of the teacher differs.
    """

    shared: dict[str, np.ndarray]
    label: Callable[[Batch], Mapping[str, Array | np.ndarray]]


def prepare(folder: Path, identity: str) -> None:
    """Empties ``folder`` unless it belongs to ``identity``: then writing resumes."""
    note = folder / "identity.json"
    if note.exists() and read_json(note, f"delete {folder}") == identity:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_json(note, identity)


def write(
    folder: Path,
    labeller: Labeller,
    examples: Examples,
    *,
    batch_size: int = 512,
    batches_per_file: int = 128,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Writes the labels of ``examples`` to safetensors files in ``folder``, with the row of each.

    A file is written whole or not at all, and existing files are kept. Of examples with several
    positions, those that hold an item are kept, with the 'place' of each. part: (this process,
    processes): each writes its share of the files. Vectors are exact; a list of top-k logits would
    be smaller only with k below half their width.
    """
    per_file, spare = batch_size * batches_per_file, -batch_size % jax.local_device_count()
    for number in range(part[0], -(-examples.size // per_file), part[1]):
        path = folder / f"rows-{number:05d}.safetensors"
        if path.exists():
            continue
        stop = min((number + 1) * per_file, examples.size)
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(number * per_file, stop, batch_size):
            # Filled up with its own last row, so that one program serves all and devices share
            # every batch.
            end = min(start + batch_size, stop)
            batch = examples.gather(
                np.minimum(np.arange(start, start + batch_size + spare), end - 1)
            )
            found = _kept(batch, labeller.label(batch), end - start)
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        arrays = {name: np.concatenate(values) for name, values in parts.items()}
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"labels: the teacher of {folder} gives {name} that are not finite; look at its"
                    " metrics.jsonl and train it again with a lower learning rate"
                )
        write_tensors(path, arrays)
    if part[0] == 0:
        write_tensors(folder / ITEMS, labeller.shared | {"size": np.asarray(examples.size)})


ITEMS = "items.safetensors"


def _kept(
    batch: Batch, labels: Mapping[str, Array | np.ndarray], size: int
) -> dict[str, np.ndarray]:
    """The labels of the first ``size`` rows of a batch, one after another, with where they belong.

    Labels [B, 1, ...] give [size, 1, ...] and 'row' [size]; labels [B, P, ...] of windows give [N,
    ...], 'row' [N] and 'place' [N], for the N positions that hold an item.
    """
    values = {name: np.asarray(x)[:size] for name, x in labels.items()}
    rows = np.asarray(batch["row"][:size])
    if all(x.shape[1] == 1 for x in values.values()):
        return {"row": rows, **values}
    there = np.asarray(batch["history"][:size]) != PAD
    row, place = np.nonzero(there)
    at = {"row": rows[row], "place": place.astype(np.int32)}
    return at | {name: x[there] for name, x in values.items()}


def read(folder: Path) -> dict[str, np.ndarray]:
    """Reads the labels in ``folder``, as written by ``write``.

    The arrays depend on the teacher: 'items' [I, D] and 'bias' [I] with 'contexts' [rows, P, D]; or
    'logits' [rows, 1, C]; or 'list_items' and 'list_logits' [N, K] and 'list_weights' [N] with
    'list' [rows, P]; and 'weights' [rows, P], if any. Of windows they have one axis [N] instead of
    [rows, P], and 'position' [rows, P] has the index of each position in it, 0 where there is none.

    Raises InputError if a file is missing or damaged.
    """
    cure = f"delete the soft labels in {folder} and run the 'labels' stage again"
    arrays = read_tensors(folder / ITEMS, cure)
    parts = [read_tensors(path, cure) for path in sorted(folder.glob("rows-*.safetensors"))]
    wanted = int(arrays.pop("size", 0))
    found = sum(len(np.unique(part["row"])) for part in parts)
    if not parts or found != wanted:
        raise InputError(
            f"soft labels {folder} hold {found} of {wanted} rows; delete the folder and run the"
            " 'labels' stage again"
        )
    size = max(int(part["row"].max()) for part in parts) + 1
    if "place" in parts[0]:
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        row, place = whole.pop("row"), whole.pop("place")
        arrays["position"] = np.zeros((size, int(place.max()) + 1), np.int32)
        arrays["position"][row, place] = np.arange(len(row), dtype=np.int32)
        return arrays | whole
    for name in parts[0].keys() - {"row"}:
        arrays[name] = np.zeros((size, *parts[0][name].shape[1:]), parts[0][name].dtype)
        for part in parts:
            arrays[name][part["row"]] = part[name]
    return arrays


def distinct_lists(folder: Path) -> int:
    """The number of lists in a folder that occur in any example."""
    return len(np.setdiff1d(read(folder)["list"], [0]))


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of ``verify``.

    error: the largest absolute difference of a logit or a weight; inf if the listed items differ.
    """

    folder: Path
    rows: int  # number of rows that were recomputed
    error: float
    contexts: int
    size: int  # bytes on disk
    seconds: float  # to read the whole folder

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.rows} rows again, logits differ by at most {self.error:.1e};"
            f" {self.contexts:,} contexts, {self.size / self.contexts:,.0f} bytes each, read in"
            f" {self.seconds:.2f} s"
        )


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def verify(
    folder: Path, labeller: Labeller, examples: Examples, rows: int, batch_size: int = 64
) -> Checked:
    """Recomputes the labels of ``rows`` random examples and compares them with ``folder``.

    Raises InputError as ``read`` does.
    """
    began = time.perf_counter()
    cache = read(folder)
    seconds = time.perf_counter() - began
    chosen = np.sort(
        np.random.default_rng(0).choice(examples.size, min(rows, examples.size), replace=False)
    )
    error, position = 0.0, cache.pop("position", None)
    for start in range(0, len(chosen), batch_size):
        batch = examples.gather(
            chosen[np.minimum(np.arange(start, start + batch_size), len(chosen) - 1)]
        )
        labels = _kept(batch, labeller.label(batch), batch_size)
        row, place = labels.pop("row"), labels.pop("place", None)
        where = row if position is None else position[row, place]
        then = {name: values[where] if name in labels else values for name, values in cache.items()}
        again = labeller.shared | labels
        error = np.maximum(error, _difference(then, again))  # NaN stays
    values = next(cache[name] for name in ("contexts", "logits", "list") if name in cache)
    return Checked(
        folder,
        len(chosen),
        float(error),
        values.shape[0] if position is not None else examples.size,
        size_of(folder),
        seconds,
    )


def _difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The largest absolute difference of a logit or a weight between two sets of labels.

    Both sets are of the same examples. The difference is inf if the listed items differ.
    """
    if "list" in other:
        items, logits, weights = (
            [side[name][side["list"]] for side in (one, other)]
            for name in ("list_items", "list_logits", "list_weights")
        )
        if items[0].shape != items[1].shape or np.any(items[0] != items[1]):
            return np.inf
        return float(
            np.maximum(np.abs(logits[0] - logits[1]).max(), np.abs(weights[0] - weights[1]).max())
        )
    found = [
        np.abs(one[name] - other[name]).max() for name in ("logits", "weights") if name in other
    ]
    if "contexts" in other:
        width = one["contexts"].shape[-1]
        rows = [np.array_split(x["contexts"].reshape(-1, width), 64) for x in (one, other)]
        for here, there in zip(*rows, strict=True):
            gap = (here @ one["items"].T + one["bias"][None]) - (
                there @ other["items"].T + other["bias"][None]
            )
            found.append(np.abs(gap).max())
    return float(np.max(found))
