"""Splits of the interactions into train (0), valid (1), test (2) and fold-in (3).

Rows are sorted by (user, time), and each function returns the code of every row. Under every split,
no interaction in a user's history is later than the target predicted from it: within a user, train
or fold-in comes first, then valid, then test.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int8, Int64

from kd_jax.core.errors import InputError, nearest

TRAIN, VALID, TEST, FOLD_IN = 0, 1, 2, 3
NAMES = ("train", "valid", "test", "fold_in")
ALIASES = {
    "validation": VALID,
    "val": VALID,
    "dev": VALID,
    "0": TRAIN,
    "1": VALID,
    "2": TEST,
    "3": FOLD_IN,
}
SPLITS = ("leave_one_out", "temporal", "ratio", "strong", "column")

Ratios = tuple[float, float, float]
Codes = Int8[np.ndarray, " N"]
Indptr = Int64[np.ndarray, " rows"]


def assign(
    name: str,
    indptr: Indptr,
    timestamp: Int64[np.ndarray, " N"],
    ratios: Ratios,
    seed: int,
    own: Codes,
) -> Codes:
    """The codes of the split ``name``, one of SPLITS.

    indptr: user u has the rows indptr[u]:indptr[u + 1]. ratios: train, valid and test shares. own:
    the codes in the split column of the source, for 'column'.
    """
    if name == "leave_one_out":
        return leave_one_out(indptr)
    if name == "temporal":
        return temporal(timestamp, ratios)
    if name == "ratio":
        return ratio(indptr, ratios)
    if name == "strong":
        return strong(indptr, ratios, seed)
    check_order(own, indptr, timestamp)
    return own


def leave_one_out(indptr: Indptr) -> Codes:
    """Each user's last interaction is test and the one before valid.

    All interactions of a user with fewer than three are train.
    """
    codes = np.zeros(indptr[-1], np.int8)
    last = indptr[1:][np.diff(indptr) >= 3] - 1
    codes[last] = TEST
    codes[last - 1] = VALID
    return codes


def temporal(timestamp: Int64[np.ndarray, " N"], ratios: Ratios) -> Codes:
    """Two times divide all interactions: train is before the first, test from the second on.

    The times are quantiles of the timestamps. Interactions with equal timestamps are never divided;
    they belong to the later split.
    """
    ranks = list(temporal_ranks(len(timestamp), ratios))
    return temporal_codes(timestamp, *np.partition(timestamp, ranks)[ranks])


def temporal_ranks(rows: int, ratios: Ratios) -> tuple[int, int]:
    """The ranks, from 0, of the timestamps at which valid and test begin."""
    first, second = (min(int(rows * share + 1e-9), rows - 1) for share in np.cumsum(ratios)[:2])
    return first, second


def temporal_codes(timestamp: Int64[np.ndarray, " N"], valid: int, test: int) -> Codes:
    """The codes of interactions where valid and test begin at these times."""
    return (timestamp >= valid).astype(np.int8) + (timestamp >= test)


def ratio(indptr: Indptr, ratios: Ratios) -> Codes:
    """Each user's interactions in order of time, divided by ``ratios``, rounded.

    The first interaction of a user is always train.
    """
    sizes = np.diff(indptr)
    order = np.arange(indptr[-1]) - np.repeat(indptr[:-1], sizes)
    first, second = (
        np.repeat(np.maximum(1, _rounded(sizes * share)), sizes) for share in np.cumsum(ratios)[:2]
    )
    return (order >= first).astype(np.int8) + (order >= second)


def strong(indptr: Indptr, ratios: Ratios, seed: int) -> Codes:
    """Strong generalisation: users are divided at random into train, valid and test users.

    All interactions of a train user are train. Of a valid or test user the first 80 % are fold-in
    (history in the evaluation, never trained on) and the last 20 %, at least one, are the targets.
    A user with a single interaction cannot be evaluated and is a train user. As in the published
    protocol, train users may have interactions later than a held-out user's targets: the order of
    time holds within each user. Source: Liang et al., "Variational Autoencoders for Collaborative
    Filtering", WWW 2018, section 4.2.
    """
    sizes = np.diff(indptr)
    able = np.random.default_rng(seed).permutation(np.flatnonzero(sizes >= 2))
    valid, test = (int(_rounded(len(sizes) * share)) for share in ratios[1:])
    group = np.zeros(len(sizes), np.int8)
    group[able[:valid]] = VALID
    group[able[valid : valid + test]] = TEST
    targets = np.maximum(1, _rounded(sizes * 0.2))
    codes = np.repeat(group, sizes)
    early = np.arange(indptr[-1]) < np.repeat(indptr[1:] - targets, sizes)
    codes[early & (codes > 0)] = FOLD_IN
    return codes


def column(values: pl.Series) -> Codes:
    """The codes of a split column; raises InputError for a value that is no name of a split."""
    known = {name: code for code, name in enumerate(NAMES)} | ALIASES
    codes = (
        values.cast(pl.String)
        .str.to_lowercase()
        .replace_strict(known, default=None, return_dtype=pl.Int8)
    )
    if codes.has_nulls():
        unknown = values.filter(codes.is_null())[0]
        raise InputError(
            f"the split column holds {unknown!r}, which is no split{nearest(unknown, NAMES)}"
        )
    return codes.to_numpy()


def check_order(codes: Codes, indptr: Indptr, timestamp: Int64[np.ndarray, " N"]) -> None:
    """Raises InputError if a user's history has an interaction later than a target."""
    order = level(codes)
    late = np.setdiff1d(np.flatnonzero(order[1:] < order[:-1]) + 1, indptr)
    if len(late):
        row = late[0]
        raise InputError(
            f"the split column makes {len(late):,} rows the history of an earlier row (the"
            f" first: a user's {NAMES[codes[row]]} at timestamp {timestamp[row]},"
            f" {NAMES[codes[row - 1]]} at {timestamp[row - 1]}); set"
            " data.files.columns.timestamp='' to"
            " take this split as it is"
        )


def level(codes: Codes) -> Codes:
    """The order in time of the splits: fold-in counts as train."""
    return np.where(codes == FOLD_IN, TRAIN, codes)


def _rounded(value: float | np.ndarray) -> np.ndarray:
    """The nearest whole number, halves up."""
    return np.floor(np.asarray(value) + 0.5 + 1e-9).astype(np.int64)
