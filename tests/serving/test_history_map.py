"""The map from histories to user vectors: its regression, cross-fitting and selection."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from kd_jax.runtime.contexts import PAD
from kd_jax.serving import history_map
from kd_jax.serving.history_map import HistoryMaps, Settings, means, newest

U, ITEMS, D = 60, 15, 4
SETTINGS = Settings(decay=3.0, shrink=0.5, ridge=0.7)


def problem(seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, U)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    items = rng.integers(0, ITEMS, indptr[-1]).astype(np.int32)
    vectors = rng.normal(size=(ITEMS, D)).astype(np.float32)
    users = rng.normal(size=(U, D)).astype(np.float32)
    users[counts == 0] = 0.0
    return vectors, users, (indptr, items)


def padded(histories):
    indptr, items = histories
    found = np.full((len(indptr) - 1, 8), PAD)
    for user in range(len(found)):
        row = items[indptr[user] : indptr[user + 1]]
        if len(row):
            found[user, -len(row) :] = row
    return found


def test_means_of_a_csr_array_are_those_of_the_runtime():
    vectors, users, histories = problem()
    fitted = HistoryMaps(vectors, users, histories).fit(SETTINGS)
    want = fitted.mean(padded(histories), vectors)
    np.testing.assert_allclose(means(histories, vectors, 3.0, 0.5), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 9, 0])
def test_the_newest_items_are_the_last_of_each_row(length):
    _, _, histories = problem()
    indptr, items = histories
    shorter, kept = newest(histories, length)
    for user in range(U):
        row = items[indptr[user] : indptr[user + 1]].tolist()
        assert kept[shorter[user] : shorter[user + 1]].tolist() == row[-length:]


def test_the_map_is_the_ridge_regression_of_scikit_learn():
    vectors, users, histories = problem()
    fitted = HistoryMaps(vectors, users, histories).fit(SETTINGS)
    trained = np.diff(histories[0]) > 0
    x = means(histories, vectors, 3.0, 0.5)[trained].astype(np.float64)
    # The penalty of a feature is a multiple of its mean square: one unit for scaled features.
    scale = np.sqrt((x**2).mean(0))
    oracle = Ridge(alpha=0.7).fit(x / scale, users[trained])
    np.testing.assert_allclose(fitted.weight, oracle.coef_.T / scale[:, None], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fitted.intercept, oracle.intercept_, rtol=1e-3, atol=1e-4)


def test_the_context_of_a_user_does_not_depend_on_their_own_vector():
    vectors, users, histories = problem()
    one = HistoryMaps(vectors, users, histories)
    user = int(np.flatnonzero(one.trained)[0])
    changed = users.copy()
    changed[user] += 100.0
    other = HistoryMaps(vectors, changed, histories)
    same_fold = one.fold == one.fold[user]
    a, b = one.contexts(SETTINGS, 0), other.contexts(SETTINGS, 0)
    np.testing.assert_array_equal(a[same_fold], b[same_fold])
    assert np.abs(a[~same_fold] - b[~same_fold]).max() > 0.1


def test_settings_are_those_with_the_best_quality_of_short_and_whole_histories(monkeypatch):
    vectors, users, histories = problem()
    maps = HistoryMaps(vectors, users, histories)
    want = Settings(6.0, 2.0, history_map.RIDGES[0])
    best = {n: maps.contexts(want, n) for n in history_map.SELECT}
    quality = lambda contexts: -min(np.abs(contexts - one).sum() for one in best.values())  # noqa: E731
    assert maps.select(quality) == want


def test_users_without_interactions_and_a_single_user_end_in_finite_maps():
    vectors = np.ones((3, 2), np.float32)
    for users, indptr in ((1, [0, 2]), (2, [0, 0, 0])):
        items = np.array([0, 1][: indptr[-1]], np.int32)
        table = np.ones((users, 2), np.float32) * (indptr[-1] > 0)
        maps = HistoryMaps(vectors, table, (np.array(indptr), items))
        fitted = maps.fit(SETTINGS)
        assert np.isfinite(fitted.weight).all() and np.isfinite(fitted.intercept).all()
        assert np.isfinite(maps.contexts(SETTINGS, 0)).all()
