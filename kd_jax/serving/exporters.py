"""What leaves a workdir: user and item vectors (Parquet) and the student's weights (safetensors).

``export/`` is complete in itself: with ``dataset/`` beside it ``kd_jax.load`` needs neither Orbax
nor the configuration, and other programs read the tables and tensors as they are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx, serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, read_json, read_tensors, write_json
from kd_jax.core.types import Params, PyTree
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.models.scorer import Scorer, split
from kd_jax.models.students import student_class
from kd_jax.models.students.base import StudentSpec

WEIGHTS, DESCRIPTION = "student.safetensors", "student.json"


def _flat(params: Params) -> dict[str, np.ndarray]:
    plain = serialization.to_state_dict(params)
    return {
        name: np.ascontiguousarray(value) for name, value in flatten_dict(plain, sep=".").items()
    }


def write(
    folder: Path,
    dataset: Dataset,
    name: str,
    spec: StudentSpec,
    graphdef: nnx.GraphDef,
    params: Params,
    constants: PyTree,
    *,
    history: int,
    task: str,
    model: str,
) -> None:
    """Write weights, their description, and (for factorised scorers) the vectors, each file whole
    or not at all.

    name: of the student's class; model: which of the run's models it is ('distilled', …).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / WEIGHTS) as temporary:
        save_file(_flat(params), temporary)
    sizes = {
        f.name: getattr(spec, f.name)
        for f in dataclasses.fields(spec)
        if f.name not in ("bias", "warm")
    }
    write_json(
        folder / DESCRIPTION,
        {"model": model, "student": name, "task": task, "history": history, "spec": sizes},
    )
    scorer: Any = nnx.merge(graphdef, params, constants)
    if task != "rank" or not scorer.factorised:
        return
    vectors, bias = scorer.items()
    with atomic(folder / "item_vectors.parquet") as temporary:
        _table("item", dataset.item_ids, np.asarray(vectors)).with_columns(
            pl.Series("bias", np.asarray(bias)), pl.Series("title", dataset.titles)
        ).write_parquet(temporary)
    users = np.arange(dataset.num_users, dtype=np.int32)
    windows = last_items(*dataset.history(TEST), history)
    contexts = np.concatenate(
        [
            np.asarray(
                scorer.contexts({"user": users[part], "history": windows[part]}, vectors)[:, -1]
            )
            for part in np.array_split(users, max(1, len(users) // 1024))
        ]
    )
    with atomic(folder / "user_vectors.parquet") as temporary:
        _table("user", dataset.user_ids, contexts).write_parquet(temporary)


def _table(name: str, ids: pl.Series, vectors: np.ndarray) -> pl.DataFrame:
    width = vectors.shape[1]
    return pl.DataFrame(
        {name: ids, "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, width))}
    )


def read(folder: Path, dataset: Dataset) -> tuple[Scorer, dict[str, Any]]:
    """The exported student and its description.

    Raises InputError if a file is missing, damaged or of another data set.
    """
    cure = (
        f"{folder.parent} holds no exported student: run the command that made it again, with"
        " 'export' and a student among its stages"
    )
    description, tensors = (
        read_json(folder / DESCRIPTION, cure),
        read_tensors(folder / WEIGHTS, cure),
    )
    spec = StudentSpec(
        **description["spec"], bias=jnp.zeros(dataset.num_items), warm=jnp.asarray(dataset.warm)
    )
    model = student_class(description["student"])(spec, rngs=nnx.Rngs(0))
    graphdef, like, constants = split(model)
    want = {key: value.shape for key, value in _flat(like).items()}
    have = {key: value.shape for key, value in tensors.items()}
    if want != have:
        name = next(n for n in sorted(want.keys() | have.keys()) if want.get(n) != have.get(n))
        raise InputError(
            f"{folder / WEIGHTS}: tensor {name} has shape {have.get(name)}, the data set in"
            f" {folder.parent} needs {want.get(name)}; export again from the run that made this"
            " workdir"
        )
    restored = serialization.from_state_dict(like, unflatten_dict(tensors, sep="."))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, restored), constants), description
