"""Fits the model of users that are known by their history alone (``runtime.contexts.HistoryMap``).

A student with a table of users has no vector for a new user. The map is fitted to the trained users
by ridge regression, from the recency-weighted mean of the item vectors of their train history to
their trained vectors. So a new user gets what users with such a history have learned from clicks
and from the teacher. Its hyper-parameters are selected on the validation split.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import scipy.sparse

from kd_jax.data.dataset import CSR
from kd_jax.runtime.contexts import HistoryMap

DECAYS = (3.0, 6.0, 12.0)  # interactions
SHRINKS = (0.5, 2.0)
RIDGES = (1.0,)
FOLDS = 5
SELECT = (3, 0)  # newest items of the histories that select the hyper-parameters; 0: all


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters of the map.

    decay, shrink: see ``HistoryMap``. ridge: the L2 penalty of a weight, in multiples of the mean
    square of its feature.
    """

    decay: float
    shrink: float
    ridge: float


class HistoryMaps:
    """Maps for one table of users.

    vectors: item vectors f32 [I, D]. users: user vectors f32 [U, D]; rows of zeros were never
    trained and are left out. histories: the train interactions as a CSR array, oldest first.
    """

    def __init__(self, vectors: np.ndarray, users: np.ndarray, histories: CSR):
        self.vectors = vectors
        self.users = users
        self.histories = histories
        self.fold = np.random.default_rng(0).integers(0, FOLDS, len(users))
        self.trained = (np.diff(histories[0]) > 0) & users.any(1)
        self._last: tuple[Settings, list[np.ndarray]] | None = None
        self._known: dict[tuple[float, float], list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def select(self, quality: Callable[[np.ndarray], float]) -> Settings:
        """The settings with the best mean ``quality`` of the contexts of short and whole histories.

        quality: maps cross-fitted contexts f32 [U, D] to a validation metric, higher is better.
        """

        def score(settings: Settings) -> float:
            return float(np.mean([quality(self.contexts(settings, n)) for n in SELECT]))

        grid = itertools.starmap(Settings, itertools.product(DECAYS, SHRINKS, RIDGES))
        return max(grid, key=score)

    def fit(self, settings: Settings) -> HistoryMap:
        """The map that is fitted to all trained users."""
        weights = self._solve(settings).astype(np.float32)
        return HistoryMap(weights[:-1], weights[-1], settings.decay, settings.shrink)

    def contexts(
        self, settings: Settings, length: int, newer: CSR | None = None, *, crossed: bool = True
    ) -> np.ndarray:
        """The contexts f32 [U, D] of every user's ``length`` newest items, 0 for all of them.

        crossed: whether the map of a user is fitted to the users of the other folds, or one to all.
        newer: histories in place of those that the maps are fitted to.
        """
        histories = newest(newer or self.histories, length)
        features = self._features(settings.decay, settings.shrink, histories)
        if not crossed:
            return features @ self._solve(settings).astype(np.float32)
        found = np.zeros((len(features), self.users.shape[1]), np.float32)
        for fold, weights in enumerate(self._folds(settings)):
            rows = self.fold == fold
            found[rows] = features[rows] @ weights
        return found

    def updated(self, settings: Settings, newer: CSR, *, crossed: bool = True) -> np.ndarray:
        """The vectors f32 [U, D] of all users with the histories ``newer``.

        A trained vector moves by the difference that the newer items make to the map; another user
        has the context of the whole history. crossed: see ``contexts``.
        """
        after = self.contexts(settings, 0, newer, crossed=crossed)
        before = self.contexts(settings, 0, crossed=crossed)
        return np.where(self.trained[:, None], self.users + (after - before), after)

    def _folds(self, settings: Settings) -> list[np.ndarray]:
        """The weights f32 for each fold's users; those of the last settings are kept."""
        if self._last is None or self._last[0] != settings:
            weights = [self._solve(settings, without=fold) for fold in range(FOLDS)]
            self._last = settings, [weight.astype(np.float32) for weight in weights]
        return self._last[1]

    def _features(self, decay: float, shrink: float, histories: CSR) -> np.ndarray:
        """The mean vector of each history and a constant, f32 [U, D + 1]."""
        found = means(histories, self.vectors, decay, shrink)
        return np.concatenate([found, np.ones((len(found), 1), np.float32)], axis=1)

    def _moments(self, decay: float, shrink: float) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """The trained users of each fold: their number, X'X [D + 1, D + 1] and X'Y [D + 1, D]."""
        key = decay, shrink
        if key not in self._known:
            features = self._features(decay, shrink, self.histories).astype(np.float64)
            self._known[key] = []
            for fold in range(FOLDS):
                rows = self.trained & (self.fold == fold)
                x = features[rows]
                self._known[key].append((len(x), x.T @ x, x.T @ self.users[rows]))
        return self._known[key]

    def _solve(self, settings: Settings, without: int | None = None) -> np.ndarray:
        """The weights f64 [D + 1, D] of a ridge regression; the constant has no penalty."""
        folds = enumerate(self._moments(settings.decay, settings.shrink))
        counts, grams, moments = zip(*(fold for n, fold in folds if n != without), strict=True)
        gram = sum(grams)
        penalty = settings.ridge * np.diag(gram) / max(1, sum(counts))
        penalty += 1e-9 * max(float(np.trace(gram)), 1e-9)  # features that are 0 everywhere
        penalty[-1] = 1e-9
        return np.linalg.solve(gram + np.diag(penalty), sum(moments))


def newest(histories: CSR, length: int) -> CSR:
    """The ``length`` newest items of each row of a CSR array; 0: all."""
    indptr, items = histories
    if not length:
        return histories
    kept = np.minimum(np.diff(indptr), length)
    return np.concatenate([[0], np.cumsum(kept)]), items[_ages(indptr) < length]


def means(histories: CSR, vectors: np.ndarray, decay: float, shrink: float) -> np.ndarray:
    """``HistoryMap.mean`` of every row of a CSR array, f32 [U, D]."""
    indptr, items = histories
    shape = len(indptr) - 1, len(vectors)
    weights = scipy.sparse.csr_array(
        (np.exp(-_ages(indptr) / decay).astype(np.float32), items, indptr), shape=shape
    )
    total = np.asarray(weights.sum(axis=1), np.float32).reshape(-1, 1)
    return (weights @ vectors) / np.maximum(total + np.float32(shrink), 1e-30)


def _ages(indptr: np.ndarray) -> np.ndarray:
    """How many items of the same row are newer, int64 [N]."""
    return np.repeat(indptr[1:], np.diff(indptr)) - 1 - np.arange(indptr[-1])
