"""Soft labels: what a teacher says about every training example, online in the step or cached on disk.

A ranking label is a context vector: with the item vectors and biases it gives the teacher's logits over the whole
catalogue exactly, at D numbers per context instead of I. A rating label is the pair's class logits. Both ways
go through the same ``BiEncoder`` methods, so they give the same loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kd_jax import sampled
from kd_jax.catalogue import Factors
from kd_jax.data.loader import Examples
from kd_jax.errors import InputError
from kd_jax.files import atomic
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


def write(
    path: Path,
    graphdef: nnx.GraphDef,
    params: PyTree,
    constants: PyTree,
    examples: Examples,
    *,
    rows: int,
    positions: str,
    batch_size: int = 512,
) -> None:
    """Run the teacher over ``examples`` and write its labels to a safetensors file, indexed by ``batch['row']``.

    rows: number of values that ``batch['row']`` can take. Written whole or not at all.
    """

    @jax.jit
    def label(params: PyTree, constants: PyTree, vectors: Array, batch: Batch) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.logits(batch) if "item" in batch else _last(model.contexts(batch, vectors), positions)

    model: Any = nnx.merge(graphdef, params, constants)
    vectors, bias = model.items()
    values: np.ndarray | None = None
    pair = False
    for start in range(0, examples.size, batch_size):
        # The last batch is filled up with its own last row, so that one program serves all.
        batch = examples.gather(np.minimum(np.arange(start, start + batch_size), examples.size - 1))
        pair = "item" in batch
        part = np.asarray(label(params, constants, vectors, batch))
        values = np.zeros((rows, *part.shape[1:]), np.float32) if values is None else values
        values[batch["row"]] = part
    assert values is not None
    tensors = (
        {"logits": values}
        if pair
        else {"contexts": values, "items": np.asarray(vectors), "bias": np.asarray(bias, np.float32)}
    )
    with atomic(path) as temporary:
        save_file(tensors, temporary)


def cached(path: Path) -> Teacher:
    """The labels of ``write``. Raises InputError if the file is missing or damaged."""
    try:
        arrays = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(
            f"soft labels {path} cannot be read ({error}); delete the file and run the 'labels' stage again"
        ) from None
    return Teacher(arrays, _cached_scores, lambda: arrays["bias"])


def with_top(teacher: Teacher, k: int, batch_size: int = 512) -> Teacher:
    """Cached labels with the ``k`` items of highest score of every label row, int32 [rows, P, k], found once: a loss
    over a sample of the catalogue then reads no more of the catalogue than those and the sample."""
    contexts, items, bias = (np.asarray(teacher.arrays[name]) for name in ("contexts", "items", "bias"))
    find = jax.jit(lambda *factors: sampled.top_items(Factors(*factors), k))
    top = np.empty((*contexts.shape[:-1], k), np.int32)
    for start in range(0, len(contexts), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(contexts) - 1)  # one shape: one program
        top[rows] = find(contexts[rows], items, bias)
    return dataclasses.replace(teacher, arrays=teacher.arrays | {"top": top})
