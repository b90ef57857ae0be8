"""A data set in a few lines: what it has, what was left out, and what looks wrong."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl

from kd_jax.data.dataset import Dataset
from kd_jax.data.impressions import Impressions
from kd_jax.data.splits import NAMES, TEST, VALID
from kd_jax.data.statistics import dated, timed
from kd_jax.data.text import item_texts
from kd_jax.data.time_units import EXPONENTS

UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
DROPPED = (
    "malformed",
    "left_out_events",
    "below_min_rating",
    "repeated",
    "taken_back",
    "below_min_interactions",
    "beyond_max_users",
)
SHOWN = 200  # characters of the example of a text
FEW, MANY = 0.01, 0.2  # shares of interactions from which on a warning is due
GOOD = 0.75  # of the range of ratings: from there on, a rating is called good in a hint
SAME = 0.5  # share of items whose text is another's, from which on that is reported


def lines(dataset: Dataset, template: str = "") -> list[str]:
    """What was read and kept, one line per table.

    template: of the item texts, as ``teacher.lm.template``.
    """
    counts = dataset.counts
    dropped = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in DROPPED if counts.get(name)]
    left_out = ", ".join(dropped) or "none left out"
    texts = dataset.items.columns
    example = item_texts(dataset.items[:1], texts, template)[0]
    shown = dataset.impressions
    return [
        f"data: interactions: {counts.get('rows', len(dataset.user)):,} rows read,"
        f" {counts.get('interactions', len(dataset.user)):,} kept ({left_out}); users are"
        f" {_ids(dataset.user_ids)}, items are {_ids(dataset.item_ids)}; {_times(dataset)}",
        f"data: items: {dataset.num_items:,}, shown by {texts[0]!r}; text columns: "
        f"{', '.join(texts)}; for example: {example[:SHOWN]!r}",
        *([] if shown is None else [_impressions(shown)]),
    ]


def _impressions(shown: Impressions) -> str:
    """How many lists each split has, and how many of them can be judged."""
    of_split = ((name, shown.split == code) for code, name in enumerate(NAMES))
    found = [
        f"{int(there.sum()):,} {name} ({int((shown.mixed & there).sum()):,} with a chosen item and"
        " one that is not, by which they are judged and learned from)"
        for name, there in of_split
        if there.any()
    ]
    return f"data: impressions: {len(shown):,}, of them {', '.join(found)}"


def warnings(dataset: Dataset, chosen: bool, all_ratings: bool = True) -> list[str]:
    """What looks wrong, with its number and the field that changes it.

    A line begins with 'warning', or with 'data' where it concerns a small share. chosen: whether
    every interaction counts as a choice of the item (task 'rank'). all_ratings: whether none is
    left out for its rating.
    """
    found = []
    low = int((dataset.rating <= 0).sum())
    if chosen and low:
        found.append(
            f"{_weight(low, len(dataset.user), FEW)}: {low:,} interactions with a rating of 0 or"
            " less count as chosen items; leave them out with data.min_rating"
        )
    found += [*(_ratings(dataset) if chosen and all_ratings else ()), *_without_text(dataset)]
    for code, (users, targets) in unjudged(dataset).items():
        total = int((dataset.split == code).sum())
        if users:
            found.append(
                f"{_weight(targets, total, MANY)}: {users:,} {NAMES[code]} users with"
                f" {targets:,} of {total:,} interactions have no earlier interaction and are not"
                " judged"
            )
    for what, ids, index in (
        ("users", dataset.user_ids, dataset.user),
        ("items", dataset.item_ids, dataset.item),
    ):
        if ids.dtype.is_integer() and int((ids < 0).sum()) == 1 and ids[0] == -1:
            rows = int((index == 0).sum())
            found.append(
                f"warning: one of the {what} has the id -1, with {rows:,} interactions; leave"
                " these rows out if it stands for an unknown one"
            )
    ties, judged = _ties(dataset)
    if ties:
        found.append(
            f"warning: {ties:,} of {judged:,} test interactions have the time of the user's one"
            " before them: which is later is taken from the order of the rows;"
            " data.split='temporal' keeps them together"
        )
    same = _same_texts(dataset)
    if same >= SAME * dataset.num_items and dataset.num_items > 1:
        found.append(
            f"warning: {same:,} of {dataset.num_items:,} items have the same text as another;"
            " choose other columns with data.text_columns"
        )
    return found


def _ratings(dataset: Dataset) -> list[str]:
    """That ratings of all sizes count, where they differ."""
    ratings = dataset.rating[dataset.rating > 0]
    if not len(ratings) or ratings.min() == ratings.max():
        return []
    low, high = ratings.min(), ratings.max()
    good = ratings[ratings >= low + GOOD * (high - low)]
    low, bound, high = (str(value).removesuffix(".0") for value in (low, good.min(), high))
    return [
        f"data: ratings from {low} to {high} all count as chosen items; data.min_rating={bound}"
        f" would keep {len(good) / len(dataset.rating):.0%} of them"
    ]


def without_text(dataset: Dataset) -> int:
    """How many items have their id as text (data.missing_text='id')."""
    first, *others = dataset.items.columns
    ids = dataset.items[first] == dataset.item_ids.cast(pl.String)
    blank = pl.all_horizontal(pl.lit(True), *(pl.col(name) == "" for name in others))
    return int(dataset.items.select(pl.Series(ids) & blank).to_series().sum())


def _without_text(dataset: Dataset) -> list[str]:
    count = without_text(dataset)
    if not count:
        return []
    weight = "data" if count == dataset.num_items else _weight(count, dataset.num_items, FEW)
    return [f"{weight}: {count:,} of {dataset.num_items:,} items have no text: it is their id"]


def _weight(part: int, whole: int, share: float) -> str:
    return "warning" if part >= share * whole else "data"


def unjudged(dataset: Dataset) -> dict[int, tuple[int, int]]:
    """Split (1 and 2) -> users with targets but no history, and the number of these targets."""
    found = {}
    for code in (VALID, TEST):
        before = np.diff(dataset.history(code)[0])
        targets = np.diff(dataset.targets(code)[0])
        lost = (targets > 0) & (before == 0)
        found[code] = int(lost.sum()), int(targets[lost].sum())
    return found


def _ids(ids: pl.Series) -> str:
    return "whole numbers" if ids.dtype.is_integer() else "strings"


def _times(dataset: Dataset) -> str:
    times = dataset.timestamp
    if not timed(dataset):
        return "no timestamps"
    if not dated(dataset):
        return "timestamps are small numbers, taken for seconds where days count"
    size = 10 ** EXPONENTS[dataset.time_unit]
    first, last = (_day(int(end) // size) for end in (times.min(), times.max()))
    return f"timestamps in {UNITS[dataset.time_unit]} from {first} to {last} (UTC)"


def _day(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:,} seconds"


def _ties(dataset: Dataset) -> tuple[int, int]:
    """First test interactions of users at the time of the one before, and how many there are."""
    test = np.flatnonzero(dataset.split == TEST)
    test = test[test > 0]
    before = test - 1
    earlier = (dataset.user[before] == dataset.user[test]) & (dataset.split[before] != TEST)
    same = dataset.timestamp[before] == dataset.timestamp[test]
    return int((earlier & same).sum()), int(earlier.sum())


def _same_texts(dataset: Dataset) -> int:
    """The number of items whose cells are all those of an earlier item."""
    return dataset.num_items - dataset.items.n_unique()
