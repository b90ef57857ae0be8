"""Soft labels: what a teacher says about every training example, online in the step or cached on disk.

A ranking label is a context vector: with the item vectors and biases it gives the teacher's logits over the whole
catalogue exactly, at D numbers per context instead of I. A rating label is the pair's class logits. Both ways
go through the same ``BiEncoder`` methods, so they give the same loss.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from kd_jax import sampled
from kd_jax.catalogue import Factors
from kd_jax.data.loader import Examples
from kd_jax.errors import InputError
from kd_jax.files import atomic, read_json, read_tensors, write_json
from kd_jax.types import Array, Batch, PyTree

TeacherScores = Callable[[PyTree, Batch], Factors | Array]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher as the train step takes it: arrays, and the function that turns them and a batch into [B, P, C] scores
    (rank: their factors)."""

    arrays: PyTree
    scores: TeacherScores
    bias: Callable[[], Array | np.ndarray]  # of the teacher's items, [I]


def _last(contexts: Array, positions: str) -> Array:
    return contexts if positions == "all" else contexts[:, -1:]


def online(graphdef: nnx.GraphDef, params: PyTree, constants: PyTree, *, positions: str) -> Teacher:
    """The teacher's forward pass inside the student's step. positions: those of the student, 'last' or 'all'."""

    def scores(teacher: PyTree, batch: Batch) -> Factors | Array:
        model: Any = nnx.merge(graphdef, *teacher)
        if "item" in batch:
            return model.logits(batch)
        vectors, bias = model.items()
        return Factors(_last(model.contexts(batch, vectors), positions), vectors, bias)

    model: Any = nnx.merge(graphdef, params, constants)
    return Teacher((params, constants), scores, lambda: model.items()[1])


def _cached_scores(teacher: PyTree, batch: Batch) -> Factors | Array:
    if "item" in batch:
        return teacher["logits"][batch["row"]]
    top = teacher["top"][batch["row"]] if "top" in teacher else None
    return Factors(teacher["contexts"][batch["row"]], teacher["items"], teacher["bias"], top=top)


def prepare(folder: Path, identity: str) -> None:
    """Empties ``folder`` unless what lies there belongs to ``identity``: then writing goes on where it was cut off."""
    note = folder / "identity.json"
    if note.exists() and read_json(note, f"delete {folder}") == identity:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_json(note, identity)


def write(
    folder: Path,
    graphdef: nnx.GraphDef,
    params: PyTree,
    constants: PyTree,
    examples: Examples,
    *,
    positions: str,
    batch_size: int = 512,
    batches_per_file: int = 128,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Run the teacher over ``examples`` and write its labels to safetensors files in ``folder``, with the row of each.

    A file is written whole or not at all; those that are there are kept. part: (this process, processes): each writes
    its share of the files. Vectors are exact; a list of top-k logits would be smaller only with k below half their
    width.
    """

    @jax.jit
    def label(params: PyTree, constants: PyTree, vectors: Array, batch: Batch) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.logits(batch) if "item" in batch else _last(model.contexts(batch, vectors), positions)

    model: Any = nnx.merge(graphdef, params, constants)
    vectors, bias = model.items()
    per_file = batch_size * batches_per_file
    for number in range(part[0], -(-examples.size // per_file), part[1]):
        path = folder / f"rows-{number:05d}.safetensors"
        if path.exists():
            continue
        stop = min((number + 1) * per_file, examples.size)
        rows, values, name = [], [], "contexts"
        for start in range(number * per_file, stop, batch_size):
            # The last batch is filled up with its own last row, so that one program serves all.
            batch = examples.gather(np.minimum(np.arange(start, start + batch_size), stop - 1))
            name = "logits" if "item" in batch else "contexts"
            rows.append(np.asarray(batch["row"])[: stop - start])
            values.append(np.asarray(label(params, constants, vectors, batch))[: stop - start])
        _save(path, {"row": np.concatenate(rows), name: np.concatenate(values)})
    if part[0] == 0:
        size = np.asarray(examples.size)
        _save(folder / ITEMS, {"items": np.asarray(vectors), "bias": np.asarray(bias, np.float32), "size": size})


ITEMS = "items.safetensors"


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with atomic(path) as temporary:
        save_file(tensors, temporary)


def read(folder: Path) -> dict[str, np.ndarray]:
    """The labels of ``write``: 'items' [I, D] and 'bias' [I] with 'contexts' [rows, P, D], or 'logits' [rows, 1, C].

    Raises InputError if a file is missing or damaged.
    """
    cure = f"delete the soft labels in {folder} and run the 'labels' stage again"
    arrays = read_tensors(folder / ITEMS, cure)
    parts = [read_tensors(path, cure) for path in sorted(folder.glob("rows-*.safetensors"))]
    wanted, found = int(arrays.pop("size", 0)), sum(len(part["row"]) for part in parts)
    if not parts or found != wanted:
        raise InputError(
            f"soft labels {folder} hold {found} of {wanted} rows; delete the folder and run the 'labels' stage again"
        )
    name = next(key for key in parts[0] if key != "row")
    size = max(int(part["row"].max()) for part in parts) + 1
    values = np.zeros((size, *parts[0][name].shape[1:]), np.float32)
    for part in parts:
        values[part["row"]] = part[name]
    return {name: values} if name == "logits" else {name: values} | arrays


def cached(*folders: Path) -> Teacher:
    """The labels of ``write`` as a teacher: of several, the mean of their logits. Raises InputError as ``read``.

    The mean is exact: contexts and items side by side are one context and one item vector, as wide as all together.
    """
    parts, scale = [read(folder) for folder in folders], np.float32(1 / len(folders))
    if "logits" in parts[0]:
        arrays = {"logits": np.sum([part["logits"] * scale for part in parts], 0)}
    else:
        arrays = {
            "contexts": np.concatenate([part["contexts"] * scale for part in parts], -1),
            "items": np.concatenate([part["items"] for part in parts], -1),
            "bias": np.sum([part["bias"] * scale for part in parts], 0),
        }
    return Teacher(arrays, _cached_scores, lambda: arrays["bias"])


def with_top(teacher: Teacher, k: int, batch_size: int = 512) -> Teacher:
    """Cached labels with the ``k`` items of highest score of every label row, int32 [rows, P, k], found once: a loss
    over a sample of the catalogue then reads no more of the catalogue than those and the sample."""
    contexts, *catalogue = (np.asarray(teacher.arrays[name]) for name in ("contexts", "items", "bias"))
    items, bias = map(jax.device_put, catalogue)
    find = jax.jit(lambda *factors: sampled.top_items(Factors(*factors), k))
    top = np.empty((*contexts.shape[:-1], k), np.int32)
    for start in range(0, len(contexts), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(contexts) - 1)  # one shape: one program
        top[rows] = find(contexts[rows], items, bias)
    return dataclasses.replace(teacher, arrays=teacher.arrays | {"top": top})
