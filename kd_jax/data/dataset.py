"""From raw rows to arrays: filter, index, split, and histories that hold nothing from after their target.

The order is fixed: malformed rows -> rating threshold -> repeated pairs -> k-core -> index -> split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from kd_jax.data.splits import FOLD_IN, NAMES_OF, SPLITS, assign, column
from kd_jax.data.tables import RawData, accept, listed
from kd_jax.errors import InputError, nearest
from kd_jax.files import atomic, write_json

CSR = tuple[Int64[np.ndarray, " U+1"], Int32[np.ndarray, " M"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N interactions of U users with I items, sorted by (user, time); within a user train < valid < test.

    user_ids, item_ids: the ids as they were in the source; an index is a position here. Both are sorted.
    items: the text columns of every item, in the order of item_ids; '' where an item has none.
    timestamp: as in the source, or the row number there if it has none.
    split: 0 train, 1 valid, 2 test; 3 fold-in: the history of users held out by split 'strong', never trained on.
    indptr: rows of user u are indptr[u]:indptr[u+1].
    counts: how many rows were read, and how many were left out for what reason.
    checksum: SHA-256 (16 hex digits) over all of the above.
    """

    name: str
    split_name: str
    user_ids: pl.Series
    item_ids: pl.Series
    items: pl.DataFrame
    user: Int32[np.ndarray, " N"]
    item: Int32[np.ndarray, " N"]
    rating: Float32[np.ndarray, " N"]
    timestamp: Int64[np.ndarray, " N"]
    split: Int8[np.ndarray, " N"]
    indptr: Int64[np.ndarray, " U+1"]
    counts: dict[str, int]
    checksum: str

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @cached_property
    def titles(self) -> list[str]:
        """The first text column of each item; its id where that is empty or there is no text at all."""
        ids = self.item_ids.cast(pl.String)
        if not self.items.width:
            return ids.to_list()
        first = self.items.to_series(0)
        return self.items.select(pl.when(first != "").then(first).otherwise(ids)).to_series().to_list()

    @cached_property
    def item_counts(self) -> Int64[np.ndarray, " I"]:
        """Train interactions of each item."""
        return np.bincount(self.item[self.split == 0], minlength=self.num_items)

    @property
    def warm(self) -> Bool[np.ndarray, " I"]:
        """Items with a train interaction; the others are cold."""
        return self.item_counts > 0

    def history(self, split: int) -> CSR:
        """What may be known of each user when ``split`` (1 or 2) is predicted: train, fold-in and earlier splits.

        Items in order of time as (indptr, items). Do not train on it: with split 'strong' it holds held-out users;
        ``targets(0)`` are the train interactions.
        """
        return self._rows((self.split < split) | (self.split == FOLD_IN))

    def targets(self, split: int) -> CSR:
        """The interactions of ``split`` (0, 1 or 2) as (indptr, items), in order of time."""
        return self._rows(self.split == split)

    def _rows(self, chosen: np.ndarray) -> CSR:
        before = np.concatenate([[0], np.cumsum(chosen)])
        return before[self.indptr], self.item[chosen]

    def save(self, folder: Path) -> None:
        """Writes interactions, users and items as Parquet and the rest as JSON; the JSON last, so it marks a whole."""
        folder = Path(folder)
        for name, frame in {
            "interactions": pl.DataFrame({name: getattr(self, name) for name in ARRAYS}),
            "users": self.user_ids.rename("id").to_frame(),
            "items": self.items.select(self.item_ids.alias("id"), pl.all().name.prefix("text_")),
        }.items():
            with atomic(folder / f"{name}.parquet") as path:
                frame.write_parquet(path, compression="zstd")
        write_json(folder / "dataset.json", {
            "name": self.name, "split_name": self.split_name, "counts": self.counts, "checksum": self.checksum})


ARRAYS = ("user", "item", "rating", "timestamp", "split")


def load(folder: Path) -> Dataset:
    """What ``Dataset.save`` wrote. Raises InputError if a file is missing or its content is not what was written."""
    folder = Path(folder)
    try:
        note = json.loads((folder / "dataset.json").read_text())
        rows, users, items = (pl.read_parquet(folder / f"{name}.parquet") for name in ("interactions", "users", "items"))
        arrays = {name: rows[name].to_numpy() for name in ARRAYS}
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder} holds no readable data set ({error}); delete it and run the 'data' stage again") from None
    found = _assemble(note["name"], note["split_name"], users["id"].rename("user"), items["id"].rename("item"),
                      items.drop("id").rename(lambda name: name.removeprefix("text_")), arrays, note["counts"])
    if found.checksum != note["checksum"]:
        raise InputError(f"{folder}: the files are not those that dataset.json was written with (checksum "
                         f"{found.checksum}, expected {note['checksum']}); delete it and run the 'data' stage again")
    return found


def _assemble(name: str, split_name: str, user_ids: pl.Series, item_ids: pl.Series, items: pl.DataFrame,
              arrays: dict[str, np.ndarray], counts: dict[str, int]) -> Dataset:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    for column in (user_ids, item_ids, *items):
        digest.update(json.dumps(column.to_list()).encode())
    digest.update(json.dumps([split_name, items.columns]).encode())
    return Dataset(name, split_name, user_ids, item_ids, items, **arrays, indptr=_indptr(arrays["user"], len(user_ids)), counts=counts,
                   checksum=digest.hexdigest()[:16])


def _indptr(user: np.ndarray, users: int) -> Int64[np.ndarray, " U+1"]:
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))])


def build(
    raw: RawData,
    *,
    split: str = "temporal",
    min_user_interactions: int = 1,
    min_item_interactions: int = 0,
    min_rating: float | None = None,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    max_malformed: float = 0.0,
    missing_text: str = "error",
    seed: int = 0,
    text_columns: Sequence[str] | None = None,
    max_users: int = 0,
) -> Dataset:
    """Filters, indexes and splits ``raw``.

    split: 'leave_one_out', 'temporal', 'ratio', 'strong' or 'column' (see ``kd_jax/data/splits.py``).
    min_user_interactions, min_item_interactions: the k-core, to its fixed point, over the interactions of all splits
        (as published protocols do). With min_item_interactions == 0 the catalogue is every item of the items table,
        whether anybody chose it or not; otherwise the items of the core.
    min_rating: keep ratings of at least this.
    ratios: train, valid, test shares of 'temporal', 'ratio' (interactions) and 'strong' (users).
    max_malformed: share of malformed rows that is tolerated.
    missing_text: an item without text is an 'error', or its text is its 'id'.
    text_columns: the item columns that are its text, in order; None or () = all.
    max_users: keep only the first so many users of those left (to try things out); 0 = all.

    A user's repeated interactions with an item count once, the first. Equal timestamps keep the source's row order;
    without timestamps that order is time. Raises InputError: one line with what, where and the cure.
    """
    if split not in SPLITS:
        raise InputError(f"data.split={split!r} is unknown{nearest(split, SPLITS)}")
    if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise InputError(f"data.ratios={tuple(ratios)} must be three positive shares (train, valid, test) that add up to 1")
    counts = accept(raw, max_malformed)
    rows = _complete(raw, split, min_rating)
    counts["below_min_rating"] = raw.interactions.height - rows.height
    _some_left(raw, rows.height, f"min_rating={min_rating}")

    users, items = (rows[name].unique().sort() for name in ("user", "item"))
    rows = rows.with_columns((pl.col("user", "item").rank("dense") - 1).cast(pl.Int32))
    rows = rows.sort("user", "timestamp", "split", maintain_order=True)
    first = (rows["user"].cast(pl.Int64) * len(items) + rows["item"]).is_first_distinct()
    counts["repeated"] = rows.height - int(first.sum())
    rows = rows.filter(first)

    kept = core(rows["user"].to_numpy(), rows["item"].to_numpy(), min_user_interactions, min_item_interactions)
    counts["below_min_interactions"] = rows.height - int(kept.sum())
    if max_users:
        kept &= np.isin(rows["user"].to_numpy(), np.unique(rows["user"].to_numpy()[kept])[:max_users])
    _some_left(raw, int(kept.sum()),
               f"min_user_interactions={min_user_interactions} and min_item_interactions={min_item_interactions}")
    rows = rows.filter(kept)

    user, user_ids = _reindex(rows["user"].to_numpy(), users)
    item, item_ids = _reindex(rows["item"].to_numpy(), items)
    if min_item_interactions == 0:
        catalogue = pl.concat([item_ids, raw.items["item"]]).unique().sort()
        item, item_ids = catalogue.search_sorted(item_ids).to_numpy().astype(np.int32)[item], catalogue
    texts = _texts(raw, item_ids, text_columns, missing_text)

    indptr = _indptr(user, len(user_ids))
    timestamp = rows["timestamp"].to_numpy()
    codes = assign(split, indptr, timestamp, ratios, seed, rows["split"].to_numpy())
    arrays = {"user": user, "item": item, "rating": rows["rating"].to_numpy(), "timestamp": timestamp, "split": codes}
    counts |= {"users": len(user_ids), "items": len(item_ids), "interactions": len(user)}
    dataset = _assemble(raw.name, split, user_ids.rename("user"), item_ids.rename("item"), texts, arrays, counts)
    _judgeable(dataset)
    return dataset


def _complete(raw: RawData, split: str, min_rating: float | None) -> pl.DataFrame:
    """(user, item, rating, timestamp, split) with what is missing filled in, from ``min_rating`` up.

    Without timestamps time is the row number, after the source's own split if that is asked for: then a user's
    train rows come before the targets wherever they stand in the file.
    """
    have = raw.interactions.columns
    if min_rating is not None and "rating" not in have:
        raise InputError(f"{raw.name}: data.min_rating={min_rating} needs a rating column, and there is none; set it to None")
    if split == "column" and "split" not in have:
        raise InputError(f"{raw.name}: data.split='column' needs a split column, and there is none; choose another split")
    codes = column(raw.interactions["split"]) if split == "column" else np.zeros(len(raw.interactions), np.int8)
    row = np.arange(len(raw.interactions))
    if "timestamp" not in have and split == "column":
        row[np.argsort(np.where(codes == FOLD_IN, 0, codes), kind="stable")] = row.copy()
    rows = raw.interactions.select(
        "user", "item",
        rating=pl.col("rating").cast(pl.Float32) if "rating" in have else pl.lit(1.0, pl.Float32),
        timestamp=pl.col("timestamp").cast(pl.Int64) if "timestamp" in have else pl.Series(row),
        split=pl.Series(codes),
    )
    return rows if min_rating is None else rows.filter(pl.col("rating") >= min_rating)


def _some_left(raw: RawData, left: int, option: str) -> None:
    if not left:
        raise InputError(f"{raw.name}: none of {raw.interactions.height:,} interactions is left after {option}; lower it")


def core(user: Int32[np.ndarray, " N"], item: Int32[np.ndarray, " N"], min_user: int, min_item: int) -> Bool[np.ndarray, " N"]:
    """The largest set of rows in which every user has ``min_user`` rows and every item ``min_item`` (k-core)."""
    kept = np.ones(len(user), bool)
    rows = np.arange(len(user))
    while True:
        users, items = np.bincount(user[rows]), np.bincount(item[rows])
        good = (users[user[rows]] >= min_user) & (items[item[rows]] >= min_item)
        if good.all():
            return kept
        kept[rows[~good]] = False
        rows = rows[good]


def _reindex(codes: Int32[np.ndarray, " N"], ids: pl.Series) -> tuple[Int32[np.ndarray, " N"], pl.Series]:
    """Codes without gaps, and the ids that are still in use."""
    used = np.zeros(len(ids), bool)
    used[codes] = True
    return (np.cumsum(used) - 1).astype(np.int32)[codes], ids.filter(pl.Series(used))


def _texts(raw: RawData, item_ids: pl.Series, columns: Sequence[str] | None, missing_text: str) -> pl.DataFrame:
    """The text columns of the items, in the order of ``item_ids``."""
    have = [name for name in raw.items.columns if name != "item"]
    for name in columns or ():
        if name not in have:
            raise InputError(f"{raw.name}: data.text_columns: the items have no column {name!r}{nearest(name, have)}")
    table = raw.items.select("item", *(columns or have))
    texts = item_ids.rename("item").to_frame().join(table, on="item", how="left", maintain_order="left")
    texts = texts.with_columns(pl.exclude("item").cast(pl.String).fill_null(""))
    blank = texts.select(pl.all_horizontal(pl.lit(True), pl.exclude("item").str.strip_chars() == "")).to_series()
    if not columns and not have:
        texts = texts.with_columns(title=pl.lit(""))
    if blank.any() and missing_text == "error":
        ids = texts["item"].filter(blank)
        raise InputError(f"{raw.name}: {len(ids):,} of {len(texts):,} items have no text ({listed(ids)}); complete the items "
                         "table, or set data.missing_text='id' to use the id as the text")
    first = texts.columns[1]
    named = pl.when(blank).then(pl.col("item").cast(pl.String)).otherwise(pl.col(first)).alias(first)
    return texts.with_columns(named).drop("item")


def _judgeable(dataset: Dataset) -> None:
    """Raises InputError if a split is empty, or nobody in it has a history to be judged by."""
    sizes = np.bincount(dataset.split, minlength=4)
    longest = int(np.diff(dataset.indptr).max())
    left = (f"{len(dataset.user):,} interactions of {dataset.num_users:,} users were left, {longest} of the most active one; "
            "lower data.min_rating or the minimal interactions, or change data.split or data.ratios")
    for code in (0, 1, 2):
        where = f"{dataset.name}: split {dataset.split_name!r}"
        if sizes[code] == 0:
            raise InputError(f"{where} leaves {NAMES_OF[code]} empty: {left}")
        if code and not np.any((np.diff(dataset.history(code)[0]) > 0) & (np.diff(dataset.targets(code)[0]) > 0)):
            raise InputError(f"{where}: no user of {NAMES_OF[code]} has an earlier interaction to be judged by: {left}")
