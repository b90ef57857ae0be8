"""How well the newest item of a user predicts the next one: which recipe suits the data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse

from kd_jax.data.dataset import Dataset
from kd_jax.data.splits import TRAIN, VALID

K = 10
USERS = 1000  # that are judged, at most
FEWEST = 100  # users for a suggestion
RATIO = 4.0  # of the two values, from which on models of sequences are suggested
CLICKS = "configs/citeulike.py, which has a command for own data"
TIMES = "--config.data.files.columns.timestamp=COLUMN"  # which that configuration does not read
NO_TEXT = "--config.student.sasrec.vectors=random"
SEQUENCES, TRENDS, TEACHER = (f"configs/csv.py{recipe}" for recipe in ("", ":trends", ":teacher"))
DISCOUNTS = 1 / np.log2(np.arange(K) + 2)


class NextItems(NamedTuple):
    """NDCG@10 on validation, of ``users`` users drawn once, at most ``USERS``.

    followers: of the items that came next after the user's newest one in train histories, by how
    often, then the popular items. popular: of these alone.
    """

    followers: float
    popular: float
    users: int


def next_items(dataset: Dataset) -> NextItems | None:
    """See ``NextItems``; None without a user who can be judged."""
    follows, popular = _followers(dataset), np.argsort(-dataset.item_counts, kind="stable")
    (starts, seen), (ends, chosen) = dataset.history(VALID), dataset.targets(VALID)
    judged = np.flatnonzero((np.diff(starts) > 0) & (np.diff(ends) > 0))
    judged = np.random.default_rng(0).permutation(judged)[:USERS]
    values = []
    for user in judged.tolist():
        history = seen[starts[user] : starts[user + 1]]
        targets = np.setdiff1d(chosen[ends[user] : ends[user + 1]], history)
        if not len(targets):
            continue
        row = slice(*follows.indptr[history[-1] : history[-1] + 2])
        counts, items = follows.data[row], follows.indices[row]
        after = items[np.lexsort((-dataset.item_counts[items], -counts))]
        rest = popular[: K + len(history) + len(after)]
        values.append([
            _ndcg(_first(np.concatenate([after, rest]), history), targets),
            _ndcg(_first(rest, history), targets),
        ])  # fmt: skip
    if not values:
        return None
    followers, by_count = np.mean(values, axis=0).tolist()
    return NextItems(followers, by_count, len(values))


def suggestion(found: NextItems, dated: bool, by_time: bool, texts: bool = True) -> str:
    """One line that names the recipe for such data (docs/results.md).

    dated: whether timestamps are dates. by_time: whether the split is one by time. texts: whether
    any item has a text; without, there is nothing for a text teacher to read, nor for items to
    start from. There is no recipe in it if too few users were judged, or if neither list has a
    target.
    """
    measured = (
        f"data: next items: what followed a user's newest item has NDCG@10 {found.followers:.4f} on"
        f" validation, popular items {found.popular:.4f} ({found.users:,} users)"
    )
    if found.users < FEWEST or not found.followers:
        return measured
    many = found.followers >= RATIO * found.popular
    if many:
        recipe = SEQUENCES if texts else f"{SEQUENCES} with {NO_TEXT}"
    elif not texts:
        recipe = CLICKS + (f", with {TIMES}" if dated else "")
    elif dated:
        recipe = TRENDS if by_time else f"{TEACHER}, and for a split by time {TRENDS}"
    else:
        recipe = TEACHER
    return (
        f"{measured}; the first is {'at least' if many else 'less than'} {RATIO:g} times the"
        f" second: the recipe for such data is that of {recipe} (docs/results.md); if this run has"
        " another recipe, use a new --workdir"
    )


def _followers(dataset: Dataset) -> scipy.sparse.csr_array:
    """How often each item came next after another in the train histories, [I, I]."""
    indptr, items = dataset.targets(TRAIN)
    first = np.zeros(len(items) + 1, bool)
    first[indptr] = True  # a pair does not cross from one user to the next
    inside = ~first[1 : len(items)]
    pairs = items[:-1][inside], items[1:][inside]
    shape = dataset.num_items, dataset.num_items
    return scipy.sparse.csr_array((np.ones(len(pairs[0]), np.float32), pairs), shape=shape)


def _first(order: np.ndarray, without: np.ndarray) -> np.ndarray:
    """The first K of ``order`` that are not in ``without``, each once."""
    places = np.sort(np.unique(order, return_index=True)[1])
    order = order[places]
    return order[~np.isin(order, without)][:K]


def _ndcg(found: np.ndarray, targets: np.ndarray) -> float:
    gain = DISCOUNTS[: len(found)] @ np.isin(found, targets)
    return float(gain / DISCOUNTS[: len(targets)].sum())
