"""The best items of score rows, in NumPy, and their diversification."""

from __future__ import annotations

import numpy as np

GROUP = 64  # items per group maximum


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the ``k`` highest scores of one row f32 [I], best first.

    Ties go to the lower index. Scores of -inf and NaN are left out, so the result may be shorter.

    The k-th highest maximum of groups of items is a lower bound of the k-th highest score, so only
    the few items from there on are sorted.
    """
    groups = len(scores) // GROUP
    bound = -np.inf
    if groups > k:
        # A group is a column, because NumPy reduces over rows several times faster.
        maxima = np.fmax.reduce(scores[: groups * GROUP].reshape(GROUP, groups), axis=0)
        maxima = np.fmax(maxima, -np.inf)  # -inf in place of NaN
        bound = np.partition(maxima, groups - k)[groups - k]
    kept = np.flatnonzero(scores >= bound if bound > -np.inf else scores > bound)
    order = np.argsort(-scores[kept], kind="stable")[:k]
    return kept[order]


def best_rows(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``best`` of every row f32 [B, I]: items int32 [B, k], padded with -1, and their scores.

    The scores of padding are -inf.
    """
    items = np.full((len(scores), k), -1, np.int32)
    values = np.full((len(scores), k), -np.inf, np.float32)
    for row, row_scores in enumerate(scores):
        found = best(row_scores, k)
        items[row, : len(found)] = found
        values[row, : len(found)] = row_scores[found]
    return items, values


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
