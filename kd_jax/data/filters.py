"""The steps from raw rows to arrays: complete columns, k-core, ids to indices."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Bool, Int32

from kd_jax.core.errors import InputError
from kd_jax.data import splits
from kd_jax.data.events import EVENT, WEIGHT
from kd_jax.data.raw import RawData


def complete(raw: RawData, split: str, min_rating: float | None) -> pl.DataFrame:
    """The rows rated at least ``min_rating`` as (user, item, rating, timestamp, split code).

    Columns of ``events`` are kept. Missing columns are filled in: ratings with 1, timestamps with
    the row number. With split='column' and without timestamps, train rows come first in time, then
    valid, then test, wherever they are in the file.
    """
    have = raw.interactions.columns
    rows = raw.interactions.height
    if min_rating is not None and "rating" not in have:
        raise InputError(
            f"{raw.place}: data.min_rating={min_rating} needs a rating column and there is none;"
            " unset it"
        )
    if split == "column" and "split" not in have:
        raise InputError(
            f"{raw.place}: data.split='column' needs a split column and there is none; choose"
            " another"
        )
    codes = (
        splits.column(raw.interactions["split"]) if split == "column" else np.zeros(rows, np.int8)
    )
    time = pl.col("timestamp").cast(pl.Int64)
    if "timestamp" not in have:
        order = np.arange(rows)
        if split == "column":
            order[np.argsort(splits.level(codes), kind="stable")] = np.arange(rows)
        time = pl.lit(pl.Series(order))
    frame = raw.interactions.select(
        "user",
        "item",
        rating=pl.col("rating").cast(pl.Float32) if "rating" in have else pl.lit(1.0, pl.Float32),
        timestamp=time,
        split=pl.Series(codes),
        **{name: name for name in (EVENT, WEIGHT) if name in have},
    )
    return frame if min_rating is None else frame.filter(pl.col("rating") >= min_rating)


def below(raw: RawData, min_rating: float | None) -> pl.DataFrame:
    """The pairs (user, item), as ids, that are rated below ``min_rating``."""
    pairs = raw.interactions.select("user", "item")
    if min_rating is None:
        return pairs.clear()
    return pairs.filter(raw.interactions["rating"].cast(pl.Float32) < min_rating)


def indexed_pairs(
    low: pl.DataFrame,
    ids: tuple[pl.Series, pl.Series],
    chosen: tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]],
) -> tuple[Int32[np.ndarray, " M"], Int32[np.ndarray, " M"]]:
    """The indices of the pairs ``low`` of known users and items, once each, sorted by user.

    ids: of users and items. chosen: pairs to leave out.
    """
    tables = {
        name: pl.DataFrame({name: values, f"{name} index": np.arange(len(values), dtype=np.int32)})
        for name, values in zip(("user", "item"), ids, strict=True)
    }
    for name, table in tables.items():
        low = low.join(table, on=name)
    pairs = low.select(user="user index", item="item index").unique()
    pairs = pairs.join(
        pl.DataFrame({"user": chosen[0], "item": chosen[1]}), ["user", "item"], "anti"
    )
    pairs = pairs.sort("user", "item")
    return pairs["user"].to_numpy(), pairs["item"].to_numpy()


def core(
    user: Int32[np.ndarray, " N"], item: Int32[np.ndarray, " N"], min_user: int, min_item: int
) -> Bool[np.ndarray, " N"]:
    """The k-core, as a mask of the rows.

    It is the largest set of rows in which every user has at least ``min_user`` rows and every item
    at least ``min_item``.
    """
    kept = np.ones(len(user), bool)
    rows = np.arange(len(user))
    while True:
        users = np.bincount(user[rows])
        items = np.bincount(item[rows])
        good = (users[user[rows]] >= min_user) & (items[item[rows]] >= min_item)
        if good.all():
            return kept
        kept[rows[~good]] = False
        rows = rows[good]


def to_indices(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The sorted distinct ids of ``column``, and the index of each value among them (Int32)."""
    ids = column.unique().sort()
    if column.dtype.is_integer() and ids[0] >= 0 and ids[-1] < 2 * len(column):
        # A look-up table is several times faster than ranks.
        index = np.zeros(ids[-1] + 1, np.int32)
        index[ids.to_numpy()] = np.arange(len(ids))
        return ids, pl.Series(index[column.to_numpy()])
    return ids, (column.rank("dense") - 1).cast(pl.Int32)


def compact(
    indices: Int32[np.ndarray, " N"], ids: pl.Series
) -> tuple[Int32[np.ndarray, " N"], pl.Series]:
    """The indices into the ids that are still in use, and these ids."""
    used = np.zeros(len(ids), bool)
    used[indices] = True
    return (np.cumsum(used) - 1).astype(np.int32)[indices], ids.filter(pl.Series(used))
