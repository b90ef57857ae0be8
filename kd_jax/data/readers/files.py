"""Tables of interactions and items in your own files: Parquet, CSV or TSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import tables
from kd_jax.data.readers.tables import Table

COLUMNS = MappingProxyType(
    {
        "user": "user",
        "item": "item",
        "rating": "rating",
        "timestamp": "timestamp",
        "split": "split",
        "item_id": "item",
    }
)
OPTIONAL = ("rating", "timestamp", "split")
SECTION = "data.files"


def read(path: str = "", items_path: str = "", columns: Mapping[str, str] = COLUMNS) -> RawData:
    """Interactions and, if given, items with their text, each a .parquet, .csv or .tsv file.

    path: the interactions. items_path: the items; '' if there is no table of them. columns: role ->
    name of its column. In the interactions: 'user', 'item' and, where known, 'rating', 'timestamp',
    'split' ('' = ignore that column). In the items: 'item_id', the id; all other columns are text.
    Ids are whole numbers if all of them are, in both tables; otherwise strings.
    """
    if not path:
        raise InputError(f"data.reader='files' needs {SECTION}.path; give the file of interactions")
    for role in columns:
        if role not in COLUMNS:
            known = nearest(role, COLUMNS)
            raise InputError(f"{SECTION}.columns: there is no role {role!r}{known}")
    names = {**COLUMNS, **columns}
    names = {role: column for role, column in names.items() if column or role not in OPTIONAL}
    item_id = names.pop("item_id")

    whole = _interactions(path, lambda table: _whole_ids(table, names))
    items = None
    if items_path:
        numbers = _items(items_path, lambda table: _whole_item_ids(table, item_id))
        both = numbers and "item" in whole
        whole = whole if both else whole - {"item"}
        items = _items(
            items_path, lambda table: tables.items(table, _item_column(table, item_id), both)
        )
    rows, counts, problems, untimed = _interactions(path, lambda table: _rows(table, names, whole))
    return RawData(
        Path(path).stem,
        rows,
        rows.select(pl.col("item").unique().sort()) if items is None else items,
        counts,
        problems,
        str(path),
        str(items_path),
        untimed,
    )


def _interactions(path: str, use: tables.Use[tables.T]) -> tables.T:
    return tables.opened(path, use, what="interactions", field=f"{SECTION}.path")


def _items(path: str, use: tables.Use[tables.T]) -> tables.T:
    return tables.opened(path, use, what="items", field=f"{SECTION}.items_path")


def _found(table: Table, names: Mapping[str, str]) -> dict[str, str]:
    # A column that is not called what it is by default was named on purpose, so it must be there.
    optional = frozenset(role for role in OPTIONAL if names.get(role) == COLUMNS[role])
    fix = f"name it with {SECTION}.columns.{{role}}"
    return tables.find_columns(table, names, optional, fix=fix)


def _whole_ids(table: Table, names: Mapping[str, str]) -> frozenset[str]:
    found = _found(table, names)
    return frozenset(
        role for role in ("user", "item") if tables.whole_numbers(table.rows, found[role])
    )


def _item_column(table: Table, item_id: str) -> str:
    return _found(table, {"item_id": item_id})["item_id"]


def _whole_item_ids(table: Table, item_id: str) -> bool:
    return tables.whole_numbers(table.rows, _item_column(table, item_id))


def _rows(
    table: Table, names: Mapping[str, str], whole: frozenset[str]
) -> tuple[pl.DataFrame, dict[str, int], tuple[str, ...], str]:
    """The usable interactions, counts, problems and ``RawData.untimed``."""
    found = _found(table, names)
    rows, counts, problems = tables.interactions(table, found, whole)
    untimed = ""
    if "timestamp" in names and "timestamp" not in found:
        used = found.values()
        others = ", ".join(name for name in table.columns() if name not in used) or "none"
        untimed = (
            f"{table.path} has no column 'timestamp': name the one it has with"
            f" {SECTION}.columns.timestamp (columns that nothing reads: {others}), or set it to ''"
            " if the rows are in order of time"
        )
    return rows, counts, problems, untimed
