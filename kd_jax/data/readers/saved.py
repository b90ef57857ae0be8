"""Data sets that Hugging Face's library datasets wrote with ``save_to_disk``, read without it.

A data set is a folder with Arrow streams, the list of those that belong to it (state.json: a folder
that was written twice has more) and the types of its columns (dataset_info.json). A DatasetDict is
a folder of such folders and their names (dataset_dict.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.data.readers.table import LINE, Table

STATE, FEATURES, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SPLIT = "split"  # the column with the name of a row's split
MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti")  # columns that are not loaded
FIX = "save the data set again with save_to_disk"


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def parts(path: Path) -> list[Table]:
    """The table of a data set, or of each split of a DatasetDict that has rows.

    Class labels are their names, null for -1. Splits have a column 'split' with their name, unless
    they have one of their own. Raises InputError if a file is missing or there is no row; polars'
    errors are for ``sources.readable``.
    """
    if (path / STATE).is_file():
        tables = {"": _rows(path)}
    else:
        tables = {name: _rows(path / name) for name in _splits(path / SPLITS)}
    found = []
    for name, rows in tables.items():
        if not rows.height:
            continue
        added = bool(name) and SPLIT not in rows.columns
        if added:
            rows = rows.with_columns(pl.lit(name).alias(SPLIT))
        rows = rows.with_row_index(LINE, offset=1)
        found.append(Table(str(path / name), rows.lazy(), split_added=added))
    if not found:
        raise InputError(f"{path}: the data set has no rows; save one that has")
    return found


def _splits(path: Path) -> list[str]:
    """The names of the splits; each is a folder beside ``path``, and nothing outside is read."""
    names = _read(path, "splits")
    if not isinstance(names, list):
        raise InputError(f"{path}: 'splits' is no list of names; {FIX}")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\"):
            raise InputError(f"{path}: {name!r} is no name of a split; {FIX}")
    return names


def _rows(folder: Path) -> pl.DataFrame:
    """The rows of a data set in its order; without a row it may have no columns."""
    features = _read(folder / FEATURES, "features")
    kept = [name for name, feature in features.items() if _kind(feature) not in MEDIA]
    files = _files(folder, "_data_files")
    if not files or not kept:
        return pl.DataFrame()
    every = len(kept) == len(features)
    rows = pl.concat(pl.read_ipc_stream(file, columns=None if every else kept) for file in files)
    chosen = _files(folder, "_indices_data_files")  # by versions up to 1.5, after select or shuffle
    if chosen:
        indices = pl.concat(pl.read_ipc_stream(file) for file in chosen).to_series()
        rows = rows[indices]
    for name, kind in rows.schema.items():
        if isinstance(kind, pl.BaseExtension):  # arrays of numbers
            rows = rows.with_columns(pl.col(name).ext.storage())
    return rows.with_columns(_named(name, features[name], rows.schema[name]) for name in kept)


def _read(path: Path, key: str) -> Any:
    whole = read_json(path, FIX)
    found = whole.get(key) if isinstance(whole, dict) else None
    if not found:
        raise InputError(f"{path} has no {key!r}; {FIX}")
    return found


def _files(folder: Path, key: str) -> list[Path]:
    """The files that belong to the data set, in order."""
    state = read_json(folder / STATE, FIX)
    if not isinstance(state, dict):
        raise InputError(f"{folder / STATE} is no JSON object; {FIX}")
    listed = state.get(key) or ()
    files = [folder / Path(entry["filename"]).name for entry in listed]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file, which {folder / STATE} lists; {FIX}")
    return files


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, Mapping) else ""


def _named(name: str, feature: Any, kind: pl.DataType) -> pl.Expr:
    """A column with names in place of class labels, also of those in lists."""
    column = pl.col(name)
    if _kind(feature) == "ClassLabel":
        return _names(column, feature)
    inner = feature[0] if isinstance(feature, list) else feature.get("feature")
    if _kind(inner) == "ClassLabel" and isinstance(kind, (pl.List, pl.Array)):
        return column.cast(pl.List(kind.inner)).list.eval(_names(pl.element(), inner))
    return column


def _names(label: pl.Expr, feature: Mapping[str, Any]) -> pl.Expr:
    names = dict(enumerate(feature["names"]))
    return label.replace_strict(names, default=None, return_dtype=pl.String)
