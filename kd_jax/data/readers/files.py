"""Where data come from: ``read(source, path, …)`` gives a RawData, whatever the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import tables
from kd_jax.data.readers.tables import Table

COLUMNS = {name: name for name in ("user", "item", "rating", "timestamp", "split")} | {
    "item_id": "item"
}
OPTIONAL = ("rating", "timestamp", "split")


def files(
    path: str | Path, items_path: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> RawData:
    """Interactions and, if given, items with their text, each a .parquet, .csv or .tsv file.

    columns: what the columns are called, for those whose name differs from their role: 'user',
    'item', optional
        'rating', 'timestamp', 'split' ('' = ignore that column); and 'item_id', the id in the items
        table (default: 'item'), all other columns of which are text. Ids are whole numbers if all
        of them are, in both tables; otherwise strings.
    """
    for role in columns or {}:
        if role not in COLUMNS:
            raise InputError(
                f"data.files.columns: there is no role {role!r}{nearest(role, COLUMNS)}"
            )
    names = COLUMNS | dict(columns or {})
    names = {role: column for role, column in names.items() if column or role not in OPTIONAL}
    item_id = names.pop("item_id")
    # A column that is not called what it is by default was named on purpose, so it must be there.
    optional = frozenset(role for role in OPTIONAL if names.get(role) == COLUMNS[role])

    def whole_ids(table: Table) -> frozenset[str]:
        found = tables.find_columns(table, names, optional)
        return frozenset(
            role for role in ("user", "item") if tables.whole_numbers(table.rows, found[role])
        )

    def item_column(table: Table) -> str:
        return tables.find_columns(table, {"item_id": item_id})["item_id"]

    whole = tables.opened(path, "interactions", whole_ids)
    items = None
    if items_path:
        numbers = tables.opened(
            items_path, "items", lambda table: tables.whole_numbers(table.rows, item_column(table))
        )
        both = numbers and "item" in whole
        whole = whole if both else whole - {"item"}
        items = tables.opened(
            items_path, "items", lambda table: tables.items(table, item_column(table), both)
        )

    def interactions(table: Table) -> RawData:
        rows, counts, problems = tables.interactions(
            table, tables.find_columns(table, names, optional), whole
        )
        catalogue = rows.select(pl.col("item").unique().sort()) if items is None else items
        untimed = ""
        if "timestamp" not in rows.columns and "timestamp" in names:  # '' says that there is none
            used = tables.find_columns(table, names, optional).values()
            others = ", ".join(name for name in table.columns() if name not in used) or "none"
            untimed = (
                f"{path} has no column 'timestamp': name the one it has with"
                " data.files.columns.timestamp"
                f" (columns that nothing reads: {others}), or set it to '' if the rows are in order"
                " of time"
            )
        return RawData(
            Path(path).stem,
            rows,
            catalogue,
            counts,
            problems,
            str(path),
            str(items_path or ""),
            untimed,
        )

    return tables.opened(path, "interactions", interactions)
