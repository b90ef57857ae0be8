"""The Dataset: filtered, indexed and split interactions as arrays, with the texts of the items.

The order of the steps is fixed: malformed rows, rating threshold, events and repeated pairs,
k-core, index, split. A history never holds anything later than the target that is predicted from
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, read_json, write_json
from kd_jax.data import events, filters, impressions, item_text
from kd_jax.data.impressions import Impressions
from kd_jax.data.options import DatasetOptions
from kd_jax.data.raw import RawData, accept
from kd_jax.data.splits import FOLD_IN, NAMES, TRAIN, assign
from kd_jax.data.time_units import per_day, resolve_all

CSR = tuple[Int64[np.ndarray, " U+1"], Int32[np.ndarray, " M"]]
ARRAYS = ("user", "item", "rating", "timestamp", "split")
WRITTEN = (*ARRAYS, "weight")  # the last only where weights differ
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
    the items that each user rated below the threshold or disliked, as a CSR array, or None; they
    are not recommended to them. weight: of each interaction in the loss, None where all have 1.
    impressions: the lists that users were shown, or None. notes: what looks wrong in the source;
    not saved.
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
    weight: Float32[np.ndarray, " N"] | None = None
    impressions: Impressions | None = None
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

    @property
    def train_weights(self) -> Float32[np.ndarray, " M"] | None:
        """The weights of the interactions of ``targets(0)``; None where all have 1."""
        return None if self.weight is None else self.weight[self.split == TRAIN]

    def _rows(self, chosen: Bool[np.ndarray, " N"]) -> CSR:
        return indptr_of(self.user[chosen], self.num_users), self.item[chosen]

    def save(self, folder: Path) -> None:
        """Writes interactions, users and items as Parquet, then dataset.json.

        dataset.json is written last, so a folder that has it is complete.
        """
        arrays = ARRAYS if self.weight is None else WRITTEN
        for name, frame in {
            "interactions": pl.DataFrame({name: getattr(self, name) for name in arrays}),
            "users": pl.DataFrame({"id": self.user_ids}),
            "items": self.items.select(self.item_ids.alias("id"), pl.all().name.prefix("text_")),
        }.items():
            with atomic(Path(folder) / f"{name}.parquet") as path:
                frame.write_parquet(path)
        for name in (DISLIKED, impressions.FILE):
            (Path(folder) / name).unlink(missing_ok=True)
        if self.impressions is not None:
            self.impressions.save(Path(folder))
        if self.disliked is not None:
            indptr, item = self.disliked
            user = np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(indptr))
            with atomic(Path(folder) / DISLIKED) as path:
                pl.DataFrame({"user": user, "item": item}).write_parquet(path)
        shown = {"impressions": impressions.checksum_of(self.impressions)}
        write_json(Path(folder) / "dataset.json", {n: getattr(self, n) for n in NOTED} | shown)


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
        arrays = {name: rows[name].to_numpy() for name in rows.columns if name in WRITTEN}
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
        if (folder / impressions.FILE).exists():
            shown = impressions.load(_saved(folder / impressions.FILE, fix))
            found = dataclasses.replace(found, impressions=shown)
    except (ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder}: the saved data set can't be read ({error}); {fix}") from None
    if impressions.checksum_of(found.impressions) != note.get("impressions"):
        raise InputError(f"{folder / impressions.FILE} has changed since it was written; {fix}")
    if found.checksum != written:
        raise InputError(
            f"{folder}: the saved data set has changed since it was written (checksum"
            f" {found.checksum}, {written} then); delete it and run again"
        )
    if not (folder / DISLIKED).exists():
        return found
    pairs = _saved(folder / DISLIKED, fix)
    disliked = indptr_of(pairs["user"].to_numpy(), found.num_users), pairs["item"].to_numpy()
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
    """A Dataset with its ``indptr`` and checksum; arrays: those named in ``WRITTEN``."""
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
        indptr=indptr_of(arrays["user"], len(user_ids)),
        counts=counts,
        checksum=digest.hexdigest()[:16],
        time_unit=time_unit,
    )


def indptr_of(user: Int32[np.ndarray, " N"], users: int) -> Int64[np.ndarray, " U+1"]:
    """The bounds of the rows of a CSR array, of rows sorted by ``user`` (0 to ``users`` - 1)."""
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))])


def build(raw: RawData, **fields: Any) -> Dataset:
    """Filters, indexes and splits ``raw``; fields: those of ``DatasetOptions``.

    A user has one interaction with an item (``data/events.py``). Equal timestamps keep the
    order of the rows in the source; without timestamps that order is the order of time. Raises
    InputError for bad input: what is wrong, where, and the fix.
    """
    options = DatasetOptions(**fields)
    counts = accept(raw, options.max_malformed)
    has_time = "timestamp" in raw.interactions.columns
    if not has_time:
        counts[UNTIMED_ROWS] = raw.interactions.height
    kept = _kept(raw, options, counts)
    users, items, rows = len(kept.user_ids), len(kept.item_ids), kept.rows
    texts = item_text.texts(raw, kept.item_ids, options.text_columns, options.missing_text)
    indptr = indptr_of(kept.user, users)
    times = [rows["timestamp"].to_numpy()]
    if raw.impressions is not None:
        times.append(raw.impressions["timestamp"].to_numpy())
    unit = "s"
    notes: tuple[str, ...] = ()
    if has_time:
        times, unit, notes = resolve_all(times, raw.time_unit, raw.time_digits, options.time_unit)
    timestamp = times[0]
    codes = assign(
        options.split, indptr, timestamp, options.ratios, options.seed, rows["split"].to_numpy()
    )
    arrays = {
        "user": kept.user,
        "item": kept.item,
        "rating": rows["rating"].to_numpy(),
        "timestamp": timestamp,
        "split": codes,
    }
    weight = events.totals(kept.reduced, rows, codes, kept.num_ids, options.split)
    arrays |= {} if weight is None else {"weight": weight}
    if options.split == "leave_one_out":
        counts["users_with_fewer_than_3"] = int((np.diff(indptr) < 3).sum())
    ids = kept.user_ids, kept.item_ids
    shown = None
    if raw.impressions is not None:
        table = raw.impressions.with_columns(timestamp=pl.Series(times[1]))
        shown, found = impressions.build(table, ids, arrays, options.split)
        counts |= found
    counts |= {"users": users, "items": items, "interactions": len(timestamp)}
    dataset = _assemble(raw.name, options.split, *ids, texts, arrays, counts, unit)
    untimed = UNTIMED if options.split != "column" and not has_time else ""
    _check_splits(dataset, options.minima, untimed)
    low = filters.indexed_pairs(kept.low, ids, (kept.user, kept.item))
    disliked = (indptr_of(low[0], users), low[1]) if len(low[0]) else None
    notes = (*notes, *kept.reduced.notes)
    return dataclasses.replace(dataset, disliked=disliked, impressions=shown, notes=notes)


class _Kept(NamedTuple):
    """The interactions that are kept, with the ids of both sides.

    rows, user, item: sorted by (user, time). reduced, num_ids: what ``rows`` come from, and the
    number of items that pairs were numbered with. low: the pairs of ids that users do not like.
    """

    rows: pl.DataFrame
    user: Int32[np.ndarray, " N"]
    item: Int32[np.ndarray, " N"]
    user_ids: pl.Series
    item_ids: pl.Series
    reduced: events.Reduced
    num_ids: int
    low: pl.DataFrame


def _kept(raw: RawData, options: DatasetOptions, counts: dict[str, int]) -> _Kept:
    """Leaves out rows, one reason after the other, and adds to ``counts`` how many."""
    weights = events.parse(options.events)
    typed, left_out = events.weighed(raw, weights)
    raw = dataclasses.replace(raw, interactions=typed)
    rows = filters.complete(raw, options.split, options.min_rating)
    counts["below_min_rating"] = typed.height - rows.height
    _require_rows(raw, rows.height, f"data.min_rating={options.min_rating}")

    rows, all_users, all_items = _indexed(rows)
    reduced = events.reduce(rows, len(all_items), options.repeats, weights)
    counts["repeated"] = reduced.repeated
    if weights:
        counts |= {"left_out_events": left_out, "taken_back": reduced.taken_back}
        _require_rows(raw, reduced.rows.height, events.FIELD)
    rows = _core(raw, reduced.rows, options, counts)
    user, user_ids = filters.compact(rows["user"].to_numpy(), all_users)
    item, item_ids = filters.compact(rows["item"].to_numpy(), all_items)
    if options.min_item_interactions == 0:
        catalogue = pl.concat([item_ids, raw.items["item"]]).unique().sort()
        item = catalogue.search_sorted(item_ids).to_numpy().astype(np.int32)[item]
        item_ids = catalogue
    low = filters.below(raw, options.min_rating)
    if reduced.disliked is not None:
        of_user, of_item = reduced.disliked
        low = low.extend(
            pl.DataFrame({"user": all_users.gather(of_user), "item": all_items.gather(of_item)})
        )
    return _Kept(rows, user, item, user_ids, item_ids, reduced, len(all_items), low)


def _indexed(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """The rows with users and items as indices, sorted by (user, time), and the ids of both."""
    users, user = filters.to_indices(rows["user"])
    items, item = filters.to_indices(rows["item"])
    rows = rows.with_columns(user=user, item=item)
    return rows.sort("user", "timestamp", "split", maintain_order=True), users, items


def _core(
    raw: RawData, rows: pl.DataFrame, options: DatasetOptions, counts: dict[str, int]
) -> pl.DataFrame:
    """The rows of the k-core and of the first ``max_users`` users; ``counts`` get the others."""
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    kept = filters.core(user, item, options.min_user_interactions, options.min_item_interactions)
    size = int(kept.sum())
    _require_rows(raw, size, options.minima)
    counts["below_min_interactions"] = rows.height - size
    if options.max_users:
        kept &= np.isin(user, np.unique(user[kept])[: options.max_users])
        counts["beyond_max_users"] = size - int(kept.sum())
    return rows.filter(kept)


def _require_rows(raw: RawData, rows: int, option: str) -> None:
    if not rows:
        which = "one of them" if " and " in option else "it"
        raise InputError(
            f"{raw.place}: none of {raw.interactions.height:,} interactions is left after {option};"
            f" {'raise a weight' if option == 'data.events' else f'lower {which}'}"
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
