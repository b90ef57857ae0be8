"""Ids, which are kept exactly: as whole numbers where all are such, otherwise as strings."""

from __future__ import annotations

import polars as pl

from kd_jax.core.errors import InputError

# A whole number that its digits alone give back: '0123' is a string, since it would lose its zero.
WHOLE = r"^(0|-?[1-9]\d{0,17})?$"
WITH_ZEROS = r"^((0|-?[1-9]\d{0,14})\.0+)?$"  # 12.0, as pandas writes whole numbers beside gaps
EXACT = 2**53  # floating-point numbers from here on are not exact
TYPES = "ids are whole numbers or strings"


def are_whole(rows: pl.LazyFrame, column: str) -> bool:
    """Whether all ids in ``column`` can be converted to Int64 and back."""
    kind = rows.collect_schema()[column]
    raw = pl.col(column)
    if isinstance(kind, (pl.List, pl.Array)):
        return are_whole(rows.select(raw.explode()), column)
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        return False
    if kind == pl.String:
        plain, zeros = raw.str.contains(WHOLE), raw.str.contains(WITH_ZEROS)
        for rule in (plain, plain | zeros):  # the second, slower one where it is needed
            if rows.select(rule.all()).collect(engine="streaming").item():
                return True
        return False
    if kind.is_integer() and kind not in (pl.UInt64, pl.Int128, pl.UInt128):
        return True
    if kind.is_integer() or isinstance(kind, pl.Decimal):
        fits = (raw.cast(pl.Int64, strict=False) == raw).fill_null(False) | raw.is_null()
        return bool(rows.select(fits.all()).collect(engine="streaming").item())
    return kind.is_float()


def value(rows: pl.LazyFrame, column: str, whole: bool, what: str, plain: bool = False) -> pl.Expr:
    """The ids as Int64 if ``whole``, otherwise as String; null where there is none.

    what: the place and the role, for messages. plain: leaves out what few files need, so that some
    whole numbers, such as 12.0, become null. Raises InputError for a column of a type that holds
    no ids, and for floating-point numbers too large to be exact.
    """
    raw, kind = pl.col(column), rows.collect_schema()[column]
    if kind.is_float():
        largest = rows.select(raw.fill_nan(None).abs().max()).collect(engine="streaming").item()
        if largest is not None and EXACT <= largest < float("inf"):
            raise InputError(
                f"{what}: ids up to {largest:.0f} are stored as floating-point numbers, which have"
                " lost their last digits; write them as whole numbers or as strings"
            )
        number = pl.when(raw == raw.floor()).then(raw).cast(pl.Int64, strict=False)
        return number if whole else number.cast(pl.String)
    if kind == pl.String or isinstance(kind, (pl.Categorical, pl.Enum)):
        text = raw.cast(pl.String)
        if whole and plain:
            return text.cast(pl.Int64, strict=False)
        if whole:
            return text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
        return pl.when(text.str.len_bytes() > 0).then(text)
    if kind.is_integer():
        return raw.cast(pl.Int64, strict=False) if whole else raw.cast(pl.String)
    if isinstance(kind, pl.Decimal):
        number = pl.when(raw == raw.floor()).then(raw).cast(pl.Int128, strict=False)
        return number.cast(pl.Int64, strict=False) if whole else number.cast(pl.String)
    raise InputError(f"{what} is of type {kind}; {TYPES}")
