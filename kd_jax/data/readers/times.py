"""Times as they are written: numbers, dates, and dates as text, without loss of precision."""

from __future__ import annotations

import dataclasses
import math

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.readers.table import Table

# Dates as text that are recognised, as strftime formats. A time may follow those of DAYS, and a
# zone may follow a time. Dates whose day and month could be confused (03/04/2024) are left out.
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%G-W%V-%u", "%GW%V%u")
CLOCKS = ("%H:%M:%S%.f", "%H:%M", "%H%M%S")
OTHERS = (
    "%a, %d %b %Y %H:%M:%S%z",  # e-mail: Tue, 02 Jan 2024 03:04:05 +0000
    "%a %b %d %H:%M:%S%z %Y",  # Twitter: Tue Jan 02 03:04:05 +0000 2024
    "%a %b %d %H:%M:%S %Y",  # C's asctime
    "%m %d, %Y",  # Amazon's reviewTime: 01 2, 2024
    "%b %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
)
FORMATS = (
    tuple(
        form
        for day in DAYS
        for form in (day, *(f"{day}T{clock}{zone}" for clock in CLOCKS for zone in ("", "%z")))
    )
    + OTHERS
)
NUMBER = r"^[+-]?\d{1,19}(\.\d*)?$"
KNOWN = "a number, or a date such as 2024-05-01 12:00:00+02:00 (docs/data.md lists the formats)"
SAMPLE = 1000
COMPACT = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}  # dates that are written as whole numbers
YEARS = (1900, 2100)  # of them
NS = 9_223_372_036  # seconds from 1970 that fit into 64 bits of nanoseconds


@dataclasses.dataclass(frozen=True)
class Times:
    """A column of times.

    value: an expression, Int64, null where there is no time. unit: 's', 'ms', 'us' or 'ns' since
    1970; '' for numbers, whose unit the column does not tell. digits: value is the written number
    times 10^digits. source: what was read, for people.
    """

    value: pl.Expr
    unit: str
    digits: int
    source: str


def find(table: Table, column: str, form: str = "", plain: bool = False) -> Times:
    """How the times in ``column`` are written.

    form: the strftime format of dates as text; '': it is found. plain: numbers as text are taken to
    be whole where the first ones are, and others become null. Raises InputError for a column of
    another type.
    """
    rows = table.rows
    raw, kind = pl.col(column), rows.collect_schema()[column]
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        raw, kind = raw.cast(pl.String), pl.String()
    if kind == pl.Date:
        return Times(raw.dt.epoch("s").cast(pl.Int64), "s", 0, "dates")
    if isinstance(kind, pl.Datetime):
        zone = kind.time_zone or "no zone, taken as UTC"
        return Times(raw.dt.epoch(kind.time_unit), kind.time_unit, 0, f"dates with times ({zone})")
    if kind == pl.String:
        return _text(rows, column, form, plain)
    if kind.is_integer():
        if compact := _compact(rows, raw):
            return compact
        return Times(raw.cast(pl.Int64, strict=False), "", 0, "whole numbers")
    if kind.is_numeric():
        return _fractions(rows, raw.cast(pl.Float64))
    raise InputError(
        f"{table.path}: column {column!r} (timestamp) is of type {kind}; times are {KNOWN}"
    )


def _fractions(rows: pl.LazyFrame, raw: pl.Expr) -> Times:
    """Floating-point numbers, with as many digits after the point as 64 bits hold."""
    finite = pl.when(raw.is_finite()).then(raw)
    largest, whole = (
        rows.select(
            finite.abs().max().alias("largest"), (finite == finite.floor()).all().alias("whole")
        )
        .collect(engine="streaming")
        .row(0)
    )
    digits = 0 if whole or largest is None else _places(largest)
    # 64-bit floats have 17 digits; what follows is no part of the written number
    kept = digits and min(digits, max(0, 17 - math.ceil(math.log10(max(largest, 1)))))
    value = (finite * 10**kept).round().cast(pl.Int64, strict=False) * 10 ** (digits - kept)
    return Times(value, "", digits, "numbers")


def _places(largest: float) -> int:
    return next((digits for digits in (9, 6, 3) if largest * 10**digits < 2**63), 0)


def _compact(rows: pl.LazyFrame, raw: pl.Expr) -> Times | None:
    """Dates that are written as numbers, 20240501 or 20240501123000, if all values are such."""
    text = raw.cast(pl.String)
    sample = _sample(rows, text)
    length = len(sample[0]) if len(sample) else 0
    if length not in COMPACT or not (sample.str.len_bytes() == length).all():
        return None
    # chrono reads %H%M%S only after a separator of the date
    parts = text.str.replace(r"^(\d{8})(\d{6})$", "${1}T$2")
    form = COMPACT[length].replace("%d%H", "%dT%H")
    date = parts.str.to_datetime(form, strict=False, time_unit="us")
    good = date.dt.year().is_between(*YEARS) & (text.str.len_bytes() == length)
    every = rows.select(good.fill_null(False).filter(raw.is_not_null()).all())
    if not every.collect(engine="streaming").item():
        return None
    return Times(date.dt.epoch("s").cast(pl.Int64), "s", 0, f"dates as numbers ({form})")


def _sample(rows: pl.LazyFrame, text: pl.Expr) -> pl.Series:
    """The first values that are not null; the rest of the file is not read."""
    return rows.select(text=text).drop_nulls().head(SAMPLE).collect()["text"]


def _text(rows: pl.LazyFrame, column: str, form: str, plain: bool) -> Times:
    raw = pl.col(column).str.strip_chars()
    given = raw.drop_nulls().filter(raw.drop_nulls() != "")
    if form:
        return _dates(rows, raw, given, (form,))
    sample = _sample(rows, pl.when(raw != "").then(raw))
    numbers = sample.str.contains(NUMBER)
    if len(sample) and numbers.sum() * 2 >= len(sample):
        lengths = sample.str.len_bytes()
        compact = lengths[0] in COMPACT and _compact(rows, pl.when(raw != "").then(raw))
        if compact:
            return compact
        if plain and not sample.str.contains(".", literal=True).any():
            return Times(raw.cast(pl.Int64, strict=False), "", 0, "whole numbers")
        return _decimals(rows, raw)
    normal = _normal(raw)
    known = sample.to_frame(column).select(normal).to_series()
    forms = [form for form in FORMATS if _fits(known, form)]
    found = _dates(rows, normal, given, tuple(forms))
    left = rows.filter(found.value.is_null() & raw.is_not_null() & (raw != ""))
    rest = left.select(normal.head(SAMPLE)).collect(engine="streaming").to_series()
    more = [form for form in FORMATS if form not in forms and _fits(rest, form)]
    return _dates(rows, normal, given, (*forms, *more)) if more else found


def _fits(values: pl.Series, form: str) -> bool:
    return values.str.to_datetime(form, strict=False, time_unit="us").is_not_null().any()


def _normal(raw: pl.Expr) -> pl.Expr:
    """Times in one notation: T before the clock, the zone as +0000, a point before fractions."""
    return (
        raw.str.replace(r"(?i)\s*(?:UTC|GMT|Z)(\s+\d{4})?$", "+0000$1")
        .str.replace(r"\s*([+-]\d{2}):?(\d{2})(\s+\d{4})?$", "$1$2$3")
        .str.replace(r"([T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)\s*([+-]\d{2})$", "${1}${2}00")
        .str.replace(r"(:\d{2}),(\d)", "$1.$2")
        .str.replace(r"^(\d{4}-?W\d{2})$", "$1-1")
        .str.replace(r"^(\S*\d)\s+(\d{1,2}:?\d{2})", "${1}T$2")
    )


def _dates(
    rows: pl.LazyFrame,
    text: pl.Expr,
    given: pl.Expr,
    forms: tuple[str, ...],
) -> Times:
    """Dates as text in any of ``forms``, as microseconds, or nanoseconds where they are given."""
    fine = rows.select(given.str.contains(r"\.\d{7}").any()).collect(engine="streaming").item()
    unit = "ns" if fine else "us"
    if not forms:
        return Times(pl.lit(None, pl.Int64), "s", 0, "text")
    values = []
    for form in forms:
        # polars 2.1 wraps years beyond 1677 to 2262 around in nanoseconds, without an error.
        value = _epoch(text, form, "us")
        if fine:
            value = pl.when(value.abs() < NS * 10**6).then(_epoch(text, form, "ns"))
        values.append(value)
    return Times(pl.coalesce(values), unit, 0, f"dates as text ({', '.join(forms[:3])})")


def _epoch(text: pl.Expr, form: str, unit: str) -> pl.Expr:
    date = text.str.to_datetime(form, strict=False, time_unit=unit)  # type: ignore[arg-type]
    return date.dt.epoch(unit)  # type: ignore[arg-type]


def _decimals(rows: pl.LazyFrame, raw: pl.Expr) -> Times:
    """Numbers as text, to the last digit."""
    points = rows.select(raw.str.contains(".", literal=True).any())
    if not points.collect(engine="streaming").item():
        whole = raw.cast(pl.Int64, strict=False)
        number = raw.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)  # 1.6e9
        return Times(whole.fill_null(number), "", 0, "whole numbers")
    parts = raw.str.extract_groups(r"^([+-]?)(\d{1,19})(?:\.(\d*))?$")
    fraction = parts.struct.field("3").fill_null("").str.strip_chars_end("0")
    longest = rows.select(fraction.str.len_bytes().max()).collect(engine="streaming").item() or 0
    whole = parts.struct.field("2").cast(pl.Float64, strict=False).max()
    largest = rows.select(whole).collect(engine="streaming").item() or 0.0
    digits = min(-(-longest // 3) * 3, _places(largest + 1))
    exact = parts.struct.field("2").cast(pl.Int64, strict=False) * 10**digits
    exact += fraction.str.pad_end(9, "0").str.head(digits).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.when(parts.struct.field("1") == "-").then(-1).otherwise(1)
    other = (raw.cast(pl.Float64, strict=False) * 10**digits).round().cast(pl.Int64, strict=False)
    return Times((exact * sign).fill_null(other), "", digits, "numbers")
