"""EASE: the linear model of clicks with the smallest squared error, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kd_jax.evaluation.baselines.base import Clicks, Fitted, TooLarge, clicked

MOST_BYTES = 2**32  # of the four matrices of items x items that exist at a time


@dataclass(frozen=True)
class Ease:
    """Item weights B with a diagonal of 0; a user's scores are the clicks times B.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equations 8 and
    9. B has rows and columns for the items that were clicked: those of other items are 0.
    """

    settings: tuple[dict[str, float], ...] = ({"l2": 100.0}, {"l2": 300.0}, {"l2": 1000.0})

    def fit(self, clicks: Clicks, *, l2: float) -> Fitted:
        """l2: the weight of the squares of B. Raises TooLarge above ``MOST_BYTES``."""
        warm = np.flatnonzero(clicked(clicks))
        most = int((MOST_BYTES / 16) ** 0.5)
        if len(warm) > most:
            raise TooLarge(f"{len(warm):,} items with clicks are more than {most:,}")
        inverse = _inverse(clicks[:, warm], l2)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)

        def scores(users: np.ndarray, history: Clicks) -> np.ndarray:
            found = np.zeros(history.shape, np.float32)
            found[:, warm] = history[:, warm] @ weights
            return found

        return Fitted(scores, weights.size)


def _inverse(x: Clicks, l2: float) -> np.ndarray:
    """(X' X + l2)^-1, f32 [W, W], by an inverse of users x users where these are fewer."""
    if x.shape[0] >= x.shape[1]:
        gram = (x.T @ x).toarray()
        gram[np.diag_indices_from(gram)] += l2
        return np.linalg.inv(gram)
    gram = (x @ x.T).toarray()
    gram[np.diag_indices_from(gram)] += l2
    found = x.T @ np.linalg.inv(gram) @ x / -l2
    found[np.diag_indices_from(found)] += 1 / l2
    return found
