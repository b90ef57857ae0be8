"""The best items of score rows, in NumPy, and their diversification."""

from __future__ import annotations

import numpy as np

GROUP = 64  # items per group maximum
CROWDED = 4  # candidates per place of a list, above which rows are sorted one by one


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the ``k`` highest scores of one row f32 [I], best first.

    Ties go to the lower index. Scores of -inf and NaN are left out, so the result may be shorter.
    """
    kept = np.flatnonzero(_candidates(scores[None], k))
    order = np.argsort(-scores[kept], kind="stable")[:k]
    return kept[order]


def best_rows(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``best`` of every row f32 [B, I]: items int32 [B, k], padded with -1, and their scores.

    The scores of padding are -inf.
    """
    rows, width = scores.shape
    items = np.full((rows, k), -1, np.int32)
    values = np.full((rows, k), -np.inf, np.float32)
    kept = np.flatnonzero(_candidates(scores, k))
    if len(kept) > CROWDED * k * rows:  # a sort of all rows together would take much memory
        for place, row_scores in enumerate(scores):
            found = best(row_scores, k)
            items[place, : len(found)] = found
            values[place, : len(found)] = row_scores[found]
        return items, values
    row, item = np.divmod(kept, width)
    found = scores[row, item]
    order = np.lexsort((-found, row))  # by row, then by score; stable
    starts = np.searchsorted(row, np.arange(rows + 1))
    filled = np.arange(k) < np.diff(starts)[:, None]
    chosen = order[(starts[:-1, None] + np.arange(k))[filled]]
    items[filled] = item[chosen]
    values[filled] = found[chosen]
    return items, values


def _candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """Which scores f32 [B, I] may be among the ``k`` highest of their row: bool [B, I].

    The k-th highest maximum of groups of items is a lower bound of the k-th highest score, so few
    items more than ``k`` are left. Scores of -inf and NaN are not candidates.
    """
    groups = scores.shape[1] // GROUP
    if groups <= k:
        return scores > -np.inf
    # A group is a column, because NumPy reduces over rows several times faster.
    grouped = scores[:, : groups * GROUP].reshape(len(scores), GROUP, groups)
    maxima = np.fmax(np.fmax.reduce(grouped, axis=1), -np.inf)  # -inf in place of NaN
    bounds = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    found = scores >= bounds[:, None]
    for row in np.flatnonzero(bounds == -np.inf):
        found[row] = scores[row] > -np.inf
    return found


def diversified(
    scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float, pool: int
) -> np.ndarray:
    """Indices of ``k`` items that score high and differ from each other, best first.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): of the ``pool`` best items,
    the next one maximises (1 - diversity) · relevance - diversity · (its highest cosine with those
    already chosen). Relevance is the score, scaled so that the pool spans 0 to 1. With diversity=0
    the result is ``best(scores, k)``.
    """
    found = best(scores, max(pool, k))
    if diversity == 0 or len(found) <= 1:
        return found[:k]
    values = scores[found].astype(np.float64)
    span = values[0] - values[-1]
    relevance = (values - values[-1]) / span if span > 0 else np.ones(len(found))
    rows = vectors[found].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    closest = np.full(len(found), -1.0)  # cosine with the nearest chosen item
    left = np.ones(len(found), bool)
    chosen = [0]
    while len(chosen) < min(k, len(found)):
        left[chosen[-1]] = False
        closest = np.maximum(closest, rows @ rows[chosen[-1]])
        gain = np.where(left, (1 - diversity) * relevance - diversity * closest, -np.inf)
        chosen.append(int(np.argmax(gain)))
    return found[chosen]
