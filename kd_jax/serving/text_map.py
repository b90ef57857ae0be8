"""Fits the model of items that are known by their text alone (``runtime.text_map.TextMap``).

A student with a table of items has no row for a new item. The map is fitted to the trained items by
ridge regression, from the words of their texts to their trained vectors and biases. So a new item
gets what items with such words have learned from clicks and from the teacher. Its hyper-parameter
is selected on the validation split.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import scipy.sparse

from kd_jax.runtime.text_map import TextMap, keys_of

RIDGES = (0.3, 1.0, 3.0, 10.0)
FOLDS = 5
FEATURES = 2048  # at most, the most frequent ones
LEAST = 2  # items with a feature

Rows = tuple[np.ndarray, np.ndarray]  # item vectors f32 [I, D] and biases f32 [I]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameter of the map.

    ridge: the L2 penalty of a weight; a text's values have the root sum of squares 1.
    """

    ridge: float


def fit(texts: Sequence[str], vectors: np.ndarray, biases: np.ndarray, ridge: float) -> TextMap:
    """The map that is fitted to the rows of these items; see ``TextMaps``."""
    return TextMaps(texts, (vectors, biases)).fit(Settings(ridge))


class TextMaps:
    """Maps for one table of items.

    texts: of all items. rows: their vectors f32 [I, D] and biases f32 [I]. trained: bool [I], the
    items to whose rows maps are fitted, such as those with clicks; None: all.
    """

    def __init__(self, texts: Sequence[str], rows: Rows, trained: np.ndarray | None = None):
        vectors, biases = rows
        self.rows = np.concatenate([vectors, np.reshape(biases, (-1, 1))], axis=1)
        self.trained = np.ones(len(texts), bool) if trained is None else trained
        self.fold = np.random.default_rng(0).integers(0, FOLDS, len(texts))
        places, keys, counts = _occurrences(texts)
        self.keys, self.idf = _vocabulary(keys[self.trained[places]], int(self.trained.sum()))
        self._values = self._features(places, keys, counts)
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def select(self, quality: Callable[[Rows], float] | None = None) -> Settings:
        """The settings with the best ``quality`` of ``predicted`` rows.

        quality: a validation metric that untrained items alone decide, higher is better; None:
        ``explained``.
        """

        def score(settings: Settings) -> float:
            return quality(self.predicted(settings)) if quality else self.explained(settings)

        return max(map(Settings, RIDGES), key=score)

    def fit(self, settings: Settings) -> TextMap:
        """The map that is fitted to all trained items."""
        weight, intercept = self._solve(settings)
        return TextMap(self.keys, self.idf, weight, intercept)

    def predicted(self, settings: Settings) -> Rows:
        """The rows of all items by the map of ``fit``, which has not seen those of untrained items.

        They are equal to the map's answers to the texts.
        """
        weight, intercept = self._solve(settings)
        found = self._values @ weight + intercept
        return found[:, :-1], found[:, -1]

    def explained(self, settings: Settings) -> float:
        """The share of the variance of the trained vectors that maps of other items explain.

        It is cross-fitted: the map of an item is fitted to the items of the other folds.
        """
        true, found = self.rows[self.trained, :-1], np.zeros_like(self.rows)
        for fold in range(FOLDS):
            chosen = self.fold == fold
            weight, intercept = self._solve(settings, without=fold)
            found[chosen] = self._values[chosen] @ weight + intercept
        total = float(np.sum((true - true.mean(0)) ** 2)) if len(true) else 0.0
        return 1 - float(np.sum((true - found[self.trained, :-1]) ** 2)) / max(total, 1e-30)

    def _features(
        self, rows: np.ndarray, keys: np.ndarray, counts: np.ndarray
    ) -> scipy.sparse.csr_array:
        """The values of the known features of every item, f32 [I, F], as ``TextMap`` has them."""
        known = np.isin(keys, self.keys)
        rows, places = rows[known], np.searchsorted(self.keys, keys[known])
        values = (1 + np.log(counts[known])) * self.idf[places]
        norms = np.sqrt(np.bincount(rows, values * values, len(self.rows)))[rows]
        shape = len(self.rows), len(self.keys)
        return scipy.sparse.csr_array(((values / norms).astype(np.float32), (rows, places)), shape)

    def _moments(self, fold: int | None) -> tuple[np.ndarray, np.ndarray]:
        """X'X [F + 1, F + 1] and X'Y [F + 1, D + 1] of the trained items of a fold; None: of all.

        Those of all items are kept.
        """
        if fold is None and self._known is not None:
            return self._known
        chosen = self.trained if fold is None else self.trained & (self.fold == fold)
        ones = scipy.sparse.csr_array(np.ones((int(chosen.sum()), 1)))
        x = scipy.sparse.hstack([self._values[chosen], ones], format="csr")
        found = (x.T @ x).toarray(), np.asarray(x.T @ self.rows[chosen])
        if fold is None:
            self._known = found
        return found

    def _solve(self, settings: Settings, without: int | None = None) -> Rows:
        """The weights f32 [F, D + 1] and the intercept f32 [D + 1], which has no penalty."""
        gram, moment = (np.array(whole) for whole in self._moments(None))
        if without is not None:
            less = self._moments(without)
            gram -= less[0]
            moment -= less[1]
        penalty = np.full(len(gram), settings.ridge)
        penalty[-1] = 1e-9
        gram[np.diag_indices_from(gram)] += penalty
        factor = scipy.linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
        found = scipy.linalg.cho_solve(factor, moment, overwrite_b=True, check_finite=False)
        return found[:-1].astype(np.float32), found[-1].astype(np.float32)


def _occurrences(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features of all texts: rows int64 [M], keys uint64 [M], counts f32 [M]."""
    keys, counts = array.array("Q"), array.array("f")
    sizes = []
    for text in texts:
        found = keys_of(text)
        keys.extend(found.keys())
        counts.extend(found.values())
        sizes.append(len(found))
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return rows, np.array(keys, np.uint64), np.array(counts, np.float32)


def _vocabulary(keys: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent features, ascending, and their idf f32. keys: of ``items`` items."""
    found, counts = np.unique(keys, return_counts=True)
    # A stable sort decides ties by the hash, so the vocabulary depends on the texts alone.
    frequent = np.argsort(-counts, kind="stable")[:FEATURES]
    frequent = np.sort(frequent[counts[frequent] >= LEAST])
    idf = np.log((1 + items) / (1 + counts[frequent])) + 1
    return found[frequent], idf.astype(np.float32)
