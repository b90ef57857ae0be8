"""Prepares a data set on one machine; no step holds all rows, only users and items.

The rows are divided by user into scratch files first. Each later step reads one of these at a time:
repeated pairs, the k-core by counting until nothing changes, and sorted and split shards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from kd_jax.data import events
from kd_jax.data.prepared import folder as folders
from kd_jax.data.prepared.options import (
    PrepareOptions,
    check_core,
    check_malformed,
    check_rows,
    check_schema,
    parquet_files,
    read_items,
    unit_of,
)
from kd_jax.data.splits import assign, temporal_codes, temporal_ranks
from kd_jax.data.time_units import COUNTS, LIMITS

ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("rating", "<f4"), ("timestamp", "<i8")])
BATCH = 1_000_000  # rows of the source at once
BINS = 1 << 16
Note = Callable[[str], None]


def prepare(options: PrepareOptions, folder: Path, note: Note = print) -> bool:
    """Prepares the data in ``folder``; False if that has been done already.

    note: prints a line. Raises InputError for a source that is malformed or changes meanwhile.
    """
    maker = _Maker(options, folder, note)
    if not folders.prepare(options, folder, maker.run):
        return False
    maker.done("users, items, counts")
    return True


class _Distinct:
    """The distinct values of batches; it holds a few times as many as there are at the end."""

    def __init__(self, dtype: pl.DataType):
        self.found = pl.Series(dtype=dtype)
        self.batches: list[pl.Series] = []

    def add(self, values: pl.Series) -> None:
        self.batches.append(values.unique())
        if sum(map(len, self.batches)) > max(len(self.found), BATCH):
            self._merge()

    def _merge(self) -> None:
        self.found, self.batches = pl.concat([self.found, *self.batches]).unique(), []

    def sorted(self) -> pl.Series:
        self._merge()
        return self.found.sort()


class _Ids:
    """Distinct ids, sorted, and the index of each."""

    def __init__(self, ids: pl.Series):
        self.ids, self.table = ids, None
        if len(ids) and ids.dtype.is_integer() and ids[0] >= 0 and ids[-1] < 4 * len(ids) + 1024:
            self.table = np.zeros(ids[-1] + 1, np.int32)
            self.table[ids.to_numpy()] = np.arange(len(ids), dtype=np.int32)

    def of(self, values: pl.Series) -> np.ndarray:
        if self.table is not None:
            return self.table[values.to_numpy()]
        if values.dtype.is_integer():
            return np.searchsorted(self.ids.to_numpy(), values.to_numpy()).astype(np.int32)
        return self.ids.search_sorted(values).to_numpy().astype(np.int32)


class _Maker:
    """The steps of ``prepare``, in order."""

    def __init__(self, options: PrepareOptions, folder: Path, note: Note):
        self.options, self.folder, self.note = options, folder, note
        self.counts: dict[str, int] = {}

    def run(self) -> folders.Made:
        self.began = time.perf_counter()
        self.scan, self.counts["rows"] = self._source()
        self.shards = self.options.shards_for(self.counts["rows"])
        users, items = self._vocabularies()
        self._divide(users, items)
        self.done(f"{self.counts['rows']:,} rows in {self.shards} parts")
        left = self._reduce(len(items.ids))
        self.done(f"{self.counts['repeated']:,} repeated rows left out")
        kept_users, kept_items, rounds = self._core(left, len(users.ids), len(items.ids))
        self.done(f"k-core after {rounds} rounds")
        user_ids, used = (
            users.ids.filter(pl.Series(kept_users)),
            items.ids.filter(pl.Series(kept_items)),
        )
        check_core(self.options, len(user_ids))
        table = read_items(self.options, used.dtype)
        catalogue = folders.catalogue(self.options, used, table)
        item_index = np.zeros(len(items.ids), np.int32)
        item_index[kept_items] = catalogue.search_sorted(used).to_numpy()
        self._spread(kept_users, kept_items, item_index)
        self.done("rows in the shards of their users")
        unit = self._write()
        self.done("shards sorted, split and written")
        name = Path(self.options.interactions).expanduser().stem
        return folders.Made(name, user_ids, catalogue, table, self.counts, unit, self.shards)

    def done(self, what: str) -> None:
        now = time.perf_counter()
        self.note(f"{now - self.began:8.1f} s  {what}")
        self.began = now

    def _path(self, stage: str, number: int) -> Path:
        return self.folder / folders.WORK / f"{stage}-{number:05d}"

    def _parts(self, stage: str) -> Iterator[tuple[int, np.ndarray]]:
        for number in range(self.shards):
            path = self._path(stage, number)
            there = path.exists() and path.stat().st_size
            yield number, np.fromfile(path, ROW) if there else np.zeros(0, ROW)

    def _source(self) -> tuple[pl.LazyFrame, int]:
        o = self.options
        scan = pl.scan_parquet(parquet_files(o.interactions, "interactions"))
        schema = scan.collect_schema()
        check_schema(schema, o)
        ids = {
            name: pl.col(column).cast(pl.Int64 if schema[column].is_integer() else pl.String)
            for name, column in (("user", o.user), ("item", o.item))
        }
        rating = pl.col(o.rating).cast(pl.Float32) if o.rating else pl.lit(1.0, pl.Float32)
        scan = scan.select(**ids, rating=rating, timestamp=pl.col(o.timestamp).cast(pl.Int64))
        return scan, scan.select(pl.len()).collect(engine="streaming").item()

    def _complete(self) -> pl.Expr:
        known = pl.all_horizontal(pl.col("user", "item", "timestamp").is_not_null())
        return known & pl.col("rating").is_finite().fill_null(False)

    def _vocabularies(self) -> tuple[_Ids, _Ids]:
        o = self.options
        good = self._complete()
        bad = self.scan.select((~good).sum()).collect(engine="streaming").item()
        self.counts["malformed"] = bad
        check_malformed(o, bad, self.counts["rows"])
        self.scan = self.scan.filter(good)
        if o.min_rating is not None:
            self.scan = self.scan.filter(pl.col("rating") >= o.min_rating)
        schema = self.scan.collect_schema()
        found = {name: _Distinct(schema[name]) for name in ("user", "item")}
        for batch in self.scan.select(*found).collect_batches(
            chunk_size=BATCH, maintain_order=False, engine="streaming"
        ):
            for name, distinct in found.items():
                distinct.add(batch[name])
        users, items = (_Ids(distinct.sorted()) for distinct in found.values())
        self.done(f"{len(users.ids):,} users and {len(items.ids):,} items in the source")
        return users, items

    def _divide(self, users: _Ids, items: _Ids) -> None:
        """Writes the rows to one file for each remainder of the user, in their order."""
        total = 0
        with _Files(self, "divided") as files:
            for batch in self.scan.collect_batches(
                chunk_size=BATCH, maintain_order=True, engine="streaming"
            ):
                rows = np.empty(batch.height, ROW)
                rows["user"], rows["item"] = users.of(batch["user"]), items.of(batch["item"])
                for name in ("rating", "timestamp"):
                    rows[name] = batch[name].to_numpy()
                files.append(rows["user"] % self.shards, rows)
                total += batch.height
        self.counts["below_min_rating"] = self.counts["rows"] - self.counts["malformed"] - total
        check_rows(self.options, total)

    def _reduce(self, num_items: int) -> int:
        """Sorts each part by (user, time), keeps one row per pair; returns how many there are."""
        repeated, left = 0, 0
        for number, rows in self._parts("divided"):
            frame = pl.DataFrame({name: rows[name] for name in ROW.names or ()})
            frame = frame.sort("user", "timestamp", maintain_order=True)
            if frame.height:
                found = events.reduce(frame, num_items, self.options.repeats, {})
                frame, repeated = found.rows, repeated + found.repeated
            left += frame.height
            kept = np.empty(frame.height, ROW)
            for name in ROW.names or ():
                kept[name] = frame[name].to_numpy()
            kept.tofile(self._path("reduced", number))
            self._path("divided", number).unlink(missing_ok=True)
        self.counts["repeated"] = repeated
        return left

    def _core(self, left: int, users: int, items: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The users and items of the k-core, as masks, and the number of rounds."""
        o, rounds = self.options, 0
        user_ok, item_ok = np.ones(users, bool), np.ones(items, bool)
        while True:
            rounds += 1
            size, counts = 0, np.zeros(items, np.int64)
            per_user = np.zeros(users, np.int32)
            for _, rows in self._parts("reduced"):
                alive = user_ok[rows["user"]] & item_ok[rows["item"]]
                user, item = rows["user"][alive], rows["item"][alive]
                seen = np.bincount(user, minlength=1)
                per_user[: len(seen)] += seen.astype(np.int32)
                counts += np.bincount(item, minlength=items)
                size += len(user)
            next_users = per_user >= max(1, o.min_interactions)
            next_items = counts >= max(1, o.min_item_interactions)
            same = (next_users == user_ok).all() and (next_items == item_ok).all()
            user_ok, item_ok = next_users, next_items
            if same or not size:
                self.counts["below_min_interactions"] = left - size
                return user_ok, item_ok, rounds

    def _spread(
        self, kept_users: np.ndarray, kept_items: np.ndarray, item_index: np.ndarray
    ) -> None:
        """Writes the rows of the core, with their indices, to the shards of their users."""
        user_index = (np.cumsum(kept_users) - 1).astype(np.int32)
        with _Files(self, "indexed") as files:
            for number, rows in self._parts("reduced"):
                rows = rows[kept_users[rows["user"]] & kept_items[rows["item"]]]
                rows["user"], rows["item"] = user_index[rows["user"]], item_index[rows["item"]]
                files.append(rows["user"] % self.shards, rows)
                self._path("reduced", number).unlink()

    def _write(self) -> str:
        """Writes the shards, sorted and split; returns the unit of their timestamps."""
        classes, divisible, total = np.zeros(5, np.int64), 3, 0
        for _, rows in self._parts("indexed"):
            times = rows["timestamp"]
            bounds = [COUNTS, *LIMITS.values()]
            places = np.searchsorted(bounds, np.abs(times), side="right")
            classes += np.bincount(places, minlength=5)
            while divisible and (times % 1000**divisible).any():
                divisible -= 1
            total += len(rows)
        unit, divisor = unit_of(classes.tolist(), divisible, self.options.time_unit)
        cuts = None
        if self.options.split == "temporal":
            ranks = temporal_ranks(total, self.options.ratios)
            cuts = select(lambda: (r["timestamp"] for _, r in self._parts("indexed")), ranks)
        for number, rows in self._parts("indexed"):
            rows = rows[np.argsort(rows["user"], kind="stable")]
            columns = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
            write_split(self.folder, number, columns, cuts, divisor)
            self._path("indexed", number).unlink(missing_ok=True)
        return unit


class _Files(contextlib.ExitStack):
    """One open file of a stage for each part, to which rows are appended."""

    def __init__(self, maker: _Maker, stage: str):
        super().__init__()
        self.files = [
            self.enter_context(maker._path(stage, number).open("wb"))
            for number in range(maker.shards)
        ]

    def append(self, part: np.ndarray, rows: np.ndarray) -> None:
        order = np.argsort(part.astype(np.uint16), kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=len(self.files)))
        rows = rows[order]
        for file, start, stop in zip(self.files, [0, *ends[:-1]], ends, strict=True):
            file.write(rows[start:stop].tobytes())


def write_split(
    folder: Path,
    number: int,
    columns: dict[str, np.ndarray],
    cuts: tuple[int, int] | None,
    divisor: int,
) -> None:
    """Writes a shard with its split.

    columns: user, item, rating and raw timestamp, sorted by (user, time). cuts: of split
    'temporal', raw times; None: leave-one-out. divisor: what times are divided by.
    """
    times = columns["timestamp"]
    if cuts is not None:
        codes = temporal_codes(times, *cuts)
    else:
        sizes = np.bincount(columns["user"], minlength=1)
        indptr = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
        codes = assign("leave_one_out", indptr, times, (0.8, 0.1, 0.1), 0, times)
    folders.write_shard(folder, number, columns | {"timestamp": times // divisor, "split": codes})


def select(chunks: Callable[[], Iterator[np.ndarray]], ranks: tuple[int, int]) -> tuple[int, int]:
    """The values with these ranks, from 0, among all whole numbers of ``chunks()``, exactly."""

    def histogram(low: int, high: int, width: int) -> np.ndarray:
        counts = np.zeros(BINS + 1, np.int64)
        for chunk in chunks():
            inside = chunk[(chunk >= low) & (chunk <= high)]
            counts += np.bincount((inside - low) // width, minlength=BINS + 1)
        return counts

    parts = [(int(chunk.min()), int(chunk.max())) for chunk in chunks() if len(chunk)]
    bounds = min(part[0] for part in parts), max(part[1] for part in parts)
    return narrow(bounds, ranks[0], histogram), narrow(bounds, ranks[1], histogram)


def narrow(bounds: tuple[int, int], rank: int, histogram: Callable[..., np.ndarray]) -> int:
    """The value with a rank among whole numbers that lie within ``bounds``.

    histogram: of (low, high, width) to the numbers of values from low to high in ranges of that
    width, i64 [``BINS`` + 1]. It is called for the range of the call before that has the rank,
    until the width is 1.
    """
    low, high = bounds
    while low < high:
        width = -(-(high - low + 1) // BINS)
        ends = np.cumsum(histogram(low, high, width))
        place = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[place - 1]) if place else 0
        low, high = low + place * width, min(high, low + (place + 1) * width - 1)
    return low
