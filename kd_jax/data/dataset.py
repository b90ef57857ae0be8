"""From raw rows to arrays: filtered, indexed, split, with histories that hold nothing from after
their target.

The order is fixed: malformed rows, rating threshold, repeated pairs, k-core, index, split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import atomic, read_json, write_json
from kd_jax.data import filters
from kd_jax.data.raw import RawData, accept
from kd_jax.data.splits import FOLD_IN, NAMES, SPLITS, TRAIN, assign

CSR = tuple[Int64[np.ndarray, " U+1"], Int32[np.ndarray, " M"]]
ARRAYS = ("user", "item", "rating", "timestamp", "split")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N interactions of U users with I items, sorted by (user, time); within a user train, then
    valid, then test.

    user_ids, item_ids: the ids of the source, sorted; an index is a position in them. items: the
    text columns of every item, in the order of item_ids; '' where an item has none. rating: 1 where
    the source has none. timestamp: as in the source, or the row number there if it has none. split:
    0 train, 1 valid, 2 test, 3 fold-in (history of the users that split 'strong' holds out; never
    trained on). indptr: rows of user u are indptr[u]:indptr[u + 1]. counts: rows read, rows left
    out and why, and what remained. checksum: 16 hex digits of SHA-256 over ids, texts and arrays.
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
        """The first text column of each item; its id where that is empty."""
        first = self.items.to_series(0)
        ids = self.item_ids.cast(pl.String)
        return (
            first.to_frame("title")
            .select(pl.when(first != "").then(first).otherwise(ids))
            .to_series()
            .to_list()
        )

    @cached_property
    def item_counts(self) -> Int64[np.ndarray, " I"]:
        """Train interactions of each item."""
        return np.bincount(self.item[self.split == TRAIN], minlength=self.num_items)

    @property
    def warm(self) -> Bool[np.ndarray, " I"]:
        """Items with a train interaction; the others are cold."""
        return self.item_counts > 0

    def history(self, split: int) -> CSR:
        """What is known of each user when ``split`` (1 or 2) is predicted: train, fold-in and what
        is between.

        Items in order of time as (indptr, items). Don't train on it: under split 'strong' it holds
        held-out users; the train interactions are ``targets(0)``.
        """
        return self._rows((self.split < split) | (self.split == FOLD_IN))

    def targets(self, split: int) -> CSR:
        """The interactions of ``split`` (0, 1 or 2) as (indptr, items), in order of time."""
        return self._rows(self.split == split)

    def _rows(self, chosen: Bool[np.ndarray, " N"]) -> CSR:
        return _indptr(self.user[chosen], self.num_users), self.item[chosen]

    def save(self, folder: Path) -> None:
        """Writes interactions, users and items as Parquet and then the rest as JSON: where that is,
        all is.
        """
        for name, frame in {
            "interactions": pl.DataFrame({name: getattr(self, name) for name in ARRAYS}),
            "users": pl.DataFrame({"id": self.user_ids}),
            "items": self.items.select(self.item_ids.alias("id"), pl.all().name.prefix("text_")),
        }.items():
            with atomic(Path(folder) / f"{name}.parquet") as path:
                frame.write_parquet(path)
        note = {name: getattr(self, name) for name in ("name", "split_name", "counts", "checksum")}
        write_json(Path(folder) / "dataset.json", note)


def load(folder: Path) -> Dataset:
    """What ``Dataset.save`` wrote. Raises InputError if a file is missing, or is not the one that
    was written.
    """
    folder = Path(folder)
    cure = f"delete {folder} and run again"
    note = read_json(folder / "dataset.json", cure)
    rows, users, items = (
        _saved(folder / f"{name}.parquet", cure) for name in ("interactions", "users", "items")
    )
    try:
        arrays = {name: rows[name].to_numpy() for name in ARRAYS}
        texts = items.drop("id").rename(lambda name: name.removeprefix("text_"))
        found = _assemble(
            note["name"],
            note["split_name"],
            users["id"],
            items["id"],
            texts,
            arrays,
            note["counts"],
        )
        written = note["checksum"]
    except (ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder}: the saved data set can't be read ({error}); {cure}") from None
    if found.checksum != written:
        raise InputError(
            f"{folder}: the saved data set has changed since it was written (checksum"
            f" {found.checksum}, {written} then); delete it and run again"
        )
    return found


def _saved(path: Path, cure: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} can't be read ({error}); {cure}") from None


def _assemble(
    name: str,
    split_name: str,
    user_ids: pl.Series,
    item_ids: pl.Series,
    items: pl.DataFrame,
    arrays: dict[str, Any],
    counts: dict[str, int],
) -> Dataset:
    digest = hashlib.sha256(json.dumps([split_name, items.columns]).encode())
    for column in (user_ids, item_ids, *items):
        digest.update(json.dumps(column.to_list()).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    return Dataset(
        name,
        split_name,
        user_ids.rename("user"),
        item_ids.rename("item"),
        items,
        **arrays,
        indptr=_indptr(arrays["user"], len(user_ids)),
        counts=counts,
        checksum=digest.hexdigest()[:16],
    )


def _indptr(user: Int32[np.ndarray, " N"], users: int) -> Int64[np.ndarray, " U+1"]:
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

    split: 'leave_one_out', 'temporal', 'ratio', 'strong' or 'column' (see
    ``kd_jax/data/splits.py``). min_user_interactions, min_item_interactions: the k-core, to its
    fixed point, over the interactions of all splits
        together, as published protocols do. With min_item_interactions=0 the catalogue is the whole
        items table, interacted with or not; otherwise it is the items of the core.
    min_rating: keep ratings of at least this. ratios: train, valid and test shares, of interactions
    ('temporal', 'ratio') or of users ('strong'). max_malformed: the share of malformed rows that is
    tolerated. missing_text: an item without text is an 'error', or its text is its 'id'. seed: of
    the choice of users under 'strong'. text_columns: the item columns that make up its text, in
    order; None or () = all. max_users: keep the first so many of the users that are left (to try
    things out); 0 = all.

    A user's repeated interactions with an item count once, as the first. Equal timestamps keep the
    order of the source's rows; without timestamps that order is time. Raises InputError: what is
    wrong, where, and the cure.
    """
    if split not in SPLITS:
        raise InputError(f"data.split={split!r} is unknown{nearest(split, SPLITS)}")
    if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise InputError(
            f"data.ratios={tuple(ratios)}: give three positive shares (train, valid, test) that sum"
            " to 1"
        )
    if max_users < 0:
        raise InputError(f"data.max_users={max_users} must be 0 (all users) or more")
    counts = accept(raw, max_malformed)
    if "timestamp" not in raw.interactions.columns:
        counts["rows_without_a_timestamp,_whose_order_is_taken_as_time"] = raw.interactions.height
    rows = filters.complete(raw, split, min_rating)
    counts["below_min_rating"] = raw.interactions.height - rows.height
    _some_left(raw, rows.height, f"data.min_rating={min_rating}")

    (all_users, user_column), (all_items, item_column) = (
        filters.to_positions(rows[name]) for name in ("user", "item")
    )
    rows = rows.with_columns(user=user_column, item=item_column).sort(
        "user", "timestamp", "split", maintain_order=True
    )
    pairs = rows["user"].cast(pl.Int64) * len(all_items) + rows["item"]
    counts["repeated"] = rows.height - pairs.n_unique()
    if counts["repeated"]:
        rows = rows.filter(pl.Series(_first_distinct(pairs.to_numpy())))

    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    kept = filters.core(user, item, min_user_interactions, min_item_interactions)
    counts["below_min_interactions"] = rows.height - int(kept.sum())
    given = (
        ("data.min_interactions", min_user_interactions),
        ("data.min_item_interactions", min_item_interactions),
    )
    minima = " and ".join(f"{name}={least}" for name, least in given if least > 1)
    _some_left(raw, int(kept.sum()), minima)
    if max_users:
        kept &= np.isin(user, np.unique(user[kept])[:max_users])
    rows = rows.filter(kept)
    user, user_ids = filters.without_gaps(user[kept], all_users)
    item, item_ids = filters.without_gaps(item[kept], all_items)
    if min_item_interactions == 0:
        catalogue = pl.concat([item_ids, raw.items["item"]]).unique().sort()
        item, item_ids = (
            catalogue.search_sorted(item_ids).to_numpy().astype(np.int32)[item],
            catalogue,
        )
    texts = filters.texts(raw, item_ids, text_columns, missing_text)

    indptr, timestamp = _indptr(user, len(user_ids)), rows["timestamp"].to_numpy()
    codes = assign(split, indptr, timestamp, ratios, seed, rows["split"].to_numpy())
    arrays = {
        "user": user,
        "item": item,
        "rating": rows["rating"].to_numpy(),
        "timestamp": timestamp,
        "split": codes,
    }
    if split == "leave_one_out":
        counts["users_with_fewer_than_3"] = int((np.diff(indptr) < 3).sum())
    counts |= {"users": len(user_ids), "items": len(item_ids), "interactions": len(user)}
    dataset = _assemble(raw.name, split, user_ids, item_ids, texts, arrays, counts)
    untimed = split != "column" and "timestamp" not in raw.interactions.columns
    _check_splits(
        dataset,
        minima,
        "; there is no timestamp (data.files.columns.timestamp): rows count as in order of time"
        * untimed,
    )
    return dataset


def _first_distinct(values: Int64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """True at the first of equal values. They are nearly sorted here, and a stable sort gains more
    from that than a table of hashes does.
    """
    order = np.argsort(values, kind="stable")
    first = np.ones(len(values), bool)
    first[order[1:]] = values[order[1:]] != values[order[:-1]]
    return first


def _some_left(raw: RawData, left: int, option: str) -> None:
    if not left:
        raise InputError(
            f"{raw.place}: none of {raw.interactions.height:,} interactions is left after {option};"
            " lower " + ("one of them" if " and " in option else "it")
        )


def _check_splits(dataset: Dataset, minima: str, hint: str) -> None:
    """Raises InputError if a split is empty, or nobody in it has a history to be judged by. hint: a
    possible cause.
    """
    sizes = np.diff(dataset.indptr)
    left = (
        f"{len(dataset.user):,} interactions of {dataset.num_users:,} users are"
        f" left{minima and f' after {minima}'}, at most {sizes.max()} of one user; change"
        f" data.split or data.ratios{minima and f', or lower {minima}'}{hint}"
    )
    for code in range(3):
        chosen = dataset.split == code
        if not chosen.any():
            raise InputError(
                f"{dataset.name}: split {dataset.split_name!r} leaves {NAMES[code]} empty: {left}"
            )
        if code and not (np.diff(dataset.history(code)[0])[dataset.user[chosen]] > 0).any():
            raise InputError(
                f"{dataset.name}: split {dataset.split_name!r}: no {NAMES[code]} user has an"
                f" earlier interaction to be judged by: {left}"
            )
