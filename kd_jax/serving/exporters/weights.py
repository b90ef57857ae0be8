"""A student's weights as a safetensors file with a description, for other programs.

``read`` makes the trained student of them and of ``dataset/``, without Orbax, the configuration and
the language model. ``kd_jax.load`` reads the format 'runtime' instead.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, read_tensors, write_json, write_tensors
from kd_jax.core.types import Params
from kd_jax.data.dataset import Dataset
from kd_jax.models.scorer import Scorer, split
from kd_jax.models.students import build_student, student_class
from kd_jax.serving.exporters.bundle import Bundle

WEIGHTS, DESCRIPTION = "student.safetensors", "student.json"
INPUT = "input."  # prefix of the arrays that the student reads, such as its items' text vectors


def write(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """``student.safetensors`` and ``student.json``.

    The former has the parameters by path as they were trained, then inputs.
    """
    trained = bundle.model if bundle.trained is None else bundle.trained
    tensors = _flat(split(trained)[1])
    tensors |= {INPUT + name: np.asarray(value) for name, value in bundle.inputs.items()}
    weights, description = folder / WEIGHTS, folder / DESCRIPTION
    write_tensors(weights, tensors)
    write_json(description, bundle.description)
    return weights, description


def read(folder: Path, dataset: Dataset) -> tuple[Scorer, dict[str, Any]]:
    """The exported student and its description.

    Raises InputError if a file is missing, damaged or of another data set.
    """
    fix = (
        f"{folder.parent} holds no exported student: run the command that made it again, with"
        " 'export' and a student among its stages and 'weights' in export.formats"
    )
    description = read_json(folder / DESCRIPTION, fix)
    tensors = read_tensors(folder / WEIGHTS, fix)
    described = SimpleNamespace(**description)
    inputs = {
        key.removeprefix(INPUT): tensors.pop(key) for key in list(tensors) if key.startswith(INPUT)
    }
    item_bias, warm = jnp.zeros(dataset.num_items), jnp.asarray(dataset.warm)
    try:
        spec = student_class(described.student).spec(
            **described.spec, item_bias=item_bias, warm=warm
        )
    except TypeError as error:
        raise InputError(
            f"{folder / DESCRIPTION} is not of this version ({error}); export again with it"
        ) from None
    graphdef, like, constants = split(
        build_student(described.student, spec, inputs, rngs=nnx.Rngs(0))
    )
    want = {key: value.shape for key, value in _flat(like).items()}
    have = {key: value.shape for key, value in tensors.items()}
    if want != have:
        key = next(n for n in sorted(want.keys() | have.keys()) if want.get(n) != have.get(n))
        raise InputError(
            f"{folder / WEIGHTS}: tensor {key} has shape {have.get(key)}, the data set in"
            f" {folder.parent} needs {want.get(key)}; export again from the run that made this"
            " workdir"
        )
    restored = serialization.from_state_dict(like, unflatten_dict(tensors, sep="."))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, restored), constants), description


def _flat(params: Params) -> dict[str, np.ndarray]:
    plain = serialization.to_state_dict(params)
    return {name: np.asarray(value) for name, value in flatten_dict(plain, sep=".").items()}
