"""What is selected for a trained model on validation: once, and kept beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, write_json, write_tensors
from kd_jax.devices.processes import agreed, barrier, leader

Settings = TypeVar("Settings")


def read_settings(path: Path, kind: type[Settings], step: int) -> Settings | None:
    """The settings in ``path``, a JSON file; None if there are none for the model of ``step``.

    kind: their dataclass. Raises InputError for a damaged file.
    """
    fix = f"delete {path}"
    found = read_json(path, fix) if path.exists() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object; {fix}")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if found.get("step") != step or found.keys() != {"step", *names}:
        return None
    return kind(**{name: found[name] for name in names})


def kept_settings(
    path: Path,
    kind: type[Settings],
    step: int,
    select: Callable[[], Settings],
    fit: Callable[[Settings], Mapping[str, np.ndarray]] | None = None,
    *,
    valid: Callable[[Settings], bool] = lambda _: True,
) -> Settings:
    """As ``read_settings``; if there are none they are selected, and written with the fitted map.

    fit: the map's arrays by name, for a safetensors file of the same name as ``path``; None: there
    are none. valid: whether kept settings still hold; otherwise they are selected anew.
    """
    kept = read_settings(path, kind, step)
    if agreed(kept is not None and valid(kept)):
        assert kept is not None
        return kept
    settings = select()
    if leader():
        if fit is not None:
            write_tensors(weights_of(path), fit(settings))
        values: Any = settings
        write_json(path, {"step": step} | dataclasses.asdict(values))
    barrier(path.stem)
    return settings


def weights_of(path: Path) -> Path:
    """The file of the fitted map's arrays."""
    return path.with_suffix(".safetensors")
