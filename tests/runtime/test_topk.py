"""The best items of a row are those of a full sort."""

import numpy as np
import pytest

from kd_jax.runtime import topk

KINDS = {
    "normal": lambda scores, rng: scores,
    "ties": lambda scores, rng: np.round(scores),
    "masked": lambda scores, rng: np.where(rng.random(len(scores)) < 0.97, -np.inf, scores),
    "NaN": lambda scores, rng: np.where(rng.random(len(scores)) < 0.5, np.nan, scores),
}


@pytest.mark.parametrize("kind", KINDS)
def test_best_equals_a_full_sort(kind):
    rng = np.random.default_rng(0)
    for items in (0, 1, 63, 64, 640, 641, 5000):
        scores = KINDS[kind](rng.normal(size=items), rng).astype(np.float32)
        plain = np.where(np.isnan(scores), -np.inf, scores)
        order = np.argsort(-plain, kind="stable")
        order = order[plain[order] > -np.inf]
        for k in (1, 3, 10, 100):
            np.testing.assert_array_equal(topk.best(scores, k), order[:k])
