"""Reads and checks tables of interactions and items, for all readers.

A row that cannot be used is never dropped silently: it is counted, the first row with each fault is
reported, and ``dataset.build`` refuses more than the tolerated share. No Python code runs per row.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import check_items

IDS = frozenset({"user", "item"})
# An integer id, or no id. '0123' is a string, since it would lose its zero as a number.
CANONICAL_INT = r"^(0|-?[1-9]\d{0,17})?$"
DATES = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
TAB = "\t"
NOWHERE = "\x01"  # a separator that no text contains, to read whole lines
LINE = "(line)"  # a name that no column of the user is likely to have
ENDINGS = (".parquet", ".csv", ".tsv", ".tab")  # text may be compressed, as .csv.gz

T = TypeVar("T")
Use = Callable[["Table"], T]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a source, lazily, with a column LINE that has the number of each row.

    unit: what LINE counts, for messages. broken: the number of lines that are no rows. problem: the
    message for the first of these.
    """

    path: str
    rows: pl.LazyFrame
    unit: str = "line"
    broken: int = 0
    problem: str = ""

    def place(self, line: int) -> str:
        """The place of a row, for messages."""
        return f"{self.path}:{line}" if self.unit == "line" else f"{self.path}, {self.unit} {line}"

    def columns(self) -> dict[str, pl.DataType]:
        """Name -> type of all columns but LINE."""
        return {name: kind for name, kind in self.rows.collect_schema().items() if name != LINE}


def delimited(path: Path, separator: str) -> Table:
    """A CSV or TSV file with a header line, with all columns as String; blank lines are skipped."""
    rows = pl.scan_csv(
        path, separator=separator, infer_schema=False, row_index_name=LINE, row_index_offset=2
    )
    # The filter reads all columns, so that polars checks the number of fields of every line.
    return Table(str(path), rows.filter(~pl.all_horizontal(pl.exclude(LINE).is_null())))


def well_formed(path: Path, separator: str) -> Table:
    """The well-formed rows of a file that ``delimited`` cannot read; the others are ``broken``."""
    text = (
        pl.read_csv(
            path,
            separator=NOWHERE,
            quote_char=None,
            has_header=False,
            new_columns=["text"],
            infer_schema=False,
        )
        .with_row_index(LINE, offset=1)
        .drop_nulls()
    )
    width = text["text"][0].count(separator) + 1
    other = re.escape(separator)
    field = f'(?:"(?:[^"]|"")*"|[^"{other}]*)'
    good = text["text"].str.contains(f"^{field}(?:{other}{field}){{{width - 1}}}$")
    body = io.BytesIO("\n".join(text["text"].filter(good)).encode())
    rows = pl.read_csv(body, separator=separator, infer_schema=False).with_columns(
        text[LINE].filter(good)[1:]
    )
    broken = text[LINE].filter(~good)
    problem = ""
    if len(broken):
        problem = (
            f"{path}:{broken[0]}: no row of {width} fields; a text with a separator or a quote must"
            " be in quotes"
        )
    return Table(str(path), rows.lazy(), broken=len(broken), problem=problem)


def lines(path: Path, separator: str, names: Sequence[str]) -> Table:
    """A file without header or quotes; the separator may have several characters, such as '::'."""
    whole = pl.scan_csv(
        path,
        separator=NOWHERE,
        quote_char=None,
        has_header=False,
        new_columns=["text"],
        infer_schema=False,
        row_index_name=LINE,
        row_index_offset=1,
    )
    parts = (
        pl.col("text")
        .str.splitn(separator, len(names))
        .struct.rename_fields(list(names))
        .alias("parts")
    )
    return Table(
        str(path), whole.filter(pl.col("text").is_not_null()).select(LINE, parts).unnest("parts")
    )


def opened(path: str | Path, use: Use[T], *, what: str, field: str) -> T:
    """``use(table)`` for the table in a .parquet, .csv or .tsv file.

    what, field: the content of the table and the configuration field of its path, for messages.
    Raises InputError if the file cannot be read.
    """
    path = existing(path, what, field)
    kind = re.sub(r"\.(gz|zst)$", "", path.name.lower())
    if not kind.endswith(ENDINGS):
        form = "folder" if path.is_dir() else "file with an ending that is not read"
        raise InputError(
            f"{path} ({what}) is a {form}; give a file that ends in {', '.join(ENDINGS)}"
        )
    try:
        if kind.endswith(".parquet"):
            rows = pl.scan_parquet(path, row_index_name=LINE, row_index_offset=1)
            return use(Table(str(path), rows, unit="row"))
        separator = TAB if kind.endswith((".tsv", ".tab")) else ","
        try:
            return use(delimited(path, separator))
        except pl.exceptions.ComputeError:
            return use(well_formed(path, separator))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{path} can't be read ({str(error).splitlines()[0]}); it must be Parquet, or UTF-8"
            " text with a header line and commas (.csv) or tabs (.tsv)"
        ) from None


def existing(path: str | Path, what: str, field: str) -> Path:
    """The path; raises InputError if it is missing or an empty file.

    what, field: as for ``opened``.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder ({what}); check {field}")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty ({what}); was its download cut off?")
    return path


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
            " separated by commas (.csv) or tabs (.tsv): convert the file, or change its ending"
        )
    for role, column in names.items():
        if column not in have and role not in optional:
            raise InputError(
                f"{table.path} has no column {column!r} for {role}{nearest(column, have)};"
                f" {fix.format(role=role)}"
            )
    return {role: column for role, column in names.items() if column in have}


def whole_numbers(rows: pl.LazyFrame, column: str) -> bool:
    """Whether all ids in ``column`` can be converted to Int64 and back."""
    kind = rows.collect_schema()[column]
    if kind != pl.String:
        return kind.is_numeric()
    all_integers = rows.select(pl.col(column).str.contains(CANONICAL_INT).all())
    return bool(all_integers.collect(engine="streaming").item())


def interactions(
    table: Table, columns: Mapping[str, str], whole: frozenset[str] = IDS
) -> tuple[pl.DataFrame, dict[str, int], tuple[str, ...]]:
    """The usable rows, and the counts and problems of RawData.

    columns: role -> column, with the roles 'user', 'item', 'rating', 'timestamp', 'split'. whole:
    those of 'user' and 'item' that have integer ids; other ids are strings.
    """
    parsed = {role: _parsed(table, role, name, role in whole) for role, name in columns.items()}
    checks = [(role, reason, bad) for role, (_, found) in parsed.items() for reason, bad in found]
    fault = pl.lit(0, pl.UInt8)  # 0, or 1 + the index of the first check that a row fails
    for code, (_, _, bad) in reversed(list(enumerate(checks, start=1))):
        fault = pl.when(bad.fill_null(False)).then(pl.lit(code, pl.UInt8)).otherwise(fault)
    values = [value.alias(f"{role} value") for role, (value, _) in parsed.items()]
    frame = table.rows.select(LINE, *values, fault=fault).collect(engine="streaming")

    faulty = frame.filter(pl.col("fault") > 0)
    problems = [table.problem] if table.broken else []
    firsts = faulty.unique("fault", keep="first", maintain_order=True)
    for line, code in firsts.select(LINE, "fault").iter_rows():
        role, reason, _ = checks[code - 1]
        row = table.rows.filter(pl.col(LINE) == line)
        text = row.select(pl.col(columns[role]).cast(pl.String)).collect().item()
        problem = f"{role} {text!r} {reason}" if text else f"there is no {role}"
        problems.append(f"{table.place(line)}: {problem}")
    counts = {"rows": frame.height + table.broken, "malformed": faulty.height + table.broken}
    good = frame.filter(pl.col("fault") == 0) if faulty.height else frame
    rows = good.select(pl.col(f"{role} value").alias(role) for role in columns)
    return rows, counts, tuple(problems)


def _parsed(
    table: Table, role: str, name: str, whole: bool
) -> tuple[pl.Expr, list[tuple[str, pl.Expr]]]:
    """The value of column ``name`` in its ``role``, and its checks as (reason, true at a fault).

    whole: whether ids are integers.
    """
    raw = pl.col(name)
    kind = table.columns()[name]
    missing = ("is missing", raw.is_null() | (raw == "") if kind == pl.String else raw.is_null())
    if role in IDS:
        if not (
            kind == pl.String or kind.is_numeric() or isinstance(kind, (pl.Categorical, pl.Enum))
        ):
            raise InputError(
                f"{table.path}: column {name!r} ({role}) is of type {kind}; ids are numbers or"
                " strings"
            )
        value = _id(raw, whole)
        broken = value.is_null() | ((value != raw) if kind.is_float() else pl.lit(False))
        negative = value < 0 if whole else value.str.contains(r"^-\d+$")
        return value, [
            missing,
            ("is no whole number", broken),
            ("is negative; ids start at 0", negative),
        ]
    if role == "rating":
        value = raw.cast(pl.Float32, strict=False)
        return value, [
            missing,
            ("is not a number", value.is_null()),
            ("is not a finite number", ~value.is_finite()),
        ]
    if role == "timestamp":
        value = _time(table, raw, kind)
        return value, [missing, ("is neither a number of seconds nor a date", value.is_null())]
    return raw.cast(pl.String), [missing]


def _id(column: pl.Expr, whole: bool) -> pl.Expr:
    if whole:
        return column.cast(pl.Int64, strict=False)
    text = column.cast(pl.String)
    return pl.when(text.str.len_bytes() > 0).then(text)


def _time(table: Table, column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Seconds since 1970 for dates, numbers unchanged.

    Dates as text have the format of the first row.
    """
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


def items(table: Table, item: str, whole: bool = True) -> pl.DataFrame:
    """The column ``item`` and the text columns as String, '' where a text is missing.

    item: the name of the id column. whole: whether ids are integers. Raises InputError for a
    malformed line, and for null, negative or repeated ids.
    """
    if table.broken:
        raise InputError(f"{table.problem} ({table.broken} such lines)")
    text = {
        name: _text(pl.col(name), kind) for name, kind in table.columns().items() if name != item
    }
    if "item" in text:
        text["item text"] = text.pop("item")
    frame = table.rows.select(LINE, item=_id(pl.col(item), whole), **text).collect()
    check_items(frame, lambda row: table.place(frame[LINE][row]))
    return frame.drop(LINE)


def _text(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, (pl.List, pl.Array)):
        column = column.cast(pl.List(pl.String)).list.join(", ")
    return column.cast(pl.String).fill_null("").str.strip_chars()
