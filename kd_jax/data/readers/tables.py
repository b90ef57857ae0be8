"""Checks tables of interactions and items, for all readers.

A row that cannot be used is never dropped silently: it is counted, the first row with each fault is
reported, and ``dataset.build`` refuses more than the tolerated share. No Python code runs per row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData, check_items, nested
from kd_jax.data.readers import ids, times
from kd_jax.data.readers.table import LINE, TAB, Table
from kd_jax.data.time_units import coarsest

IDS = frozenset({"user", "item"})


@dataclasses.dataclass(frozen=True)
class Rows:
    """The usable rows of a table of interactions, with ``RawData``'s fields of these names."""

    interactions: pl.DataFrame
    counts: dict[str, int]
    problems: tuple[str, ...]
    time_unit: str = ""
    time_digits: int = 0
    notes: tuple[str, ...] = ()


def find_columns(
    table: Table,
    names: Mapping[str, str],
    optional: frozenset[str] = frozenset(),
    *,
    fix: str = "get the file again",
) -> dict[str, str]:
    """role -> column, for those of ``names`` that the table has.

    optional: roles that may be missing. Raises InputError if another one is missing. fix: the end
    of its message, in which '{role}' stands for the role.
    """
    have = table.columns()
    only = next(iter(have)) if len(have) == 1 else ""
    other = next((mark for mark in (";", TAB, "|", ",") if mark in only), "")
    if other:
        name = "a tab" if other == TAB else repr(other)
        raise InputError(
            f"{table.path} has a single column, {only!r}; is {name} its separator? Fields must be"
            " separated by commas (.csv) or tabs (.tsv): set data.files.separator, change its"
            " ending, or convert the file"
        )
    for role, column in names.items():
        if column not in have and role not in optional:
            raise InputError(
                f"{table.path} has no column {column!r} for {role}{nearest(column, have)};"
                f" {fix.format(role=role)}{_headerless(have)}"
            )
    return {role: column for role, column in names.items() if column in have}


def _headerless(names: Iterable[str]) -> str:
    """A hint for a file whose first line is a row, ''; where the first line has names."""
    if not any(re.fullmatch(r"-?\d+([.:-]\d+)*", name.strip()) for name in names):
        return ""
    return (
        "; if the first line is a row and not the names, set data.files.header=False and number"
        " the columns: data.files.columns.user=1"
    )


def raw_data(
    name: str, rows: Rows, items: pl.DataFrame, *, path: str = "", items_path: str = ""
) -> RawData:
    """The RawData of usable rows and items; path, items_path: their files."""
    return RawData(
        name,
        rows.interactions,
        items,
        rows.counts,
        rows.problems,
        path,
        items_path,
        time_unit=rows.time_unit,
        time_digits=rows.time_digits,
        notes=rows.notes,
    )


def interactions(
    table: Table,
    columns: Mapping[str, str],
    whole: frozenset[str] = IDS,
    date_format: str | None = None,
) -> Rows:
    """The usable rows of a table.

    columns: role -> column, with the roles 'user', 'item', 'rating', 'timestamp', 'split'. whole:
    those of 'user' and 'item' that have integer ids; other ids are strings. date_format: of dates
    as text; '' or None: it is recognised, None where it is no field of the reader. Raises
    InputError for a column of a wrong type.
    """
    table = _one_item_a_row(table, columns)
    frame, found, checks = _checked(table, columns, whole, date_format, plain=True)
    if (frame["fault"] > 0).any():  # read again with all that may be written
        frame, found, checks = _checked(table, columns, whole, date_format, plain=False)
    faulty = frame.filter(pl.col("fault") > 0)
    problems = [table.problem] if table.broken else []
    firsts = faulty.unique("fault", keep="first", maintain_order=True)
    for line, code in firsts.select(LINE, "fault").iter_rows():
        role, reason, _ = checks[code - 1]
        row = table.rows.select(LINE, bad=checks[code - 1][2], text=columns[role])
        row = row.filter((pl.col(LINE) == line) & pl.col("bad")).head(1)
        text = row.select(pl.col("text").cast(pl.String)).collect().item()
        problem = f"{role} {text!r} {reason}" if text else f"there is no {role}"
        problems.append(f"{table.place(line)}: {problem}")
    counts = {"rows": frame.height + table.broken, "malformed": faulty.height + table.broken}
    good = frame.filter(pl.col("fault") == 0) if faulty.height else frame
    rows = good.select(pl.col(f"{role} value").alias(role) for role in columns)
    unit, digits = "", 0
    notes: tuple[str, ...] = ()
    if found is not None:
        unit, digits, notes = found.unit, found.digits, (f"timestamps: {found.source}",)
        if unit:
            moments, unit = coarsest(rows["timestamp"].to_numpy(), unit)
            rows = rows.with_columns(timestamp=pl.Series(moments, dtype=pl.Int64))
    return Rows(rows, counts, tuple(problems), unit, digits, notes)


Check = tuple[str, str, pl.Expr]  # role, reason, true at a fault


def _checked(
    table: Table,
    columns: Mapping[str, str],
    whole: frozenset[str],
    date_format: str | None,
    plain: bool,
) -> tuple[pl.DataFrame, times.Times | None, list[Check]]:
    """All rows with their values and ``fault``, how times are written, and the checks.

    fault: 0, or 1 + the index of the first check that a row fails. plain: reads numbers in their
    plain form alone, which takes half of the time; the values of rows without a fault are the same.
    """
    found = None
    if "timestamp" in columns:
        found = times.find(table, columns["timestamp"], date_format or "", plain)
    parsed = {
        role: _parsed(table, role, name, role in whole, plain) for role, name in columns.items()
    }
    if found is not None:
        parsed["timestamp"] = _time(table, columns["timestamp"], found, date_format)
    checks = [(role, reason, bad) for role, (_, faults) in parsed.items() for reason, bad in faults]
    fault = pl.lit(0, pl.UInt8)
    for code, (_, _, bad) in reversed(list(enumerate(checks, start=1))):
        fault = pl.when(bad.fill_null(False)).then(pl.lit(code, pl.UInt8)).otherwise(fault)
    values = [value.alias(f"{role} value") for role, (value, _) in parsed.items()]
    frame = table.rows.select(LINE, *values, fault=fault).collect(engine="streaming")
    return frame, found, checks


def _one_item_a_row(table: Table, columns: Mapping[str, str]) -> Table:
    """The table with a row per item, where its rows are sessions with lists of items.

    Lists of ratings and times have one value per item. Raises InputError where their lengths
    differ.
    """
    kinds = table.columns()
    lists = [name for name in columns.values() if isinstance(kinds[name], (pl.List, pl.Array))]
    if columns["item"] not in lists:
        return table
    rows = table.rows.with_columns(
        pl.col(name).cast(pl.List(kinds[name].inner))  # type: ignore[attr-defined]
        for name in lists
    )
    sizes = [pl.col(name).list.len() for name in lists]
    unlike = pl.any_horizontal(size.ne_missing(sizes[0]) for size in sizes)
    bad = rows.filter(unlike).select(LINE).head(1).collect()
    if bad.height:
        raise InputError(
            f"{table.place(bad[LINE][0])}: the lists in {', '.join(map(repr, lists))} differ in"
            " length; give each item its value"
        )
    items = pl.col(columns["item"])  # null: a malformed row; empty: a session without items
    rows = rows.filter(items.is_null() | (items.list.len() > 0)).explode(lists)
    return dataclasses.replace(table, rows=rows)


Parsed = tuple[pl.Expr, list[tuple[str, pl.Expr]]]


def _missing(raw: pl.Expr, kind: pl.DataType) -> tuple[str, pl.Expr]:
    empty = raw.is_null()
    return "is missing", (empty | (raw == "")) if kind == pl.String else empty


def _parsed(table: Table, role: str, name: str, whole: bool, plain: bool) -> Parsed:
    """The value of column ``name`` in its ``role``, and its checks as (reason, true at a fault).

    whole: whether ids are integers. plain: as for ``ids.value``.
    """
    raw, kind = pl.col(name), table.columns()[name]
    missing = _missing(raw, kind)
    if role in IDS:
        what = f"{table.path}: column {name!r} ({role})"
        value = ids.value(table.rows, name, whole, what, plain)
        return value, [missing, ("is no whole number", value.is_null())]
    if role == "rating":
        value = raw.cast(pl.Float32, strict=False)
        return value, [
            missing,
            ("is not a number", value.is_null()),
            ("is not a finite number", ~value.is_finite()),
        ]
    return raw.cast(pl.String), [missing]


def _time(table: Table, name: str, found: times.Times, date_format: str | None) -> Parsed:
    raw = pl.col(name)
    missing = _missing(raw, table.columns()[name])
    unknown = "is neither a number of seconds nor a date"
    if date_format == "":
        unknown += " that is recognised (data.files.date_format names its format)"
    if date_format:
        unknown = f"does not match data.files.date_format={date_format!r}"
    return found.value, [missing, (unknown, found.value.is_null())]


def items(table: Table, item: str, whole: bool = True) -> pl.DataFrame:
    """The column ``item``, and the text columns as String, '' where a text is missing.

    Lists are joined by ', '; columns of structs and of lists of lists stay as they are. item: the
    name of the id column. whole: whether ids are integers. Raises InputError for a
    malformed line, and for null, negative or repeated ids.
    """
    if table.broken:
        raise InputError(f"{table.problem} ({table.broken} such lines)")
    text = {
        name: _text(pl.col(name), kind) for name, kind in table.columns().items() if name != item
    }
    if "item" in text:
        text["item text"] = text.pop("item")
    value = ids.value(table.rows, item, whole, f"{table.path}: column {item!r} (item)")
    frame = table.rows.select(LINE, item=value, **text).collect()
    check_items(frame, lambda row: table.place(frame[LINE][row]))
    return frame.drop(LINE)


def _text(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if nested(kind):
        return column
    if isinstance(kind, (pl.List, pl.Array)):
        column = column.cast(pl.List(pl.String)).list.join(", ")
    return column.cast(pl.String).fill_null("").str.strip_chars()
