"""How much the newest item says about the next one, against closed forms and a direct count."""

import re

import numpy as np
import polars as pl
import pytest

from helpers import toy
from kd_jax.data import dataset as datasets
from kd_jax.data.next_items import K, NextItems, _ndcg, next_items, suggestion
from kd_jax.data.raw import RawData
from kd_jax.evaluation import metrics


def built(histories, timed=True):
    """A leave-one-out data set of these histories, whose places are the timestamps."""
    rows = [(u, i, t) for u, items in enumerate(histories) for t, i in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    items = pl.DataFrame({"item": sorted(frame["item"].unique())}).with_columns(title=pl.lit("a"))
    frame = frame if timed else frame.drop("timestamp")
    return datasets.build(RawData("chains", frame, items), split="leave_one_out")


@pytest.mark.parametrize("timed", [True, False])
def test_a_chain_of_items_is_known_from_the_newest_one(timed):
    chains = [[(start + step) % 30 for step in range(8)] for start in range(30)]
    found = next_items(built(chains, timed))  # without times, in the order of the rows
    assert found.followers == pytest.approx(1.0)
    assert found.popular < 0.5  # all items are as popular


def test_followers_come_before_popular_items_and_seen_ones_are_left_out():
    data = toy.dataset(users=60, items=24, per_user=9)
    counts = np.zeros((data.num_items, data.num_items))
    indptr, items = data.targets(0)
    for user in range(data.num_users):
        history = items[indptr[user] : indptr[user + 1]]
        for before, after in zip(history, history[1:], strict=False):
            counts[before, after] += 1
    (starts, seen), (ends, chosen) = data.history(1), data.targets(1)
    values = []
    for user in range(data.num_users):
        history = seen[starts[user] : starts[user + 1]]
        (target,) = chosen[ends[user] : ends[user + 1]]
        row = []
        for follow in (counts[history[-1]], np.zeros(data.num_items)):
            score = 1000 * follow + data.item_counts
            order = [i for i in np.argsort(-score, kind="stable") if i not in set(history)]
            place = order.index(target)
            row.append(1 / np.log2(place + 2) if place < 10 else 0.0)
        values.append(row)
    found = next_items(data)
    # ties of followers are in the order of their popularity, then of their indices
    assert found == pytest.approx((*np.mean(values, axis=0), data.num_users))


def test_its_ndcg_is_that_of_evaluation():
    """``data`` may not import ``evaluation``."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        order = rng.permutation(rng.integers(2, 3 * K))
        targets = rng.choice(order, rng.integers(1, len(order)), replace=False)
        ranks = 1 + np.flatnonzero(np.isin(order, targets))
        ranking = metrics.Ranking(ranks, np.zeros_like(ranks), np.array([len(order)]))
        (wanted,) = metrics.ndcg(ranking, K)
        assert _ndcg(order[:K], targets) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("found", "dated", "by_time", "recipes"),
    [
        (NextItems(0.4, 0.1, 100), True, True, [""]),
        (NextItems(0.39, 0.1, 100), True, True, [":trends"]),
        (NextItems(0.39, 0.1, 100), True, False, [":teacher", ":trends"]),
        (NextItems(0.39, 0.1, 100), False, False, [":teacher"]),
        (NextItems(0.2, 0.0, 1000), False, False, [""]),
    ],
)
def test_the_recipe_follows_from_the_ratio_and_from_the_split(found, dated, by_time, recipes):
    line = suggestion(found, dated, by_time)
    assert re.findall(r"configs/csv\.py(:\w+)?", line) == recipes
    assert ("split by time" in line) == (len(recipes) > 1)
    compared = "at least" if recipes == [""] else "less than"
    assert f"the first is {compared} 4 times the second" in line


def test_clicks_alone_have_a_recipe_without_a_language_model():
    weak, strong = NextItems(0.39, 0.1, 100), NextItems(0.4, 0.1, 100)
    for dated, by_time in ((False, False), (True, False), (True, True)):
        line = suggestion(weak, dated, by_time, texts=False)
        assert re.findall(r"configs/\w+\.py:?\w*", line) == ["configs/citeulike.py"]
        assert ("columns.timestamp=COLUMN" in line) == dated
        assert "configs/citeulike.py" not in suggestion(weak, dated, by_time)
    vectors = "configs/csv.py with --config.student.sasrec.vectors=random"
    assert vectors in suggestion(strong, False, False, texts=False)
    assert vectors not in suggestion(strong, False, False)


@pytest.mark.parametrize("found", [NextItems(0.4, 0.1, 99), NextItems(0.0, 0.0, 1000)])
def test_little_evidence_suggests_nothing(found):
    assert "configs/" not in suggestion(found, True, True)
