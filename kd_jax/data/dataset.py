"""The Dataset: filtered, indexed and split interactions as arrays, with the texts of the items.

The order of the steps is fixed: malformed rows, rating threshold, repeated pairs, k-core, index,
split. A history never holds anything later than the target that is predicted from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, read_json, write_json
from kd_jax.data import filters, item_text
from kd_jax.data.options import DatasetOptions
from kd_jax.data.raw import RawData, accept
from kd_jax.data.splits import FOLD_IN, NAMES, TRAIN, assign
from kd_jax.data.time_units import per_day, resolve

CSR = tuple[Int64[np.ndarray, " U+1"], Int32[np.ndarray, " M"]]
ARRAYS = ("user", "item", "rating", "timestamp", "split")
DISLIKED = "disliked.parquet"
NOTED = ("name", "split_name", "counts", "checksum", "time_unit")
UNTIMED_ROWS = "rows_without_a_timestamp,_whose_order_is_taken_as_time"  # of ``Dataset.counts``
UNTIMED = (
    "; there is no timestamp (data.files.columns.timestamp): rows are taken to be in the order of"
    " time"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N interactions of U users with I items, sorted by (user, time).

    Within a user, train comes first, then valid, then test. user_ids, item_ids: the ids of the
    source, sorted; a user or item index is an index into them. items: the text columns of every
    item, in the order of item_ids; '' where an item has none. rating: 1 where the source has none.
    timestamp: in ``time_unit`` ('s', 'ms', 'us' or 'ns'), or the row number where there is none.
    split: 0 train, 1 valid, 2 test, 3 fold-in (history of the users that split 'strong' holds out;
    never trained on).
    indptr: user u has the rows indptr[u]:indptr[u + 1]. counts: rows read, rows left out by reason,
    and rows that remain. checksum: 16 hex digits of SHA-256 over ids, texts and arrays. disliked:
    the items that each user rated below the threshold, as a CSR array, or None; they are not
    recommended to them. notes: what looks wrong in the source; not saved.
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
    time_unit: str = "s"
    disliked: CSR | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def day(self) -> int:
        """How many units of ``timestamp`` a day has."""
        return per_day(self.time_unit)

    @cached_property
    def titles(self) -> list[str]:
        """The first text column of each item; its id where that is empty."""
        first = self.items.to_series(0)
        ids = self.item_ids.cast(pl.String)
        titles = pl.when(first != "").then(first).otherwise(ids)
        return first.to_frame("title").select(titles).to_series().to_list()

    @cached_property
    def item_counts(self) -> Int64[np.ndarray, " I"]:
        """Number of train interactions of each item."""
        return np.bincount(self.item[self.split == TRAIN], minlength=self.num_items)

    @property
    def warm(self) -> Bool[np.ndarray, " I"]:
        """Items with a train interaction; the others are cold."""
        return self.item_counts > 0

    def history(self, split: int) -> CSR:
        """Each user's interactions before ``split`` (1 or 2), fold-in included.

        Items in order of time, as (indptr, items). Not for training: under split 'strong' it holds
        the held-out users. The train interactions are ``targets(0)``.
        """
        return self._rows((self.split < split) | (self.split == FOLD_IN))

    def targets(self, split: int) -> CSR:
        """The interactions of ``split`` (0, 1 or 2) as (indptr, items), in order of time."""
        return self._rows(self.split == split)

    def _rows(self, chosen: Bool[np.ndarray, " N"]) -> CSR:
        return _indptr(self.user[chosen], self.num_users), self.item[chosen]

    def save(self, folder: Path) -> None:
        """Writes interactions, users and items as Parquet, then dataset.json.

        dataset.json is written last, so a folder that has it is complete.
        """
        for name, frame in {
            "interactions": pl.DataFrame({name: getattr(self, name) for name in ARRAYS}),
            "users": pl.DataFrame({"id": self.user_ids}),
            "items": self.items.select(self.item_ids.alias("id"), pl.all().name.prefix("text_")),
        }.items():
            with atomic(Path(folder) / f"{name}.parquet") as path:
                frame.write_parquet(path)
        (Path(folder) / DISLIKED).unlink(missing_ok=True)
        if self.disliked is not None:
            indptr, item = self.disliked
            user = np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(indptr))
            with atomic(Path(folder) / DISLIKED) as path:
                pl.DataFrame({"user": user, "item": item}).write_parquet(path)
        note = {name: getattr(self, name) for name in NOTED}
        write_json(Path(folder) / "dataset.json", note)


def load(folder: Path) -> Dataset:
    """The Dataset that ``Dataset.save`` wrote.

    Raises InputError if a file is missing, damaged, or has changed since it was written.
    """
    folder = Path(folder)
    fix = f"delete {folder} and run again"
    note = read_json(folder / "dataset.json", fix)
    rows, users, items = (
        _saved(folder / f"{name}.parquet", fix) for name in ("interactions", "users", "items")
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
            note.get("time_unit", "s"),
        )
        written = note["checksum"]
    except (ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder}: the saved data set can't be read ({error}); {fix}") from None
    if found.checksum != written:
        raise InputError(
            f"{folder}: the saved data set has changed since it was written (checksum"
            f" {found.checksum}, {written} then); delete it and run again"
        )
    if not (folder / DISLIKED).exists():
        return found
    pairs = _saved(folder / DISLIKED, fix)
    disliked = _indptr(pairs["user"].to_numpy(), found.num_users), pairs["item"].to_numpy()
    return dataclasses.replace(found, disliked=disliked)


def _saved(path: Path, fix: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} can't be read ({error}); {fix}") from None


def _assemble(
    name: str,
    split_name: str,
    user_ids: pl.Series,
    item_ids: pl.Series,
    items: pl.DataFrame,
    arrays: dict[str, Any],
    counts: dict[str, int],
    time_unit: str,
) -> Dataset:
    """A Dataset with its ``indptr`` and checksum; arrays: those named in ``ARRAYS``."""
    digest = hashlib.sha256(json.dumps([split_name, items.columns]).encode())
    for column in (user_ids, item_ids, *items):
        digest.update(json.dumps(column.to_list()).encode())
    if time_unit != "s":
        digest.update(time_unit.encode())
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
        time_unit=time_unit,
    )


def _indptr(user: Int32[np.ndarray, " N"], users: int) -> Int64[np.ndarray, " U+1"]:
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))])


def build(raw: RawData, **fields: Any) -> Dataset:
    """Filters, indexes and splits ``raw``; fields: those of ``DatasetOptions``.

    Repeated interactions of a user with an item count once. Equal timestamps keep the
    order of the rows in the source; without timestamps that order is the order of time. Raises
    InputError for bad input: what is wrong, where, and the fix.
    """
    options = DatasetOptions(**fields)
    counts = accept(raw, options.max_malformed)
    has_time = "timestamp" in raw.interactions.columns
    if not has_time:
        counts[UNTIMED_ROWS] = raw.interactions.height
    rows = filters.complete(raw, options.split, options.min_rating)
    counts["below_min_rating"] = raw.interactions.height - rows.height
    _require_rows(raw, rows.height, f"data.min_rating={options.min_rating}")

    rows, all_users, all_items = _indexed(rows)
    height = rows.height
    rows = _without_repeats(rows, len(all_items), options.repeats)
    counts["repeated"] = height - rows.height

    height = rows.height
    rows, kept = _core(raw, rows, options)
    counts["below_min_interactions"] = height - kept
    user, user_ids = filters.compact(rows["user"].to_numpy(), all_users)
    item, item_ids = filters.compact(rows["item"].to_numpy(), all_items)
    if options.min_item_interactions == 0:
        catalogue = pl.concat([item_ids, raw.items["item"]]).unique().sort()
        item = catalogue.search_sorted(item_ids).to_numpy().astype(np.int32)[item]
        item_ids = catalogue
    texts = item_text.texts(raw, item_ids, options.text_columns, options.missing_text)

    indptr = _indptr(user, len(user_ids))
    timestamp, unit = rows["timestamp"].to_numpy(), "s"
    notes: tuple[str, ...] = ()
    if has_time:
        given = raw.time_unit, raw.time_digits
        timestamp, unit, notes = resolve(timestamp, *given, options.time_unit)
    codes = assign(
        options.split, indptr, timestamp, options.ratios, options.seed, rows["split"].to_numpy()
    )
    arrays = {
        "user": user,
        "item": item,
        "rating": rows["rating"].to_numpy(),
        "timestamp": timestamp,
        "split": codes,
    }
    if options.split == "leave_one_out":
        counts["users_with_fewer_than_3"] = int((np.diff(indptr) < 3).sum())
    counts |= {"users": len(user_ids), "items": len(item_ids), "interactions": len(user)}
    dataset = _assemble(raw.name, options.split, user_ids, item_ids, texts, arrays, counts, unit)
    untimed = options.split != "column" and not has_time
    _check_splits(dataset, options.minima, UNTIMED if untimed else "")
    low = filters.below(raw, options.min_rating, (user_ids, item_ids), (user, item))
    disliked = (_indptr(low[0], len(user_ids)), low[1]) if len(low[0]) else None
    return dataclasses.replace(dataset, disliked=disliked, notes=notes)


def _indexed(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """The rows with users and items as indices, sorted by (user, time), and the ids of both."""
    users, user = filters.to_indices(rows["user"])
    items, item = filters.to_indices(rows["item"])
    rows = rows.with_columns(user=user, item=item)
    return rows.sort("user", "timestamp", "split", maintain_order=True), users, items


def _without_repeats(rows: pl.DataFrame, items: int, repeats: str) -> pl.DataFrame:
    """One row of each pair of a user and one of the ``items``: see ``DatasetOptions.repeats``."""
    pairs = rows["user"].cast(pl.Int64) * items + rows["item"]
    if pairs.n_unique() == rows.height:
        return rows
    if repeats == "first":
        return rows.filter(pl.Series(_first_distinct(pairs.to_numpy())))
    kept = rows.with_columns(pair=pairs, row=pl.int_range(rows.height))
    if repeats == "max":
        kept = kept.sort("pair", "rating", "row")
    kept = kept.unique("pair", keep="last", maintain_order=True).sort("row")
    return kept.drop("pair", "row")


def _core(raw: RawData, rows: pl.DataFrame, options: DatasetOptions) -> tuple[pl.DataFrame, int]:
    """The rows of the k-core and of the first ``max_users`` users, and the size of the core."""
    user = rows["user"].to_numpy()
    item = rows["item"].to_numpy()
    kept = filters.core(user, item, options.min_user_interactions, options.min_item_interactions)
    size = int(kept.sum())
    _require_rows(raw, size, options.minima)
    if options.max_users:
        kept &= np.isin(user, np.unique(user[kept])[: options.max_users])
    return rows.filter(kept), size


def _first_distinct(values: Int64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """True at the first of equal values.

    The values are nearly sorted, which makes a stable sort faster than a hash table.
    """
    order = np.argsort(values, kind="stable")
    first = np.ones(len(values), bool)
    first[order[1:]] = values[order[1:]] != values[order[:-1]]
    return first


def _require_rows(raw: RawData, rows: int, option: str) -> None:
    if not rows:
        which = "one of them" if " and " in option else "it"
        raise InputError(
            f"{raw.place}: none of {raw.interactions.height:,} interactions is left after {option};"
            f" lower {which}"
        )


def _check_splits(dataset: Dataset, minima: str, hint: str) -> None:
    """Raises InputError if a split is empty, or no user in it has a history.

    minima: the options of the k-core, for the message. hint: a possible cause, or "".
    """
    sizes = np.diff(dataset.indptr)
    after = f" after {minima}" if minima else ""
    lower = f", or lower {minima}" if minima else ""
    left = (
        f"{len(dataset.user):,} interactions of {dataset.num_users:,} users are left{after}, at"
        f" most {sizes.max()} of one user; change data.split or data.ratios{lower}{hint}"
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
                f" earlier interaction to be evaluated with: {left}"
            )
