"""Baselines of clicks alone: each against its definition, chosen on validation, one user, one item.

What needs the package implicit is compared with what its method must find.
"""

import dataclasses
import importlib.util

import numpy as np
import pytest
import scipy.sparse
from implicit.nearest_neighbours import CosineRecommender

from helpers.toy import dataset, refused
from kd_jax.core.scores import Factors
from kd_jax.data.splits import TEST, VALID
from kd_jax.evaluation import baselines
from kd_jax.evaluation.baselines import BASELINES, ease, item_knn
from kd_jax.evaluation.baselines.base import Fitted, TooLarge, clicks_of
from kd_jax.evaluation.baselines.chosen import chosen
from kd_jax.evaluation.tasks import Rank

EVERY = list(BASELINES)


def clicks(users, items, share=0.3, seed=0):
    """Random clicks; the last item and the last user have none."""
    found = np.random.default_rng(seed).random((users, items)) < share
    found[:, -1] = found[-1] = False
    return scipy.sparse.csr_array(found.astype(np.float32))


def scores(fitted, history):
    users = np.arange(history.shape[0], dtype=np.int32)
    found = fitted.scores(users, history)
    return np.asarray(found.dense() if isinstance(found, Factors) else found)


@pytest.mark.parametrize(("users", "items"), [(40, 12), (9, 20)])
def test_ease_regresses_every_item_on_the_others(users, items):
    """Column j of B is the ridge regression of item j on the other items (Steck, equation 4)."""
    train, history = clicks(users, items), clicks(users, items, seed=1)
    x = train.toarray().astype(np.float64)
    weights = np.zeros((items, items))
    for j in range(items):
        others = np.delete(np.arange(items), j)
        gram = x[:, others].T @ x[:, others] + 3.0 * np.eye(items - 1)
        weights[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    found = scores(BASELINES["ease"].fit(train, l2=3.0), history)
    np.testing.assert_allclose(found, history.toarray() @ weights, atol=2e-6)
    assert np.abs(found).max() > 0.1 and not found[:, -1].any()


@pytest.mark.parametrize(("neighbours", "shrink"), [(50, 0.0), (3, 2.0), (1, 10.0)])
def test_item_knn_is_the_sum_of_the_nearest_similarities(neighbours, shrink, monkeypatch):
    monkeypatch.setattr(item_knn, "_ROWS", 7)  # several parts, the last one shorter
    train, history = clicks(30, 17), clicks(30, 17, seed=1)
    x = train.toarray()
    similar = np.zeros((17, 17))
    for i in range(17):
        for j in range(17):
            common = np.sum(x[:, i] * x[:, j])
            if i != j and common:
                cosine = common / np.sqrt(x[:, i].sum() * x[:, j].sum())
                similar[i, j] = cosine * common / (common + shrink)
        nearest = np.argsort(-similar[i].astype(np.float32), kind="stable")[:neighbours]
        similar[i, np.setdiff1d(np.arange(17), nearest)] = 0.0
    fitted = BASELINES["item_knn"].fit(train, neighbours=neighbours, shrink=shrink)
    np.testing.assert_allclose(scores(fitted, history), history @ similar, rtol=1e-5)
    assert fitted.params == np.count_nonzero(similar)


@pytest.mark.filterwarnings("ignore:Method expects CSR")  # implicit converts its own matrix
def test_item_knn_without_a_limit_is_that_of_implicit():
    train, history = clicks(30, 17), clicks(30, 17, seed=1)
    theirs = CosineRecommender(K=17, num_threads=1)
    theirs.fit(scipy.sparse.csr_matrix(train), show_progress=False)
    similar = theirs.similarity.toarray()
    np.fill_diagonal(similar, 0.0)  # an item is similar to itself there
    found = scores(BASELINES["item_knn"].fit(train, neighbours=17, shrink=0.0), history)
    np.testing.assert_allclose(found, history @ similar, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_items_of_like_users_come_first_and_twice_the_same(name):
    """Two groups of users with items of their own: the unseen ones of the own group are first."""
    rng = np.random.default_rng(0)
    own = np.arange(40)[:, None] % 2 == np.arange(21) % 2
    history = own & (rng.random((40, 21)) < 0.6)
    history[:, -1] = False
    train = scipy.sparse.csr_array(history.astype(np.float32))
    baseline = BASELINES[name]
    setting = baseline.settings[-1]
    first, second = (scores(baseline.fit(train, **setting), train) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not first[:, -1].any()
    for user in range(40):
        unseen = ~history[user, :-1]
        mine, others = (first[user, :-1][unseen & part] for part in (own[user, :-1],
                                                                    ~own[user, :-1]))  # fmt: skip
        assert mine.min(initial=np.inf) > others.max(), user


def test_iterative_least_squares_gives_a_user_the_vector_of_their_history():
    train, history = clicks(40, 20), clicks(40, 20, seed=1)
    found = BASELINES["ials"].fit(train, alpha=10.0, regularization=10.0)
    users = np.arange(40, dtype=np.int32)
    factors = found.scores(users, history)
    y = np.asarray(factors.vectors, np.float64)
    for user in range(0, 40, 7):
        weight = 1.0 + 9.0 * history.toarray()[user]
        gram = (y * weight[:, None]).T @ y + 10.0 * np.eye(y.shape[1])
        exact = y @ np.linalg.solve(gram, y.T @ (weight * history.toarray()[user]))
        ours = y @ np.asarray(factors.contexts)[user]
        assert np.abs(ours - exact).max() < 0.05 * max(np.abs(exact).max(), 1e-6)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)])
def test_one_user_and_one_item_are_enough(name, shape):
    train = scipy.sparse.csr_array(np.ones(shape, np.float32))
    for setting in BASELINES[name].settings:
        found = scores(BASELINES[name].fit(train, **setting), train)
        assert found.shape == shape and np.isfinite(found).all()


def test_clicks_are_distinct_and_count_one():
    found = clicks_of((np.array([0, 3, 3, 4]), np.array([2, 0, 2, 1], np.int32)), 3)
    np.testing.assert_array_equal(found.toarray(), [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_what_is_too_large_is_refused_before_it_takes_memory(monkeypatch):
    monkeypatch.setattr(ease, "MOST_BYTES", 16 * 10**2)
    monkeypatch.setattr(item_knn, "MOST_PAIRS", 20)
    train = clicks(30, 12)
    with pytest.raises(TooLarge, match="11 items with clicks are more than 10"):
        BASELINES["ease"].fit(train, l2=1.0)
    with pytest.raises(TooLarge, match="pairs of items of a user"):
        BASELINES["item_knn"].fit(train, neighbours=5, shrink=0.0)
    monkeypatch.setattr(ease, "MOST_BYTES", 16 * 11**2)
    assert BASELINES["ease"].fit(train, l2=1.0).params == 11**2


def rank_task():
    names = ("ndcg", "recall", "auc")
    return Rank(dataset("leave_one_out"), "ndcg@5", names, (5,), batch_size=16)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Scores the target of a split: with sign 1 it comes first, with -1 last, with 0 like others.

    It also collects the histories it is asked about.
    """

    task: Rank
    split: int
    settings: tuple = ({"sign": -1.0}, {"sign": 1.0}, {"sign": 0.0})
    histories: list = dataclasses.field(default_factory=list)

    def fit(self, train, *, sign):
        data = self.task.dataset
        targets = clicks_of(data.targets(self.split), data.num_items)

        def found(users, history):
            self.histories.append((users, history))
            return sign * targets[users].toarray()

        return Fitted(found, 7)


def test_the_setting_is_chosen_on_validation_and_the_history_is_that_before_the_split():
    task = rank_task()
    oracle = Oracle(task, VALID)
    best = chosen(task, oracle)
    assert best.setting == {"sign": 1.0} and best.params == 7 and best.seconds >= 0
    assert best.found["valid"].metrics["ndcg@5"] == 1.0
    assert best.found["test"].metrics["ndcg@5"] < 0.5  # of test it knows nothing
    for (users, history), split in ((oracle.histories[0], VALID), (oracle.histories[-1], TEST)):
        expected = clicks_of(task.dataset.history(split), task.dataset.num_items)[users]
        np.testing.assert_array_equal(history.toarray(), expected.toarray())
    blind = chosen(task, Oracle(task, TEST))
    assert blind.setting == {"sign": -1.0}  # all are equal on validation: the first


@pytest.mark.parametrize("name", EVERY)
def test_every_baseline_beats_popularity_on_data_of_genres(name):
    task = rank_task()
    found, popular = chosen(task, BASELINES[name]).found, task.baseline("test")
    assert found["test"].metrics["ndcg@5"] > popular.metrics["ndcg@5"]
    assert found["test"].counts == popular.counts
    assert set(found["test"].metrics) == set(popular.metrics)


def test_an_unknown_baseline_and_a_missing_package_are_refused(monkeypatch):
    refused(lambda: baselines.check(("eese",)), "did you mean 'ease'")
    baselines.check(EVERY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    baselines.check(("ease", "item_knn"))
    for name in baselines.PACKAGED:
        refused(lambda name=name: baselines.check((name,)), "pip install 'kd_jax[baselines]'")
