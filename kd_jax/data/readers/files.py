"""Tables of interactions and items in your own files: Parquet, CSV, TSV, JSON lines or Arrow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import ids, saved, sources, tables
from kd_jax.data.readers.sources import Style
from kd_jax.data.readers.table import LINE, Table

COLUMNS = MappingProxyType(
    {
        "user": "user",
        "item": "item",
        "rating": "rating",
        "timestamp": "timestamp",
        "split": "split",
        "event": "",
        "item_id": "item",
    }
)
ALIASES = {"user": "user_id", "item": "item_id", "item_id": "item_id"}  # role -> second default
OPTIONAL = ("rating", "timestamp", "split", "event")
INDEX = ("", "Unnamed: 0", "__index_level_0__", "index")  # as pandas writes the numbers of rows
SECTION = "data.files"


def read(
    path: str = "",
    items_path: str = "",
    columns: Mapping[str, str] = COLUMNS,
    header: bool = True,
    items_header: bool = True,
    separator: str = "",
    quote: str = "auto",
    date_format: str = "",
) -> RawData:
    """Interactions and, if given, items with their text.

    path: the interactions, a file or a folder of files. items_path: the items; '' if there is no
    table of them. columns: role -> name of its column. In the interactions: 'user', 'item' and,
    where known, 'rating', 'timestamp', 'split' ('' = ignore that column). In the items: 'item_id',
    the id; all other columns are text. Ids are whole numbers if all of them are, in both tables;
    otherwise strings. header, items_header: whether the first line of a text file names the
    columns; otherwise their names are 1, 2, 3, …. separator, quote: see ``sources.Style``.
    date_format: how dates are written as text, in strftime's notation, such as %d/%m/%Y; '': it is
    recognised.
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
    style, items_style = (Style(separator, quote, first) for first in (header, items_header))

    def texts(use: sources.Use[sources.T]) -> sources.T:
        field = f"{SECTION}.items_path; without item texts: '' and data.missing_text=id"
        return sources.opened(items_path, use, what="items", field=field, style=items_style)

    def both(table: Table) -> tuple[tables.Rows, str, pl.DataFrame | None, list[str]]:
        """The interactions and, read in between, the items: ids have one type in both."""
        whole = _whole_ids(table, names)
        notes: list[str] = []
        items: pl.DataFrame | None = None
        if items_path:
            numbers = texts(lambda found: _whole_item_ids(found, item_id)) and "item" in whole
            whole = whole if numbers else whole - {"item"}
            items = texts(lambda found: _items(found, item_id, numbers, notes))
        return *_rows(table, names, whole, date_format), items, notes

    rows, untimed, items, notes = sources.opened(
        path, both, what="interactions", field=f"{SECTION}.path", style=style
    )
    if items is None:
        items = rows.interactions.select(pl.col("item").unique().sort())
    raw = tables.raw_data(Path(path).stem, rows, items, path=str(path), items_path=str(items_path))
    return dataclasses.replace(raw, untimed=untimed, notes=(*raw.notes, *notes))


def _found(table: Table, names: Mapping[str, str]) -> dict[str, str]:
    have = table.columns()
    names = {
        role: ALIASES[role]
        if column == COLUMNS[role] and column not in have and ALIASES.get(role) in have
        else column
        for role, column in names.items()
    }
    # A column that is not called what it is by default was named on purpose, so it must be there.
    optional = frozenset(role for role in OPTIONAL if names.get(role) == COLUMNS[role])
    fix = f"name it with {SECTION}.columns.{{role}}"
    return tables.find_columns(table, names, optional, fix=fix)


def _whole_ids(table: Table, names: Mapping[str, str]) -> frozenset[str]:
    found = _found(table, names)
    return frozenset(role for role in ("user", "item") if ids.are_whole(table.rows, found[role]))


def _item_column(table: Table, item_id: str) -> str:
    return _found(table, {"item_id": item_id})["item_id"]


def _whole_item_ids(table: Table, item_id: str) -> bool:
    return ids.are_whole(table.rows, _item_column(table, item_id))


def _items(table: Table, item_id: str, whole: bool, notes: list[str]) -> pl.DataFrame:
    column = _item_column(table, item_id)
    index = [name for name in table.columns() if name in INDEX and name != column]
    for name in index:
        if _numbers_rows(table, name):
            table = dataclasses.replace(table, rows=table.rows.drop(name))
            notes.append(f"{table.path}: column {name!r} numbers the rows and is left out")
    if table.split_added:
        table = dataclasses.replace(table, rows=table.rows.drop(saved.SPLIT))
    return tables.items(table, column, whole)


def _numbers_rows(table: Table, name: str) -> bool:
    """Whether a column holds whole numbers that grow from row to row."""
    number = pl.col(name).cast(pl.Int64, strict=False)
    grows = (number.is_not_null() & (number.diff().fill_null(1) > 0)).all()
    return bool(table.rows.sort(LINE).select(grows).collect().item())


def _rows(
    table: Table, names: Mapping[str, str], whole: frozenset[str], date_format: str
) -> tuple[tables.Rows, str]:
    """The usable interactions, and ``RawData.untimed``."""
    found = _found(table, names)
    rows = tables.interactions(table, found, whole, date_format)
    untimed = ""
    if "timestamp" in names and "timestamp" not in found:
        used = found.values()
        others = ", ".join(name for name in table.columns() if name not in used) or "none"
        untimed = (
            f"{table.path} has no column 'timestamp': name the one it has with"
            f" {SECTION}.columns.timestamp (columns that nothing reads: {others}), or set it to ''"
            " if the rows are in order of time"
        )
    return rows, untimed
