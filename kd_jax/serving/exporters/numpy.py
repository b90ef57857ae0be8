"""User and item vectors in one NumPy ``.npz`` file: score = user · item + bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.files import atomic
from kd_jax.serving.exporters.bundle import Bundle

VECTORS = "vectors.npz"


def write(bundle: Bundle, folder: Path, compressed: bool = False) -> tuple[Path, ...]:
    """Writes user and item vectors to ``vectors.npz``; returns the files written.

    The arrays are users [U], user_vectors f32 [U, D], items [I], item_vectors f32 [I, D] and
    item_bias f32 [I]; ids are integers, or strings without pickle. Nothing is written for a model
    with scores that do not factorise.

    compressed: zip the arrays, which saves a tenth of float vectors and costs time.
    """
    found, dataset = bundle.vectors, bundle.dataset
    if found is None:
        return ()
    arrays: dict[str, Any] = {
        "users": _ids(dataset.user_ids.to_numpy()),
        "user_vectors": found.contexts,
        "items": _ids(dataset.item_ids.to_numpy()),
        "item_vectors": found.items,
        "item_bias": found.bias,
    }
    path = folder / VECTORS
    save: Any = np.savez_compressed if compressed else np.savez
    with atomic(path) as temporary, temporary.open("wb") as file:
        save(file, **arrays)
    return (path,)


def _ids(values: np.ndarray) -> np.ndarray:
    """Strings as fixed-width Unicode: an array of objects would be pickled."""
    return values.astype(np.str_) if values.dtype == object else values
