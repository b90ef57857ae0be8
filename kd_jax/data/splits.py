"""How interactions are divided into train (0), valid (1), test (2) and fold-in (3).

Rows come sorted by (user, time); each function returns the code of every row. Whatever the split, nothing in a
user's history is later than what is predicted from it: within a user the codes never decrease
(0 or 3, then 1, then 2). Why there are four codes is told at ``strong``.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int8, Int64

from kd_jax.errors import InputError, nearest

TRAIN, VALID, TEST, FOLD_IN = 0, 1, 2, 3
SPLITS = ("leave_one_out", "temporal", "ratio", "strong", "column")
NAMES = {"train": TRAIN, "valid": VALID, "test": TEST, "fold_in": FOLD_IN, "validation": VALID, "val": VALID,
         "dev": VALID, "0": TRAIN, "1": VALID, "2": TEST, "3": FOLD_IN}

NAMES_OF = ("train", "valid", "test", "fold_in")
Codes = Int8[np.ndarray, " N"]


def leave_one_out(indptr: Int64[np.ndarray, " U+1"]) -> Codes:
    """A user's last interaction is the test, the one before it valid; with fewer than three all of them are train."""
    codes = np.zeros(indptr[-1], np.int8)
    last = indptr[1:][np.diff(indptr) >= 3]
    codes[last - 1] = TEST
    codes[last - 2] = VALID
    return codes


def temporal(timestamp: Int64[np.ndarray, " N"], ratios: tuple[float, float, float]) -> Codes:
    """Two moments cut all interactions: train is before the first, test from the second on.

    The moments are quantiles of time. What happened at the same time is never parted: it goes to the later side.
    """
    ranks = [min(int(len(timestamp) * share + 1e-9), len(timestamp) - 1) for share in np.cumsum(ratios)[:2]]
    first, second = np.partition(timestamp, ranks)[ranks]
    return (timestamp >= first).astype(np.int8) + (timestamp >= second)


def ratio(indptr: Int64[np.ndarray, " U+1"], ratios: tuple[float, float, float]) -> Codes:
    """Each user's interactions in order of time, cut at the rounded shares; the first is always train."""
    sizes = np.diff(indptr)
    place = np.arange(indptr[-1]) - np.repeat(indptr[:-1], sizes)
    cuts = [np.maximum(1, np.floor(sizes * share + 0.5 + 1e-9)).astype(np.int64) for share in np.cumsum(ratios)[:2]]
    first, second = (np.repeat(cut, sizes) for cut in cuts)
    return (place >= first).astype(np.int8) + (place >= second)


def strong(indptr: Int64[np.ndarray, " U+1"], ratios: tuple[float, float, float], seed: int) -> Codes:
    """Strong generalisation: the users themselves are divided, at random by ``ratios``.

    All of a train user's interactions are train. Of a valid or test user the first 80 % are fold-in (code 3): history
    when the user is judged, but never trained on; the last 20 % (at least one) are the targets. Users with a single
    interaction can't be judged and are train. Train users may act later than a held-out user's targets, as in the
    published protocol (Liang et al. 2018): the guarantee of order is within each user.
    """
    sizes = np.diff(indptr)
    able = np.random.default_rng(seed).permutation(np.flatnonzero(sizes >= 2))
    counts = [int(len(sizes) * share + 0.5) for share in ratios[1:]]
    group = np.zeros(len(sizes), np.int8)
    group[able[: counts[0]]] = VALID
    group[able[counts[0] : sum(counts)]] = TEST
    targets = np.maximum(1, (sizes * 0.2 + 0.5 + 1e-9).astype(np.int64))
    late = np.repeat(indptr[1:] - targets, sizes) <= np.arange(indptr[-1])
    codes = np.repeat(group, sizes)
    codes[(codes > 0) & ~late] = FOLD_IN
    return codes


def column(values: pl.Series) -> Codes:
    """The source's own split. Raises InputError on a value that names none."""
    names = values.cast(pl.String).str.to_lowercase()
    codes = names.replace_strict(NAMES, default=None, return_dtype=pl.Int8)
    if codes.has_nulls():
        unknown = values.filter(codes.is_null())[0]
        raise InputError(f"split column: value {unknown!r} names no split{nearest(unknown, ('train', 'valid', 'test', 'fold_in'))}")
    return codes.to_numpy()


def assign(
    name: str,
    indptr: Int64[np.ndarray, " U+1"],
    timestamp: Int64[np.ndarray, " N"],
    ratios: tuple[float, float, float],
    seed: int,
    given: Codes | None,
) -> Codes:
    """The codes of the split called ``name``. given: the codes of 'column'.

    Raises InputError if the source's own split puts something later into the history of something earlier.
    """
    if name == "column":
        assert given is not None
        level = np.where(given == FOLD_IN, TRAIN, given)
        late = np.setdiff1d(np.flatnonzero(level[1:] < level[:-1]) + 1, indptr)
        late = late[timestamp[late] > timestamp[late - 1]]
        if len(late):
            raise InputError(
                f"split column: {len(late):,} rows are later than a target that they are the history of (timestamp "
                f"{timestamp[late[0]]} is {NAMES_OF[given[late[0]]]}, {timestamp[late[0] - 1]} of the same user "
                f"{NAMES_OF[given[late[0] - 1]]}); to take the split as it is, leave the timestamp column out"
            )
        return given
    return {
        "leave_one_out": lambda: leave_one_out(indptr),
        "temporal": lambda: temporal(timestamp, ratios),
        "ratio": lambda: ratio(indptr, ratios),
        "strong": lambda: strong(indptr, ratios, seed),
    }[name]()
