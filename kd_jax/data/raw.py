"""RawData, the interactions and items that a reader returns, and the checks on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import polars as pl

from kd_jax.core.errors import InputError, nearest

SHOWN = 5  # ids listed in an error


@dataclasses.dataclass(frozen=True)
class RawData:
    """Interactions and items as read, before any filter.

    interactions: ``user``, ``item`` (Int64 or String) and, where known, ``rating`` (Float32),
    ``timestamp`` (Int64), ``split`` and ``event`` (String); in the order of the source. items:
    ``item`` (of the same type), then text columns, the first of which is shown as the title;
    columns may be nested. counts: 'rows' that were read, and 'malformed' rows among them, which are
    left out. problems: the first malformed row of each kind, as 'file:line: what is wrong'. path,
    items_path: the files of the two tables; '' where there is none. untimed: a hint how to name a
    timestamp column that may have been forgotten, with the unused columns; '' otherwise.
    impressions: what users were shown, one row per list, or None where the source has no record of
    it: ``user`` and ``timestamp`` as above, ``items`` (List of item ids, in the order shown; they
    need not be in ``items``) and ``clicked`` (List of Boolean, one per item); perhaps ``split`` as
    above. time_unit, time_digits: a timestamp is the written number times 10^time_digits, in 's',
    'ms', 'us' or 'ns' since 1970; '' where the source does not tell its unit. notes: lines about
    what was read, for people.
    """

    name: str
    interactions: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    path: str = ""
    items_path: str = ""
    untimed: str = ""
    impressions: pl.DataFrame | None = None
    time_unit: str = ""
    time_digits: int = 0
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The source of the interactions, for messages."""
        return self.path or self.name


def listed(values: pl.Series) -> str:
    """'1, 2, 3, …': the first few values, for an error."""
    more = ", …" if len(values) > SHOWN else ""
    return ", ".join(map(str, values.head(SHOWN).to_list())) + more


def accept(raw: RawData, max_malformed: float) -> dict[str, int]:
    """Checks ``raw`` and returns its counts.

    max_malformed: the tolerated share of malformed rows. Raises InputError if more rows are
    malformed, or if ``raw`` breaks the contract of RawData.
    """
    frame = raw.interactions
    counts = {"rows": frame.height, "malformed": 0} | raw.counts
    malformed, rows = counts["malformed"], counts["rows"]
    if malformed > max_malformed * rows or (rows and malformed == rows):
        fix = "fix them"
        if malformed < rows:
            fix += f", or tolerate such a share: data.max_malformed (now {max_malformed:g})"
        raise InputError(
            f"{'; '.join(raw.problems)} ({malformed:,} of {rows:,} rows are malformed); {fix}"
        )
    if not frame.height:
        raise InputError(f"{raw.place}: there is no interaction; give a file with rows")
    for name in ("user", "item"):
        if name not in frame.columns:
            raise InputError(
                f"{raw.place}: the interactions have no column"
                f" {name!r}{nearest(name, frame.columns)}"
            )
        refuse(raw, name, frame[name].is_null(), "is missing")
    for name in {"rating", "timestamp"} & set(frame.columns):
        refuse(
            raw,
            name,
            ~frame[name].cast(pl.Float64).is_finite().fill_null(False),
            "is not a finite number",
        )
    check_items(raw.items)
    if raw.items["item"].dtype != frame["item"].dtype:
        raise InputError(
            f"{raw.place}: item ids are {frame['item'].dtype} in the interactions and "
            f"{raw.items['item'].dtype} in the items table; make them the same"
        )
    _check_impressions(raw)
    return counts


def _check_impressions(raw: RawData) -> None:
    """Raises InputError unless ``raw.impressions`` has the columns and types of RawData."""
    if raw.impressions is None:
        return
    types = {
        "user": raw.interactions["user"].dtype,
        "timestamp": pl.Int64,
        "items": pl.List(raw.interactions["item"].dtype),
        "clicked": pl.List(pl.Boolean),
    }
    found = raw.impressions.schema
    for name, kind in types.items():
        if found.get(name) != kind:
            raise InputError(
                f"{raw.place}: impressions, column {name!r} is {found.get(name, 'missing')}; it"
                f" must be {kind}"
            )
    lengths = raw.impressions.select(
        unlike=pl.col("items").list.len() != pl.col("clicked").list.len()
    )["unlike"]
    if lengths.any():
        raise InputError(
            f"{raw.place}: impressions, row {lengths.arg_true()[0]}: 'items' and 'clicked' differ"
            " in length; give each shown item whether it was clicked"
        )


def refuse(raw: RawData, name: str, bad: pl.Series, reason: str) -> None:
    """Raises InputError if a row is ``bad``; name: the column, reason: what is wrong."""
    if bad.any():
        row = bad.arg_true()[0]
        raise InputError(
            f"{raw.place}: interactions, row {row}: {name} {raw.interactions[name][row]} {reason} "
            f"({bad.sum():,} such rows); fix them"
        )


def nested(kind: pl.DataType) -> bool:
    """Whether a column has structs, or lists of lists: more than words."""
    inner = getattr(kind, "inner", None)
    if inner is None:
        return isinstance(kind, pl.Struct)
    return isinstance(inner, (pl.List, pl.Array, pl.Struct))


def check_items(
    frame: pl.DataFrame, place: Callable[[int], str] = "items table, row {}".format
) -> None:
    """Raises InputError if an id is null or repeated; place: row -> text for messages."""
    ids = frame["item"]
    if ids.has_nulls():
        raise InputError(
            f"{place(ids.is_null().arg_true()[0])}: the item has no id, or one of another type "
            f"({ids.null_count()} such rows); give each item its id"
        )
    again = (~ids.is_first_distinct()).arg_true()
    if len(again):
        raise InputError(
            f"{place(again[0])}: item id {ids[again[0]]!r} is there twice ({len(again)} repeated: "
            f"{listed(ids.gather(again))}); keep one row per item"
        )
