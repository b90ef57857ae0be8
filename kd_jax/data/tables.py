"""RawData, and what makes it from a table of rows: one check for every source, no Python per row.

A row that can't be used is never dropped in silence: it is counted, its first place and reason are kept, and
``dataset.build`` refuses more than the allowed share of such rows.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from kd_jax.errors import InputError, nearest

CANONICAL_INT = r"^(0|-?[1-9]\d{0,17})$"  # '0123' is a string: as a number it would lose its zero
NOWHERE = "\x01"  # a separator that no text has: the line stays whole
SHOWN = 5  # ids listed in an error
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RawData:
    """Interactions and items as read, before any filter.

    interactions: ``user``, ``item`` (Int64 or String), and where known ``rating`` Float32, ``timestamp`` Int64 (seconds,
        or any count that grows), ``split`` String; in file order.
    items: ``item`` (same type), then its text columns in template order; the first is the title that is displayed.
    counts: 'rows' read and 'malformed' ones among them, which were left out.
    problems: the first malformed row of each kind, each as 'file:line: what'.
    """

    name: str
    interactions: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A file as lazy rows with a ``line`` column: where a row stands in the file, in units of ``unit``."""

    path: str
    rows: pl.LazyFrame
    unit: str = "line"
    broken: tuple[tuple[int, str], ...] = ()  # (line, reason) of lines that aren't rows at all

    def place(self, line: int) -> str:
        return f"{self.path}:{line}" if self.unit == "line" else f"{self.path}, {self.unit} {line}"

    def columns(self) -> dict[str, pl.DataType]:
        return {name: kind for name, kind in self.rows.collect_schema().items() if name != "line"}


def delimited(path: Path, separator: str) -> Table:
    """A CSV or TSV file with a header line, every column as String. Blank lines are skipped."""
    rows = pl.scan_csv(path, separator=separator, infer_schema=False, row_index_name="line", row_index_offset=2)
    # Looking at every column makes polars check the number of fields, which it skips for columns nobody asks for.
    return Table(str(path), rows.filter(~pl.all_horizontal(pl.exclude("line").is_null())))


def mended(path: Path, separator: str) -> Table:
    """As ``delimited``, for a file that polars refuses: rows of the right form are kept, the others are ``broken``."""
    raw = pl.read_csv(path, separator=NOWHERE, quote_char=None, has_header=False, new_columns=["text"], infer_schema=False)
    raw = raw.with_row_index("line", offset=1).filter(pl.col("text").is_not_null())
    width = raw["text"][0].count(separator) + 1
    other = re.escape(separator)
    field = f'(?:"(?:[^"]|"")*"|[^"{other}]*)'
    good = raw["text"].str.contains(f"^{field}(?:{other}{field}){{{width - 1}}}$")
    text = io.BytesIO("\n".join(raw["text"].filter(good)).encode())
    rows = pl.read_csv(text, separator=separator, infer_schema=False).with_columns(raw["line"].filter(good)[1:])
    broken = [(line, f"is no row of {width} fields (is a text with {separator!r} in quotes?)") for line in raw["line"].filter(~good)]
    return Table(str(path), rows.lazy(), broken=tuple(broken))


def lines(path: Path, separator: str, names: Sequence[str]) -> Table:
    """A file without header or quotes whose separator may have several characters, such as '::'."""
    whole = pl.scan_csv(path, separator=NOWHERE, quote_char=None, has_header=False, new_columns=["text"], infer_schema=False,
                        row_index_name="line", row_index_offset=1)
    parts = pl.col("text").str.splitn(separator, len(names)).struct.rename_fields(list(names)).alias("parts")
    return Table(str(path), whole.filter(pl.col("text").is_not_null()).select("line", parts).unnest("parts"))


def parquet(path: Path) -> Table:
    return Table(str(path), pl.scan_parquet(path, row_index_name="line", row_index_offset=1), unit="row")


def opened(path: str | Path, what: str, use: Callable[[Table], T]) -> T:
    """``use`` of the table in a .parquet, .csv or .tsv file. Raises InputError if it can't be read."""
    path = existing(path, what)
    kind = path.name.lower()
    try:
        if kind.endswith(".parquet"):
            return use(parquet(path))
        separator = "\t" if kind.endswith((".tsv", ".tab")) else ","
        try:
            return use(delimited(path, separator))
        except pl.exceptions.ComputeError:
            return use(mended(path, separator))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} can't be read ({str(error).splitlines()[0]}); it must be Parquet, or UTF-8 text with "
                         "commas (.csv) or tabs (.tsv) and a header line") from None


def listed(values: pl.Series) -> str:
    """'1, 2, 3, …': the first few values of an error."""
    return ", ".join(map(str, values.head(SHOWN).to_list())) + (", …" if len(values) > SHOWN else "")


def find_columns(table: Table, wanted: Mapping[str, str], optional: frozenset[str] = frozenset()) -> dict[str, str]:
    """role -> column name, of the ``wanted`` that the table has. Raises InputError if one is not there.

    optional: roles that may be absent.
    """
    have = table.columns()
    for role, column in wanted.items():
        if column not in have and role not in optional:
            raise InputError(f"{table.path} has no column {column!r} (for {role}){nearest(column, have)}; "
                             "say which column it is with data.columns")
    return {role: column for role, column in wanted.items() if column in have}


def whole_numbers(rows: pl.LazyFrame, column: str) -> bool:
    """Whether the ids in ``column`` can be kept as Int64 without losing anything."""
    kind = rows.collect_schema()[column]
    if kind != pl.String:
        return kind.is_numeric()
    return bool(rows.select(pl.col(column).str.contains(CANONICAL_INT).all()).collect(engine="streaming").item())


def _id(column: pl.Expr, whole: bool) -> pl.Expr:
    text = column.cast(pl.String)
    return column.cast(pl.Int64, strict=False) if whole else pl.when(text.str.len_bytes() > 0).then(text)


DATES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def _time(table: Table, column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Seconds since 1970 of a date, or the number as it is. Dates in text have one format, that of the first row."""
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        return column.dt.epoch("s").cast(pl.Int64)
    number = column.cast(pl.Int64, strict=False)
    if kind != pl.String:
        return number
    first = table.rows.select(column.drop_nulls().head(1)).collect().to_series()
    for form in DATES:
        if len(first) and not first.str.to_datetime(form, strict=False).has_nulls():
            return column.str.to_datetime(form, strict=False).dt.epoch("s").cast(pl.Int64)
    return number.fill_null(column.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False))


IDS = frozenset({"user", "item"})


def interactions(
    table: Table, columns: Mapping[str, str], whole: frozenset[str] = IDS
) -> tuple[pl.DataFrame, dict[str, int], tuple[str, ...]]:
    """The usable rows, counts and problems, as RawData has them.

    columns: role -> column, the roles being 'user', 'item', 'rating', 'timestamp', 'split'.
    whole: of 'user' and 'item' those whose ids are whole numbers; the others are strings.
    """
    parsed = {role: _parse(table, role, name, role in whole) for role, name in columns.items()}
    reasons = [(role, reason) for role, (_, checks) in parsed.items() for reason, _ in checks]
    fault = pl.lit(0, pl.UInt8)
    for code, bad in reversed(list(enumerate((bad for _, checks in parsed.values() for _, bad in checks), start=1))):
        fault = pl.when(bad.fill_null(False)).then(pl.lit(code, pl.UInt8)).otherwise(fault)
    values = [value.alias(f"{role} value") for role, (value, _) in parsed.items()]
    frame = table.rows.select("line", *values, fault=fault).collect(engine="streaming")
    faulty = frame.filter(pl.col("fault") > 0)
    problems = [f"{table.place(line)}: {reason}" for line, reason in table.broken[:1]]
    for line, code in faulty.unique("fault", keep="first", maintain_order=True).select("line", "fault").iter_rows():
        role, reason = reasons[code - 1]
        text = table.rows.filter(pl.col("line") == line).select(pl.col(columns[role]).cast(pl.String)).collect().item()
        problems.append(f"{table.place(line)}: {f'no {role}' if text in (None, '') else f'{role} {text!r}'} {reason}".rstrip())
    counts = {"rows": frame.height + len(table.broken), "malformed": faulty.height + len(table.broken)}
    good = frame.filter(pl.col("fault") == 0) if faulty.height else frame
    return good.select(pl.col(f"{role} value").alias(role) for role in columns), counts, tuple(problems)


def _parse(table: Table, role: str, name: str, whole: bool) -> tuple[pl.Expr, list[tuple[str, pl.Expr]]]:
    """The value of a column in its ``role``, and what may be wrong with it as (reason, where that is so)."""
    raw, kind = pl.col(name), table.columns()[name]
    missing = ("", raw.is_null() | (raw == "") if kind == pl.String else raw.is_null())
    if role in IDS:
        if not (kind == pl.String or kind.is_numeric() or isinstance(kind, (pl.Categorical, pl.Enum))):
            raise InputError(f"{table.path}: column {name!r} ({role}) is of type {kind}; ids are whole numbers or strings")
        value = _id(raw, whole)
        broken = value.is_null() | ((value != raw) if kind.is_float() else pl.lit(False))
        negative = value < 0 if whole else value.str.contains(r"^-\d+$")
        return value, [missing, ("is no whole number", broken), ("is negative; ids start at 0", negative)]
    if role == "rating":
        value = raw.cast(pl.Float32, strict=False)
        return value, [missing, ("is not a number", value.is_null()), ("is not a finite number", ~value.is_finite())]
    if role == "timestamp":
        value = _time(table, raw, kind)
        return value, [missing, ("is neither a number of seconds nor a date", value.is_null())]
    return raw.cast(pl.String), [missing]


def items(table: Table, item: str, whole: bool = True) -> pl.DataFrame:
    """(item, text columns as String, '' where there is none).

    Raises InputError on a line that is no row, and on null, negative or repeated ids.
    """
    for line, reason in table.broken[:1]:
        raise InputError(f"{table.place(line)}: {reason}; {len(table.broken)} such lines, mend them")
    text = [_text(pl.col(name), kind).alias(name) for name, kind in table.columns().items() if name != item]
    frame = table.rows.select("line", *text, _id(pl.col(item), whole).alias("item")).collect()
    check_items(frame, lambda row: table.place(frame["line"][row]))
    return frame.select("item", pl.exclude("item", "line"))


def _text(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    text = column.cast(pl.List(pl.String)).list.join(", ") if isinstance(kind, (pl.List, pl.Array)) else column.cast(pl.String)
    return text.fill_null("").str.strip_chars()


def check_items(frame: pl.DataFrame, place: Callable[[int], str] = lambda row: f"items table, row {row}") -> None:
    """Raises InputError if an id is null, negative or there twice. place: row number -> where that is."""
    ids = frame["item"]
    if ids.has_nulls():
        raise InputError(f"{place(ids.is_null().arg_true()[0])}: an item has no id ({ids.null_count()} such rows); give each item its id")
    negative = ids < 0 if ids.dtype.is_integer() else ids.str.contains(r"^-\d+$")
    if negative.any():
        raise InputError(f"{place(negative.arg_true()[0])}: item id {ids.filter(negative)[0]} is negative; ids start at 0")
    if ids.n_unique() < len(ids):
        repeated = ids.filter(~ids.is_first_distinct())
        raise InputError(f"{place((~ids.is_first_distinct()).arg_true()[0])}: item id {repeated[0]!r} is there twice "
                         f"({len(repeated)} repeated: {listed(repeated)}); keep one row per item")


def existing(path: str | Path, what: str) -> Path:
    """The path, if it is a file that is not empty; otherwise InputError."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file ({what}); check data.path")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty ({what}); is it a download that was cut off?")
    return path


def accept(raw: RawData, max_malformed: float) -> dict[str, int]:
    """The counts of ``raw``. Raises InputError if it isn't as RawData promises, or too much of it was malformed."""
    frame = raw.interactions
    counts = {"rows": frame.height, "malformed": 0} | raw.counts
    if counts["malformed"] > max_malformed * counts["rows"]:
        raise InputError(f"{counts['malformed']:,} of {counts['rows']:,} rows are malformed: {'; '.join(raw.problems)}; mend them, "
                         f"or allow such a share with data.max_malformed (now {max_malformed:g})")
    if not frame.height:
        raise InputError(f"{raw.name}: there is no interaction; the file holds no rows")
    for name in ("user", "item"):
        if name not in frame.columns:
            raise InputError(f"{raw.name}: the interactions have no column {name!r}{nearest(name, frame.columns)}")
        bad = frame[name].is_null() | (frame[name] < 0 if frame[name].dtype.is_integer() else False)
        if bad.any():
            raise InputError(f"{raw.name}: interactions, row {bad.arg_true()[0]}: {name} id {frame[name].filter(bad)[0]} is "
                             f"{'negative' if not frame[name].filter(bad).has_nulls() else 'missing'} ({int(bad.sum()):,} such rows)")
    for name in ("rating", "timestamp"):
        if name in frame.columns:
            bad = ~frame[name].cast(pl.Float64).is_finite().fill_null(False)
            if bad.any():
                raise InputError(f"{raw.name}: interactions, row {bad.arg_true()[0]}: {name} is {frame[name].filter(bad)[0]}, not a "
                                 f"finite number ({int(bad.sum()):,} such rows)")
    check_items(raw.items)
    if raw.items["item"].dtype != frame["item"].dtype:
        raise InputError(f"{raw.name}: item ids are {frame['item'].dtype} in the interactions and {raw.items['item'].dtype} in the "
                         "items table; make them the same type")
    return counts
