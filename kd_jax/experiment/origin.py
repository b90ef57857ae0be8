"""What a run keeps of the older run that it starts from (``init_from``), in ``origin/``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flax import traverse_util

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, read_tensors
from kd_jax.core.types import PyTree
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role

WHITENING = "whitening"  # constants that are fitted to the item texts, to which weights belong


def init_from(experiment: Experiment) -> str:
    return experiment.config.get("init_from", "")


def origin_of(experiment: Experiment, role: Role, seed: int) -> dict[str, Any] | None:
    """The identity of the model that a model starts from; None for one that starts fresh.

    Raises InputError if ``origin/`` is missing.
    """
    if not init_from(experiment):
        return None
    found = read_json(note(experiment), "run launch.py again")
    name = experiment.folder(role, seed).name
    if name not in found:
        raise InputError(
            f"{note(experiment)} does not know {name}: the run in init_from={init_from(experiment)}"
            " was gone when it was written; bring it back, or use another --workdir"
        )
    entry: dict[str, Any] | None = found[name]
    if entry is None:
        return None
    steps = share(experiment, role)  # without steps the rate does not matter
    return entry | {"share": steps} | ({"rate": rate(experiment, role)} if steps else {})


def share(experiment: Experiment, role: Role) -> float:
    """The share of its recipe's steps that a model trains; raises InputError if out of range."""
    kind = role.kind.value
    found: float = experiment.settings(role).init_steps[kind]
    if not 0 <= found <= 1:
        raise InputError(f"init_steps.{kind}={found} must be from 0 to 1")
    return found


def rate(experiment: Experiment, role: Role) -> float:
    """The factor of the learning rates of a model; raises InputError if it is not above 0."""
    found: float = experiment.settings(role).init_rate
    if not 0 < found < float("inf"):
        raise InputError(f"init_rate={found} must be more than 0")
    return found


def note(experiment: Experiment) -> Path:
    return experiment.workdir / "origin/origin.json"


def tensors(experiment: Experiment, role: Role, seed: int) -> Path:
    """The file of the constants that a model has from an older one; missing if there are none."""
    return note(experiment).with_name(f"{experiment.folder(role, seed).name}.safetensors")


def kept_constants(constants: PyTree) -> dict[str, Any]:
    """The constants that belong to the parameters, by dotted name: those of ``WHITENING``."""
    flat = traverse_util.flatten_dict(constants, sep=".")
    return {name: value for name, value in flat.items() if WHITENING in name.split(".")}


def with_kept_constants(
    experiment: Experiment, role: Role, seed: int, parts: ModelParts
) -> ModelParts:
    """``parts`` with the constants that its model has from an older one."""
    path = tensors(experiment, role, seed)
    if not init_from(experiment) or not path.exists():
        return parts
    flat = traverse_util.flatten_dict(parts.constants, sep=".", keep_empty_nodes=True)
    kept = read_tensors(path, f"delete {path.parent} and {experiment.folder(role, seed)}")
    constants = traverse_util.unflatten_dict(flat | kept, sep=".")
    return dataclasses.replace(parts, constants=constants)
