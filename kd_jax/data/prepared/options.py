"""The options of ``python -m kd_jax.data.prepare``, and what a source must look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import data_files
from kd_jax.data.options import DatasetOptions
from kd_jax.data.time_units import EXPONENTS, UNITS

SPLITS = ("leave_one_out", "temporal")
REPEATS = ("first", "last", "max")
ROWS_PER_SHARD = 4_000_000  # at most, on average, where the number of shards is chosen
FEWEST, MOST = 16, 4096  # shards, where their number is chosen, and at all
# Fields that a configuration has, too; they must be the same there (``data.<field>``).
CHECKED = (
    *("split", "ratios", "min_interactions", "min_item_interactions", "min_rating"),
    *("max_malformed", "repeats", "missing_text", "text_columns", "time_unit"),
)


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is prepared and how; the fields in ``CHECKED`` are those of ``DatasetOptions``.

    interactions, items: a Parquet file or a folder of them. user, item, rating, timestamp: columns
    of the interactions; rating='': all are 1. item_id: the column of the items with the ids; the
    others are text. shards: their number; 0: by the number of rows. Raises InputError for values
    that are not supported.
    """

    interactions: str = ""
    items: str = ""
    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    timestamp: str = "timestamp"
    item_id: str = "item"
    split: str = "temporal"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    min_interactions: int = 1
    min_item_interactions: int = 0
    min_rating: float | None = None
    max_malformed: float = 0.0
    repeats: str = "first"
    missing_text: str = "error"
    text_columns: tuple[str, ...] = ()
    time_unit: str = "auto"
    shards: int = 0

    def __post_init__(self) -> None:
        supported = {"split": SPLITS, "repeats": REPEATS, "time_unit": UNITS}
        for name, known in supported.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name}={getattr(self, name)!r} is not supported by prepared data"
                    f"{nearest(getattr(self, name), known)}; data.reader='files' reads the source"
                    " with every other choice, as far as memory goes"
                )
        DatasetOptions(ratios=self.ratios)
        if not 0 <= self.shards <= MOST:
            raise InputError(f"--shards={self.shards} must be 0 (by size) to {MOST}")
        if self.min_rating is not None and not self.rating:
            raise InputError(f"--min_rating={self.min_rating:g} needs a column: --rating")

    @property
    def checked(self) -> dict[str, Any]:
        """The fields that a configuration must repeat, as JSON has them."""
        found = {name: getattr(self, name) for name in CHECKED}
        return found | {name: list(found[name]) for name in ("ratios", "text_columns")}

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the files, but for the content of the source."""
        columns = ("user", "item", "rating", "timestamp", "item_id", "shards")
        return self.checked | {name: getattr(self, name) for name in columns}

    def shards_for(self, rows: int) -> int:
        """The number of shards of ``rows`` interactions: as given, or a power of two."""
        if self.shards:
            return self.shards
        wanted = 2 ** int(np.ceil(np.log2(max(1, rows / ROWS_PER_SHARD))))
        return min(MOST, max(FEWEST, wanted))


def parquet_files(path: str, option: str) -> list[Path]:
    """The Parquet files in ``path``; raises InputError if there is none, or another file."""
    found = data_files(Path(path).expanduser())
    for file in found:
        if not file.is_file() or file.suffix != ".parquet":
            raise InputError(f"--{option}: {file} is missing or is no .parquet file; convert it")
    if not found:
        raise InputError(f"--{option}={path} holds no .parquet file; name a folder that does")
    return found


def check_schema(schema: Mapping[str, pl.DataType], options: PrepareOptions) -> None:
    """Raises InputError for a column of the interactions that is missing or of another type."""
    kinds = {
        "user": ("whole numbers or strings", lambda kind: kind.is_integer() or kind == pl.String),
        "item": ("whole numbers or strings", lambda kind: kind.is_integer() or kind == pl.String),
        "rating": ("numbers", lambda kind: kind.is_numeric()),
        "timestamp": ("whole numbers", lambda kind: kind.is_integer()),
    }
    for role, (wanted, fits) in kinds.items():
        name = getattr(options, role)
        if role == "rating" and not name:
            continue
        if name not in schema:
            raise InputError(
                f"{options.interactions}: no column {name!r} (--{role}){nearest(name, schema)}"
            )
        if not fits(schema[name]) or schema[name] == pl.UInt64:
            raise InputError(
                f"{options.interactions}: column {name!r} is {schema[name]}, not {wanted}; cast it"
                + (f", dates with pl.col({name!r}).dt.epoch('s')" if role == "timestamp" else "")
            )


def check_malformed(options: PrepareOptions, malformed: int, rows: int) -> None:
    """Raises InputError if more of the ``rows`` are malformed than is tolerated."""
    if malformed > options.max_malformed * rows:
        raise InputError(
            f"{options.interactions}: {malformed:,} of {rows:,} rows lack an id, a timestamp or a"
            " finite rating; fix them, or tolerate such a share: --max_malformed"
        )


def check_rows(options: PrepareOptions, rows: int) -> None:
    """Raises InputError if ``rows``, the number with the least rating, is 0."""
    if not rows:
        raise InputError(f"{options.interactions}: no row is left; lower --min_rating or give rows")


def check_core(options: PrepareOptions, rows: int) -> None:
    """Raises InputError if ``rows``, the number in the k-core, is 0."""
    if not rows:
        raise InputError(
            f"{options.interactions}: no interaction is left; lower --min_interactions,"
            " --min_item_interactions or --min_rating"
        )


def read_items(options: PrepareOptions, dtype: pl.DataType) -> pl.DataFrame:
    """The items table, with its ids as 'item', of the type of the items of interactions."""
    if not options.items:
        return pl.DataFrame(schema={"item": dtype})
    table = pl.read_parquet(parquet_files(options.items, "items"))
    if options.item_id not in table.columns:
        raise InputError(
            f"{options.items}: no column {options.item_id!r}"
            f" (--item_id){nearest(options.item_id, table.columns)}"
        )
    table = table.rename({options.item_id: "item"})
    if table["item"].dtype.is_integer() and dtype == pl.Int64:
        table = table.cast({"item": pl.Int64})
    if table["item"].dtype != dtype:
        raise InputError(
            f"{options.items}: item ids are {table['item'].dtype}, those of the interactions"
            f" {dtype}; make them the same"
        )
    return table


def unit_of(classes: list[int], divisible: int, option: str) -> tuple[str, int]:
    """The unit of timestamps, and the number that they are divided by to get there.

    It is that of ``time_units.resolve``. classes: how many have the size of counts, seconds,
    milliseconds, microseconds and nanoseconds. divisible: the power of ten, in thousands, by which
    all can be divided (0 to 3). option: data.time_unit.
    """
    unit = option
    if option == "auto":
        middle = (sum(classes) - 1) // 2, sum(classes) // 2
        ends = np.cumsum(classes)
        kind = int(np.mean([np.searchsorted(ends, place, side="right") for place in middle]))
        unit = ["s", "s", "ms", "us", "ns"][kind]
    steps = min(divisible, EXPONENTS[unit] // 3)
    names = {exponent: name for name, exponent in EXPONENTS.items()}
    return names[EXPONENTS[unit] - 3 * steps], 1000**steps
