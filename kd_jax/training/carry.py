"""Parameters of an older model in a model of newer data, with the rows of tables found by id."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from flax import serialization, traverse_util
from jaxtyping import Int64

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Params

Places = Int64[np.ndarray, " N"]


def places(ids: pl.Series, older: pl.Series) -> Places:
    """The index in ``older`` of each of ``ids``, int64 [N]; ``PAD`` for an id that is new.

    Both are distinct. Raises InputError if one holds numbers and the other strings.
    """
    if ids.dtype != older.dtype:
        raise InputError(
            f"ids are {ids.dtype} here and {older.dtype} there; write them as they were then"
        )
    known = pl.DataFrame({"id": older, "place": np.arange(len(older))})
    joined = pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left")
    return joined["place"].fill_null(PAD).to_numpy()


def carried(fresh: Params, older: Params, rows: Mapping[str, Places], where: str) -> Params:
    """The parameters ``older``, in the shapes of ``fresh``.

    rows: table -> for each of its rows now, the row in ``older``; a row at ``PAD`` keeps its value
    of ``fresh``. All other parameters are taken whole. where: for errors. Raises InputError if a
    parameter is missing, or has another shape.
    """
    plain = serialization.to_state_dict(fresh)
    flat, flat_older = traverse_util.flatten_dict(plain), traverse_util.flatten_dict(older)
    found = {}
    for path in sorted(flat.keys() | flat_older.keys()):
        new, old = flat.get(path), flat_older.get(path)
        table = rows.get(path[0]) if len(path) == 1 else None
        shapes = [None if x is None else np.shape(x) for x in (new, old)]
        parts = [shape[1:] if shape and table is not None else shape for shape in shapes]
        if new is None or old is None or parts[0] != parts[1]:
            raise InputError(
                f"{where}: parameter {'.'.join(path)} has shape {shapes[1]} there and {shapes[0]}"
                " here; give both the same student and teacher, or start without init_from"
            )
        found[path] = np.asarray(old) if table is None else _rows(np.asarray(new), old, table)
    return serialization.from_state_dict(fresh, traverse_util.unflatten_dict(found))


def _rows(new: np.ndarray, older: np.ndarray, table: Places) -> np.ndarray:
    kept = table != PAD
    found = np.array(new)
    found[kept] = older[table[kept]]
    return found
