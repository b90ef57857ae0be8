"""The mean of the logits of several students."""

import numpy as np

from kd_jax.core.scores import Factors
from kd_jax.experiment.ensemble import mean_of


def test_its_scores_are_the_mean_of_those_of_its_members():
    rng = np.random.default_rng(0)

    def member(dim):
        users, items = rng.normal(size=(5, dim)), rng.normal(size=(7, dim))
        bias = rng.normal(size=7)
        return lambda chosen: Factors(users[chosen], items, bias)

    members, chosen = [member(2), member(3), member(4)], np.array([3, 0])
    found = np.asarray(mean_of(members)(chosen).dense())
    each = [one(chosen) for one in members]
    dense = [one.contexts @ one.vectors.T + one.bias for one in each]
    np.testing.assert_allclose(found, np.mean(dense, 0), rtol=1e-5)
