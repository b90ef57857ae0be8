"""Top-k lists and their diversification against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from kd_jax.runtime import topk


def brute(scores, k):
    kept = [i for i in range(len(scores)) if scores[i] > -np.inf]  # NaN compares False
    return sorted(kept, key=lambda i: (-scores[i], i))[:k]


@pytest.mark.parametrize("items", [1, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("k", [1, 2, 10, 70])
def test_the_best_items_are_those_of_a_sort(items, k):
    rng = np.random.default_rng(items + k)
    for ties in (False, True):
        scores = rng.normal(size=items).astype(np.float32)
        if ties:
            scores = np.round(scores)
        scores[rng.random(items) < 0.1] = -np.inf
        scores[rng.random(items) < 0.05] = np.nan
        assert topk.best(scores, k).tolist() == brute(scores, k)


def test_rows_are_padded_where_items_run_out():
    scores = np.array([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, np.nan]], np.float32)
    items, values = topk.best_rows(scores, 3)
    assert items.tolist() == [[2, 0, -1], [-1, -1, -1]]
    assert values.tolist() == [[2.0, 1.0, -np.inf], [-np.inf] * 3]


@pytest.mark.parametrize(("items", "k"), [(30, 5), (1000, 3), (1000, 20), (5000, 10)])
@pytest.mark.parametrize("decimals", [6, 0])
def test_lists_of_rows_are_those_of_each_row(items, k, decimals):
    rng = np.random.default_rng(items + k)
    scores = np.round(rng.normal(size=(20, items)), decimals).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.05] = np.nan
    scores[3] = -np.inf
    scores[4] = np.nan
    scores[5, 2:] = -np.inf
    scores[6] = 1.0  # all are equal
    scores[7, 5] = np.inf
    found, values = topk.best_rows(scores, k)
    for row, chosen in enumerate(found):
        expected = brute(scores[row], k)
        assert chosen.tolist() == expected + [-1] * (k - len(expected))
        np.testing.assert_array_equal(values[row, : len(expected)], scores[row, expected])
        assert (values[row, len(expected) :] == -np.inf).all()


def test_diversification_takes_the_item_of_highest_marginal_relevance():
    scores = np.array([4.0, 3.9, 2.0, 0.0], np.float32)
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0]], np.float32)
    assert topk.diversified(scores, vectors, 3, 0.0, 4).tolist() == [0, 1, 2]
    # After item 0: item 1 has .5 * .975 - .5 * 1, item 2 .5 * .5 - 0, item 3 0 + .5.
    assert topk.diversified(scores, vectors, 3, 0.5, 4).tolist() == [0, 3, 2]
    assert topk.diversified(scores, vectors, 9, 0.5, 9).tolist()[:1] == [0]
    assert sorted(topk.diversified(scores, vectors, 9, 1.0, 9).tolist()) == [0, 1, 2, 3]
