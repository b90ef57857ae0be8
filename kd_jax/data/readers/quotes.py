"""Double quotes in text files: which are marks of fields, and which are part of the text."""

from __future__ import annotations

import re

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.readers.table import LINE

NUMBER = r"^\s*-?\d+(\.\d+)?\s*$"
CHECKED = 1000  # fields of several lines that are looked at


def removed(column: pl.Expr) -> pl.Expr:
    """The fields without the quotes around them; doubled quotes inside become single ones."""
    whole = column.str.starts_with('"') & column.str.ends_with('"') & (column.str.len_bytes() > 1)
    inner = column.str.head(-1).str.tail(-1).str.replace_all('""', '"', literal=True)
    return pl.when(whole).then(inner).otherwise(column).name.keep()


def check_closed(path: str, rows: pl.LazyFrame, field: str) -> None:
    """Raises InputError for a row that ends early in a field with an open quote.

    The text of such a field goes on in the next line. rows: read without quotes. field: the section
    of the options of text files.
    """
    names = [name for name in rows.collect_schema() if name != LINE]
    opens = [
        pl.col(name).str.starts_with('"') & ~pl.col(name).str.slice(1).str.contains('"')
        for name in names
    ]
    short = pl.col(names[-1]).is_null() if len(names) > 1 else pl.lit(False)
    found = rows.filter(short & pl.any_horizontal(opens)).select(LINE).head(1).collect()
    if found.height:
        raise InputError(
            f"{path}:{found[LINE][0]}: a quote opens and does not close in this line, which has"
            f" too few fields; set {field}.quote='\"' if the text goes on in the next line, or"
            f" {field}.quote='' if quotes are a part of the text"
        )


def check_swallowed(path: str, rows: pl.LazyFrame, separator: str, field: str) -> None:
    """Raises InputError if a field in quotes holds what looks like rows of the table.

    This is so where a text begins with a quote that does not close: everything up to the next quote
    becomes one field. rows: read with quotes. field: as for ``check_closed``.
    """
    names = [name for name in rows.collect_schema() if name != LINE]
    long = pl.any_horizontal(pl.col(name).str.contains("\n", literal=True) for name in names)
    several = rows.filter(long).head(CHECKED).collect(engine="streaming")
    if not several.height:
        return
    numeric = rows.select(
        (pl.col(name).str.contains(NUMBER).mean() > 0.95).fill_null(False) for name in names
    ).collect(engine="streaming")
    numbers = [bool(numeric[name][0]) for name in names]
    above = 0
    for row in several.select(LINE, *names).iter_rows():
        for place, text in enumerate(row[1:]):
            if text and "\n" in text and _holds_rows(text, place, separator, numbers):
                raise InputError(
                    f"{path}:{row[0] + above}: a quote opens in this line and closes"
                    f" {text.count(chr(10))} lines below, and what is between looks like rows of"
                    f" the table; set {field}.quote='' if quotes are a part of the text, or"
                    f" {field}.quote='\"' if the text does have these lines"
                )
        above += sum(text.count("\n") for text in row[1:] if text)


def _holds_rows(text: str, place: int, separator: str, numbers: list[bool]) -> bool:
    """Whether the lines of a field could be the rows of a table, the field being column ``place``.

    numbers: whether each column holds numbers.
    """
    first, *middle, last = text.replace("\r\n", "\n").split("\n")
    width = len(numbers)
    pieces = [(first, place, width), *((line, 0, width) for line in middle), (last, 0, place + 1)]
    known = 0
    for piece, start, stop in pieces:
        cells = piece.split(separator)
        if len(cells) != stop - start:
            return False
        for cell, is_number in zip(cells, numbers[start:stop], strict=True):
            if is_number and not re.match(NUMBER, cell):
                return False
            known += is_number
    return bool(middle) or known > 0
