"""The models beside the exported one, which the page of the server compares with it.

A file has the vectors of one model. Users, items, titles and histories are those of the export.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, write_json
from kd_jax.core.lookup import Lookup
from kd_jax.runtime import store
from kd_jax.runtime.runtime import Runtime
from kd_jax.runtime.store import Export

FOLDER = "compare"
LIST = "models.json"
BITS = 16  # of a number of the vectors
NONE: list[str] = []


@dataclasses.dataclass(frozen=True)
class Described:
    """A model of the page. about: what it learns from, as the rest of a sentence that starts with
    its name. bytes: of its parameters in float32. colour, dark: on a light and on a dark page.
    """

    name: str
    about: str
    bytes: int
    colour: str
    dark: str


def write(folder: Path, name: str, export: Export) -> None:
    """Writes the vectors of a model to ``folder``, an export's, without what the export has.

    A model that reads histories has no vectors of users.
    """
    users = export.user_vectors if export.context.linear else export.user_vectors[:0]
    light = dataclasses.replace(
        export,
        user_vectors=users,
        user_ids=NONE,
        item_ids=NONE,
        titles=NONE,
        indptr=np.zeros(1, np.int64),
        items=np.zeros(0, np.int32),
        disliked=None,
    )
    store.write(folder / FOLDER / f"{name}.safetensors", light, BITS)


def write_list(folder: Path, models: list[Described], dataset: dict[str, Any]) -> None:
    """Writes which models there are, in the order of the page, after their files."""
    found = {"dataset": dataset, "models": [dataclasses.asdict(model) for model in models]}
    write_json(folder / FOLDER / LIST, found)


def described(folder: Path, export: Export) -> list[Described]:
    """The models of an export's ``folder``, in the order of the page; [] where none are compared.

    Raises InputError for a damaged list, or one of another data set.
    """
    path = folder / FOLDER / LIST
    if not path.exists():
        return []
    fix = "run the stage 'export' again"
    found = read_json(path, fix)
    try:
        models = [Described(**model) for model in found["models"]]
        dataset = found["dataset"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {fix}") from None
    if dataset != export.description.get("dataset"):
        raise InputError(f"{path} is of another data set than the export; {fix}")
    return models


def load(folder: Path, name: str, export: Export, lookup: Lookup | None = None) -> Runtime | None:
    """A model of an export's ``folder``; None where it has no file.

    Raises InputError for a damaged file, or one that does not fit to ``export``.
    """
    path = folder / FOLDER / f"{name}.safetensors"
    if not path.exists():
        return None
    light = store.read(path)
    if not light.context.linear:
        users = np.zeros((len(export.user_ids), light.user_vectors.shape[1]), np.float32)
        light = dataclasses.replace(light, user_vectors=users)
    sizes = len(light.user_vectors), len(light.item_vectors)
    if sizes != (len(export.user_ids), len(export.item_ids)):
        raise InputError(
            f"{path} has {sizes[0]} users and {sizes[1]} items, the export"
            f" {len(export.user_ids)} and {len(export.item_ids)}; run the stage 'export' again"
        )
    shared = ("user_ids", "item_ids", "titles", "indptr", "items", "disliked")
    whole = dataclasses.replace(light, **{part: getattr(export, part) for part in shared})
    return Runtime(whole, lookup)
