"""What was shown: MIND's metrics against scikit-learn and a loop, and the lists that are judged."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from helpers import mind
from helpers.toy import refused
from kd_jax.core.scores import Factors
from kd_jax.data import dataset, readers, summary
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.evaluation import evaluator, impressions

OPTIONS = {"split": "column", "min_item_interactions": 0}


def dcg(labels, k):
    return sum(label / np.log2(place + 2) for place, label in enumerate(labels[:k]))


def by_definition(scores, clicked):
    """The metrics of one list, from sorted labels; of equal scores the clicked ones are last."""
    labels = [c for _, c in sorted(zip(-scores, clicked, strict=True))]
    ideal = sorted(labels, reverse=True)
    found = {
        "auc": sk.roc_auc_score(clicked, scores),
        "mrr": np.mean([1 / (place + 1) for place, label in enumerate(labels) if label]),
    }
    return found | {f"ndcg@{k}": dcg(labels, k) / dcg(ideal, k) for k in (5, 10)}


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_of_random_lists_are_those_of_the_definition(ties):
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 30, 60)
    lists = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
    scores = rng.normal(size=lengths.sum())
    if ties:
        scores = np.round(scores)
    clicked = rng.random(len(scores)) < 0.2
    for rows in lists:
        clicked[rows[0]], clicked[rows[1]] = True, False
    found = impressions.metrics(scores, clicked, lengths)
    want = [by_definition(scores[rows], clicked[rows]) for rows in lists]
    assert list(found) == list(impressions.METRICS)
    for name, values in found.items():
        assert np.allclose(values, [one[name] for one in want]), name


def test_scores_that_say_nothing_earn_nothing():
    clicked = np.array([True, False, False, False, True, False])
    same = impressions.metrics(np.zeros(6), clicked, np.array([4, 2]))
    assert same["auc"].tolist() == [0.5, 0.5] and same["mrr"].tolist() == [0.25, 0.5]
    broken = impressions.metrics(np.array([np.nan, 1, 2, 3, 5, np.nan]), clicked, np.array([4, 2]))
    assert broken["mrr"].tolist() == [0.25, 1.0] and broken["auc"].tolist() == [0.0, 1.0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four days in one folder and a fifth in another, where users 20 to 27 are seen."""
    folder = tmp_path_factory.mktemp("mind")
    mind.write(folder / "train")
    mind.write(folder / "dev", days=(13,), users=range(20, 28), seed=1)
    with (folder / "dev/behaviors.tsv").open("a") as file:
        file.write("99\tU90\t11/13/2019 9:00:00 AM\t\tN1-0 N2-1\n")  # nothing is known of them
        file.write("98\tU91\t11/13/2019 9:00:00 AM\tN3\tN1-1 N2-1\n")  # all are clicked
        file.write("97\tU92\t11/13/2019 9:00:00 AM\tN3\tN1-1 X5-0 N7-0\n")  # X5 has no text
    section = {"path": str(folder / "train"), "dev_path": str(folder / "dev")}
    return dataset.build(readers.read("mind", section), **OPTIONS)


def test_a_second_folder_is_test_and_the_last_day_of_the_first_is_valid(data, tmp_path):
    day = data.timestamp // 86_400
    last = int(day[data.split == VALID].min())
    assert (day[data.split == TRAIN] < last).all() and (day[data.split == VALID] == last).all()
    assert (day[data.split == TEST] == last + 1).all()
    shown = data.impressions
    assert np.bincount(shown.split).tolist() == [72, 24, 11]
    assert data.counts["shown_items_that_are_not_in_the_catalogue"] == 1
    line = summary.lines(data)[2]
    assert line.startswith("data: impressions: 107, of them 72 train (72 with a chosen item")
    assert "11 test (10 with" in line  # U91 clicked all that was shown
    # what users clicked before the log is before all of it, for those of the second folder too
    start = shown.timestamp.min()
    first = data.timestamp[data.indptr[:-1]]
    knows = [user not in ("U90",) for user in data.user_ids]
    assert (first[knows] < start).all() and (data.split[data.indptr[:-1]][knows] == TRAIN).all()
    data.save(tmp_path)
    assert dataset.load(tmp_path).impressions.checksum == shown.checksum
    shown.select(shown.user > 0).save(tmp_path)
    refused(lambda: dataset.load(tmp_path), "impressions.parquet has changed")
    (tmp_path / "impressions.parquet").unlink()
    refused(lambda: dataset.load(tmp_path), "impressions.parquet has changed")


def test_lists_with_both_kinds_of_a_known_user_are_judged_by_the_scores_of_the_model(data):
    judged = impressions.judged(data, TEST)
    users = data.user_ids.gather(judged.user).to_list()
    assert sorted(users) == sorted([*(f"U{n}" for n in range(20, 28)), "U92"])
    rng = np.random.default_rng(2)
    contexts, vectors = rng.normal(size=(data.num_users, 3)), rng.normal(size=(data.num_items, 3))
    bias = rng.normal(size=data.num_items)
    whole = contexts @ vectors.T + bias

    def factors(block):
        return Factors(*(jnp.asarray(x, jnp.float32) for x in (contexts[block], vectors, bias)))

    want = []
    for place, user in enumerate(judged.user):
        rows = slice(judged.indptr[place], judged.indptr[place + 1])
        want.append(by_definition(whole[user, judged.item[rows]], judged.clicked[rows]))
    for score_fn in (factors, lambda block: factors(block).dense()):
        found = impressions.evaluate(score_fn, data, TEST, batch_size=4)
        assert (found["impressions"], found["users"]) == (9, 9)
        for name in impressions.METRICS:
            assert found[name] == pytest.approx(np.mean([one[name] for one in want]), abs=1e-5)
    assert impressions.evaluate(evaluator.popularity(data), data, VALID, 4)["impressions"] == 24


def test_impressions_are_cut_where_the_interactions_are(data, tmp_path):
    section = {"path": str(mind.write(tmp_path))}
    raw = readers.read("mind", section)
    found = dataset.build(raw, split="temporal", ratios=(0.6, 0.2, 0.2))
    cuts = [found.timestamp[found.split == code].min() for code in (VALID, TEST)]
    want = np.searchsorted(cuts, found.impressions.timestamp, side="right")
    assert found.impressions.split.tolist() == want.tolist() and set(want) == {0, 1, 2}
    own = dataset.build(raw, split="leave_one_out")
    shown = own.impressions
    for user in range(own.num_users):
        time = own.timestamp[own.indptr[user] : own.indptr[user + 1]][-2:]
        of_user = shown.user == user
        want = np.searchsorted(time, shown.timestamp[of_user], side="right")
        assert shown.split[of_user].tolist() == want.tolist()
    strong = dataset.build(raw, split="strong", ratios=(0.6, 0.2, 0.2))
    held = np.unique(strong.user[strong.split != TRAIN])
    assert TRAIN not in strong.impressions.split[np.isin(strong.impressions.user, held)]
