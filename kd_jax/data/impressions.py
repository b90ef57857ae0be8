"""Impressions: the lists that users were shown, and what they clicked in them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int8, Int32, Int64

from kd_jax.core.files import atomic
from kd_jax.data.splits import FOLD_IN, TEST, TRAIN, VALID, column, level

FILE = "impressions.parquet"
NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True, eq=False)
class Impressions:
    """Q lists of shown items, sorted by (user, time).

    user: index of the user. timestamp: as that of the data set's interactions. split: 0 train, 1
    valid, 2 test, 3 fold-in: that of the interactions at this time (``build``). List q has the
    shown items item[indptr[q]:indptr[q + 1]], in the order shown, and clicked says which of them
    were chosen.
    """

    user: Int32[np.ndarray, " Q"]
    timestamp: Int64[np.ndarray, " Q"]
    split: Int8[np.ndarray, " Q"]
    indptr: Int64[np.ndarray, " Q+1"]
    item: Int32[np.ndarray, " S"]
    clicked: Bool[np.ndarray, " S"]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> Int64[np.ndarray, " Q"]:
        return np.diff(self.indptr)

    @property
    def clicks(self) -> Int64[np.ndarray, " Q"]:
        """The number of clicked items of each list."""
        total = np.concatenate([[0], np.cumsum(self.clicked)])
        return total[self.indptr[1:]] - total[self.indptr[:-1]]

    @property
    def mixed(self) -> Bool[np.ndarray, " Q"]:
        """The lists with at least one clicked item, and one that is not."""
        return (self.clicks > 0) & (self.clicks < self.lengths)

    @cached_property
    def checksum(self) -> str:
        """16 hex digits of SHA-256 over the arrays."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).data)
        return digest.hexdigest()[:16]

    def select(self, chosen: Bool[np.ndarray, " Q"]) -> Impressions:
        """The ``chosen`` lists, in their order."""
        within = np.repeat(chosen, self.lengths)
        indptr = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        rows = (self.user[chosen], self.timestamp[chosen], self.split[chosen])
        return Impressions(*rows, indptr, self.item[within], self.clicked[within])

    def save(self, folder: Path) -> None:
        """Writes impressions.parquet: a row per list."""
        rows = pl.DataFrame({name: getattr(self, name) for name in ("user", "timestamp", "split")})
        place = pl.Series(np.repeat(np.arange(len(self)), self.lengths))
        shown = pl.DataFrame({"list": place, "items": self.item, "clicked": self.clicked})
        lists = shown.group_by("list", maintain_order=True).agg("items", "clicked").drop("list")
        with atomic(folder / FILE) as path:
            rows.hstack(lists).write_parquet(path)


def checksum_of(found: Impressions | None) -> str | None:
    """The checksum; None where there are no impressions."""
    return None if found is None else found.checksum


def load(frame: pl.DataFrame) -> Impressions:
    """The Impressions that ``Impressions.save`` wrote."""
    lengths = frame["items"].list.len().to_numpy()
    user, timestamp, split = (frame[name].to_numpy() for name in ("user", "timestamp", "split"))
    return Impressions(
        user,
        timestamp,
        split,
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        frame["items"].explode().to_numpy(),
        frame["clicked"].explode().to_numpy(),
    )


def build(
    raw: pl.DataFrame,
    ids: tuple[pl.Series, pl.Series],
    interactions: Mapping[str, np.ndarray],
    split: str,
) -> tuple[Impressions | None, dict[str, int]]:
    """The impressions of known users, of which the items of the catalogue are kept.

    raw: ``RawData.impressions`` with timestamps as those of the interactions. ids: of users and
    items, sorted. interactions: the arrays user, timestamp and split of the data set. A list is of
    the latest split that has begun at its time: for all users together under ``split`` 'temporal',
    else for its own user; under 'column' of that in its own column, if there is one. Returns them,
    None where no list is left, and counts for people.
    """
    own = "split" in raw.columns and split == "column"
    known = raw.with_row_index("list").select(
        "list",
        "timestamp",
        "items",
        "clicked",
        split=pl.Series(column(raw["split"])) if own else pl.lit(0, pl.Int8),
        user=_index(raw["user"], ids[0]),
    )
    known = known.filter(pl.col("user").is_not_null()).sort("user", "timestamp", "list")
    shown = known.with_columns(list=pl.int_range(pl.len())).explode("items", "clicked")
    shown = shown.select("list", "clicked", item=_index(shown["items"], ids[1]))
    whole = shown.height
    shown = shown.filter(pl.col("item").is_not_null())
    lengths = np.bincount(shown["list"].to_numpy(), minlength=known.height)
    some = lengths > 0
    rows = known.filter(pl.Series(some))
    user, timestamp = rows["user"].to_numpy(), rows["timestamp"].to_numpy()
    found = Impressions(
        user,
        timestamp,
        rows["split"].to_numpy() if own else _codes(user, timestamp, interactions, split),
        np.concatenate([[0], np.cumsum(lengths[some])]),
        shown["item"].to_numpy(),
        shown["clicked"].to_numpy(),
    )
    counts = {
        "impressions": len(found),
        "impressions_of_unknown_users": raw.height - known.height,
        "shown_items_that_are_not_in_the_catalogue": whole - shown.height,
    }
    return (found if len(found) else None), counts


def _index(values: pl.Series, ids: pl.Series) -> pl.Series:
    """The index of each value in the sorted ``ids``, Int32; null where it is not among them."""
    table = pl.DataFrame({"id": ids, "index": np.arange(len(ids), dtype=np.int32)})
    found = values.rename("id").to_frame().join(table, on="id", how="left", maintain_order="left")
    return found["index"]


def _codes(
    user: np.ndarray, time: np.ndarray, interactions: Mapping[str, np.ndarray], split: str
) -> Int8[np.ndarray, " Q"]:
    owner, moment = interactions["user"], interactions["timestamp"]
    levels = level(interactions["split"])
    size = int(max(owner.max(initial=0), user.max(initial=0))) + 1
    codes = np.zeros(len(user), np.int8)
    for code in (VALID, TEST):
        first = np.full(size, NEVER)
        np.minimum.at(first, owner[levels >= code], moment[levels >= code])
        codes += time >= (first.min() if split == "temporal" else first[user])
    held_out = np.zeros(size, bool)
    held_out[owner[interactions["split"] == FOLD_IN]] = True
    codes[(codes == TRAIN) & held_out[user]] = FOLD_IN
    return codes
