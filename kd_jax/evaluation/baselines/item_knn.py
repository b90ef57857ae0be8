"""Item-kNN: the items that were chosen by the same users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from kd_jax.evaluation.baselines.base import Clicks, Fitted, TooLarge

MOST_PAIRS = 2_000_000_000  # of items of one user, over all users: some 20 s
_ROWS = 1024  # items whose similarities exist at a time


@dataclass(frozen=True)
class ItemKnn:
    """The score of an item is the sum of its similarities to the items that the user chose.

    The similarity of two items is the cosine of their columns, times n / (n + shrink) for n common
    users; an item has its most similar ``neighbours`` (of equal ones the first), itself excluded.
    Source: Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004; the shrink
    is that of Bell & Koren, ICDM 2007.
    """

    settings: tuple[dict[str, float], ...] = (
        {"neighbours": 50, "shrink": 20.0},
        {"neighbours": 500, "shrink": 20.0},
    )

    def fit(self, clicks: Clicks, *, neighbours: int, shrink: float) -> Fitted:
        """Raises TooLarge above ``MOST_PAIRS``."""
        lengths = np.diff(clicks.indptr).astype(np.float64)
        if (pairs := float(np.sum(lengths**2))) > MOST_PAIRS:
            raise TooLarge(f"{pairs:.1e} pairs of items of a user are more than {MOST_PAIRS:.0e}")
        by_item = clicks.T.tocsr()
        norms = np.sqrt(np.maximum(np.diff(by_item.indptr), 1)).astype(np.float32)
        parts = []
        for start in range(0, by_item.shape[0], _ROWS):
            common = by_item[start : start + _ROWS] @ clicks
            common.sort_indices()
            row, column = common.tocoo().coords
            row, count = row + start, common.data
            value = count / (norms[row] * norms[column]) * (count / (count + np.float32(shrink)))
            value[row == column] = 0.0
            parts.append(_first(row, column, value, neighbours))
        row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        items = by_item.shape[0]
        similar = scipy.sparse.csr_array((value, (row, column)), shape=(items, items))

        def scores(users: np.ndarray, history: Clicks) -> np.ndarray:
            return (history @ similar).toarray()

        return Fitted(scores, similar.nnz)


def _first(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``most`` entries of each row with the highest positive values, first columns first.

    row, column: ascending. value: at most 1.
    """
    there = value > 0
    row, column, value = row[there], column[there], value[there]
    start = np.searchsorted(row, row)
    if np.bincount(row, minlength=1).max(initial=0) > most:
        order = np.argsort(row - 0.5 * value.astype(np.float64), kind="stable")
        kept = order[np.arange(len(row)) - start < most]
        row, column, value = row[kept], column[kept], value[kept]
    return row, column, value
