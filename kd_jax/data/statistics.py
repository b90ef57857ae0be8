"""A data set in numbers that can be drawn: histories, popularity, time, cold items, texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.data.dataset import UNTIMED_ROWS, Dataset
from kd_jax.data.splits import FOLD_IN, NAMES, TEST, TRAIN, VALID
from kd_jax.data.time_units import COUNTS, EXPONENTS

BINS = 48  # of time and of text lengths
RANKS = 60  # points of the popularity curve
TOP_SHARES = (0.01, 0.1, 0.2)  # of the items

Statistics = dict[str, Any]


def statistics(dataset: Dataset) -> Statistics:
    """Numbers that describe ``dataset``, ready for JSON; see the functions of this module."""
    return {
        "history": histogram(np.diff(dataset.history(TEST)[0])),
        "popularity": popularity(dataset),
        "time": over_time(dataset),
        "cold": cold(dataset),
    }


def histogram(sizes: np.ndarray) -> Statistics:
    """Counts of whole numbers in bins that double in width: 0, 1, 2 to 3, 4 to 7, …

    Returns {'from': first number of each bin, 'count', 'median', 'largest'}.
    """
    largest = int(sizes.max(initial=0))
    starts = [0] + [2**n for n in range(largest.bit_length())]
    places = np.searchsorted(starts, sizes, side="right") - 1
    return {
        "from": starts,
        "count": np.bincount(places, minlength=len(starts)).tolist(),
        "median": float(np.median(sizes)) if len(sizes) else 0.0,
        "largest": largest,
    }


def popularity(dataset: Dataset) -> Statistics:
    """The train interactions of the items, most popular first, at ranks that grow evenly in log.

    Returns {'rank': from 1, 'interactions', 'top': share of the items -> their share of the train
    interactions}.
    """
    counts = np.sort(dataset.item_counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(counts), RANKS).round().astype(int))
    total = max(1, int(counts.sum()))
    shares = {
        str(share): int(counts[: -int(-share * len(counts) // 1)].sum()) / total
        for share in TOP_SHARES
    }
    return {
        "rank": ranks.tolist(),
        "interactions": counts[ranks - 1].tolist(),
        "top": shares,
    }


def timed(dataset: Dataset) -> bool:
    """Whether interactions have timestamps, which are otherwise the order of the rows."""
    return len(dataset.timestamp) > 0 and UNTIMED_ROWS not in dataset.counts


def dated(dataset: Dataset) -> bool:
    """Whether timestamps are dates, neither the order of the rows nor small numbers."""
    return (
        timed(dataset)
        and int(np.abs(dataset.timestamp).max()) >= COUNTS * 10 ** EXPONENTS[dataset.time_unit]
    )


def over_time(dataset: Dataset) -> Statistics | None:
    """The interactions of each split in equal stretches of time; None without timestamps.

    Returns {'edges': seconds since 1970, one more than stretches, 'splits': name -> counts, 'cuts':
    the last second of train and of valid, where these splits follow one another for all users}.
    """
    times, split = dataset.timestamp, dataset.split
    if not timed(dataset) or times.min() == times.max():
        return None
    unit = 10 ** EXPONENTS[dataset.time_unit]
    edges = np.linspace(times.min(), times.max(), BINS + 1)
    found = {
        NAMES[code]: np.histogram(times[split == code], edges)[0].tolist()
        for code in (TRAIN, VALID, TEST, FOLD_IN)
        if (split == code).any()
    }
    cuts = []
    for before, after in ((TRAIN, VALID), (VALID, TEST)):
        first, second = times[split == before], times[split == after]
        if len(first) and len(second) and first.max() <= second.min():
            cuts.append(float(first.max() / unit))
    return {"edges": (edges / unit).tolist(), "splits": found, "cuts": cuts}


def cold(dataset: Dataset) -> Statistics:
    """The share of items without a train interaction, and of each split's interactions with them.

    Returns {'items', 'valid', 'test'}; a split without interactions has None.
    """
    found: Statistics = {"items": float(np.mean(~dataset.warm))}
    for code in (VALID, TEST):
        items = dataset.item[dataset.split == code]
        found[NAMES[code]] = float(np.mean(~dataset.warm[items])) if len(items) else None
    return found


def text_lengths(lengths: np.ndarray, most: int) -> Statistics:
    """A histogram of the tokens of the item texts, of which none has more than ``most``.

    Returns {'from': first number of each bin, 'width' of the bins, 'count', 'median', 'most',
    'full': texts of ``most`` tokens, some of which are cut}.
    """
    longest = int(lengths.max(initial=1))
    width = -(-longest // BINS)
    starts = np.arange(1, longest + 1, width)
    return {
        "from": starts.tolist(),
        "width": width,
        "count": np.bincount((lengths - 1) // width, minlength=len(starts)).tolist(),
        "median": float(np.median(lengths)) if len(lengths) else 0.0,
        "most": most,
        "full": int((lengths >= most).sum()),
    }
