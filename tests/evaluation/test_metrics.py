"""Metrics against ranx, scikit-learn, closed forms and a brute-force oracle.

Ties, masks and NaN are included.
"""

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
import sklearn.metrics as sk

from kd_jax.core import types
from kd_jax.core.errors import InputError
from kd_jax.evaluation import metrics as m
from kd_jax.evaluation import significance

numba.config.DISABLE_JIT = (
    True  # compiling ranx takes most of a minute, running it uncompiled a second
)
import ranx  # noqa: E402, I001


@jax.jit
def counts_and_scores(scores, rows, items):
    """What ``evaluation.ranking`` computes on one device and in one chunk."""
    raw = scores.astype(jnp.float32).at[rows, items].get(mode="clip")
    return m.count_not_below(scores.astype(jnp.float32), rows, raw) - m.not_below(raw, raw), raw


def target_ranks(scores, rows, items):
    """The rank of every pair; 0 where the row is B, which is padding."""
    counts, raw = map(np.asarray, counts_and_scores(scores, rows, items))
    rows = np.asarray(rows)
    real, ranks = rows < scores.shape[0], np.zeros(len(rows), np.int32)
    ranks[real] = m.ranks_of(counts[real], raw[real], rows[real], scores.shape[1])
    return ranks


def brute_force_rank(scores, targets, target):
    """The rank of a target by definition.

    Of equal scores, those of non-targets come first, and those of targets in the order of the list.
    """
    value = {i: -np.inf if np.isnan(scores[i]) else scores[i] for i in targets}
    if scores[target] == -np.inf:
        return len(scores) + 1
    rank = 1
    for item, score in enumerate(scores):
        if item in targets or score == -np.inf:
            continue
        rank += bool(np.isnan(score) or score >= value[target])
    for other in targets:
        if scores[other] != -np.inf and other != target:
            earlier = targets.index(other) < targets.index(target)
            rank += value[other] > value[target] or (value[other] == value[target] and earlier)
    return rank


def random_targets(rng, num_rows, num_items, most):
    return [list(rng.permutation(num_items)[: rng.integers(1, most + 1)]) for _ in range(num_rows)]


def flatten(targets):
    rows = np.repeat(np.arange(len(targets)), [len(t) for t in targets]).astype(np.int32)
    return rows, np.concatenate(targets).astype(np.int32)


@pytest.mark.parametrize("case", ["plain", "ties", "masked", "nan", "everything"])
def test_ranks_match_the_definition(case):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(23, 40)).astype(np.float32)
    if case in ("ties", "everything"):
        scores = np.round(scores)
    if case in ("masked", "everything"):
        scores[rng.random(scores.shape) < 0.3] = -np.inf
    if case in ("nan", "everything"):
        scores[rng.random(scores.shape) < 0.3] = np.nan
    targets = random_targets(rng, 23, 40, 12)
    rows, items = flatten(targets)
    assert len(rows) > m._CHUNK and len(rows) % m._CHUNK  # several chunks, the last one partly full
    expected = [
        brute_force_rank(scores[r], targets[r], i) for r, i in zip(rows, items, strict=True)
    ]
    np.testing.assert_array_equal(target_ranks(jnp.asarray(scores), rows, items), expected)

    shuffled = rng.permutation(
        np.append(np.arange(len(rows)), [len(rows)] * 70)
    )  # pairs in any order, with padding
    kept = shuffled < len(rows)
    padded_rows, padded_items = (
        np.append(rows, 23).astype(np.int32),
        np.append(items, 0).astype(np.int32),
    )
    ranks = np.asarray(
        target_ranks(jnp.asarray(scores), padded_rows[shuffled], padded_items[shuffled])
    )
    if case in ("plain", "masked"):  # elsewhere the order of the list decides ties
        np.testing.assert_array_equal(ranks[kept], np.array(expected)[shuffled[kept]])
    assert all(
        set(ranks[kept & (padded_rows[shuffled] == r)]) == set(np.array(expected)[rows == r])
        for r in range(23)
    )


def test_no_pairs_no_ranks():
    nothing = np.zeros(0, np.int32)
    assert target_ranks(jnp.zeros((2, 3)), nothing, nothing).shape == (0,)


def test_a_constant_scorer_ranks_the_target_last():
    rows, items = np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32)
    ranks = np.asarray(target_ranks(jnp.zeros((5, 300)), rows, items))
    np.testing.assert_array_equal(ranks, 300)
    r = m.Ranking(ranks, rows, np.full(5, 300))
    values = m.rank_metrics(m.expand([*m.AT_K, *m.WHOLE], [20]), r)
    assert max(float(v.max()) for v in values.values()) == pytest.approx(
        1 / 300
    )  # the MRR; all others are 0
    assert values["auc"].max() == 0


@pytest.mark.parametrize("ties", [0, 1, 7])
def test_a_target_that_ties_with_others_comes_after_them(ties):
    scores = np.full((1, 30), -1.0, np.float32)
    scores[0, 4 : 5 + ties] = 2.0
    assert target_ranks(jnp.asarray(scores), np.array([0]), np.array([4]))[0] == 1 + ties


def test_nan_never_helps():
    """Replacing a score by NaN never improves the rank of a target.

    The score may be that of a target or of a competitor.
    """
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 12)).astype(np.float32)
    rows, items = np.zeros(1, np.int32), np.array([5], np.int32)
    before = int(target_ranks(jnp.asarray(scores), rows, items)[0])
    after = []
    for i in range(12):
        broken = scores.copy()
        broken[0, i] = np.nan
        after.append(int(target_ranks(jnp.asarray(broken), rows, items)[0]))
    assert after[5] == 12 and min(after) == before and max(after[:5] + after[6:]) == before + 1
    assert target_ranks(jnp.full((1, 12), jnp.nan), rows, items)[0] == 12


def test_low_precision_scores():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.bfloat16)
    rows, items = np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    expected = target_ranks(scores.astype(jnp.float32), rows, items)
    np.testing.assert_array_equal(target_ranks(scores, rows, items), expected)


def test_no_pairs_by_items_array_is_ever_built():
    pairs, num_items = 4096, 5000
    args = (
        jax.ShapeDtypeStruct((32, num_items), jnp.float32),
        *[jax.ShapeDtypeStruct((pairs,), jnp.int32)] * 2,
    )
    memory = counts_and_scores.lower(*args).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not report memory")
    assert memory.temp_size_in_bytes < pairs * num_items * 4 / 8


@pytest.fixture(scope="module")
def ranked():
    """40 users, 60 items, no ties: our per-user values, and the same lists in ranx's form."""
    rng = np.random.default_rng(1)
    scores = rng.permuted(np.tile(np.arange(60.0), (40, 1)), axis=1).astype(np.float32)
    targets = random_targets(rng, 40, 60, 14)
    rows, items = flatten(targets)
    ranks = np.asarray(target_ranks(jnp.asarray(scores), rows, items))
    qrels = ranx.Qrels({f"u{u:02}": {f"i{i:02}": 1 for i in t} for u, t in enumerate(targets)})
    run = ranx.Run(
        {
            f"u{u:02}": {f"i{i:02}": float(s) for i, s in enumerate(row)}
            for u, row in enumerate(scores)
        }
    )
    return m.Ranking(ranks, rows, np.full(40, 60)), qrels, run, scores, targets


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_ranking_metrics_match_ranx(ranked, k):
    r, qrels, run, _, targets = ranked
    names = m.expand(["ndcg", "recall", "precision", "f1", "hit_rate", "map", f"mrr@{k}"], [k])
    ours = m.rank_metrics(names, r)
    theirs = ranx.evaluate(qrels, run, names, return_mean=False)
    sizes = np.array([len(t) for t in targets])
    theirs[f"map@{k}"] = (
        theirs[f"map@{k}"] * sizes / np.minimum(sizes, k)
    )  # ranx divides by all targets, beyond k too
    for name in names:
        assert ours[name].std() > 0
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(
        m.rank_metrics(["mrr"], r)["mrr"], ranx.evaluate(qrels, run, "mrr", return_mean=False)
    )


def test_auc_per_user_matches_scikit_learn(ranked):
    r, _, _, scores, targets = ranked
    expected = [
        sk.roc_auc_score(np.isin(np.arange(60), t), s) for s, t in zip(scores, targets, strict=True)
    ]
    np.testing.assert_allclose(m.auc(r), expected, rtol=1e-12)


def test_auc_without_a_competitor_is_one():
    assert m.auc(m.Ranking(np.array([1, 2]), np.array([0, 0]), np.array([2])))[0] == 1


def test_a_user_without_targets_has_no_value_and_does_not_count():
    r = m.Ranking(np.array([1]), np.array([1]), np.array([9, 9, 9]))
    for name, value in m.rank_metrics(m.expand([*m.AT_K, *m.WHOLE], [1]), r).items():
        np.testing.assert_array_equal(np.isnan(value), [True, False, True], err_msg=name)
        assert m.sum_count(value) == (1.0, 1), name
    assert np.isnan(m.mean(np.full(3, np.nan)))


def test_a_perfect_ranking_scores_one_even_with_more_targets_than_k():
    r = m.Ranking(np.arange(1, 9), np.zeros(8, int), np.array([50]))
    values = m.rank_metrics(["ndcg@3", "map@3", "precision@3", "mrr", "auc"], r)
    assert {float(v[0]) for v in values.values()} == {1.0}
    assert m.recall(r, 3)[0] == pytest.approx(3 / 8)  # recall divides by all targets


def test_coverage_and_novelty_closed_form():
    lists = np.array([[0, 1], [1, types.PAD], [types.PAD, types.PAD]])
    assert m.coverage(lists, 8) == 2 / 8
    counts = np.array(
        [3, 0, 0, 0, 0, 0, 0, 5]
    )  # p = (count + 1) / 16: 2 bits for item 0, 4 for item 1
    np.testing.assert_allclose(m.novelty(lists, counts), [3.0, 4.0, np.nan])


def test_expand_names():
    assert m.expand(["ndcg", "mrr", "recall@5", "mrr@3", "ndcg@10"], (10, 20)) == [
        "ndcg@10", "ndcg@20", "mrr", "recall@5", "mrr@3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "ks", "message"),
    [
        (["ndgc@10"], [10], "unknown ranking metric 'ndgc@10'.*did you mean 'ndcg'"),
        (["auc@10"], [10], "unknown ranking metric 'auc@10'"),
        (["ndcg@0"], [10], "'0'.*at least 1"),
        (["ndcg@x"], [10], "'x'.*whole number"),
        (["ndcg"], [-1], "'-1'.*at least 1"),
    ],
)
def test_expand_refuses(metrics, ks, message):
    with pytest.raises(InputError, match=message):
        m.expand(metrics, ks)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_rate_metrics_match_scikit_learn(num_classes, ties):
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 400)
    raw = rng.random((400, num_classes)) + 0.5 * (
        labels[:, None] == np.arange(num_classes)[None, :]
    )
    probabilities = np.round(raw, 1) + 0.1 if ties else raw
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    values, ratings = np.linspace(1, 5, num_classes), rng.uniform(1, 5, 400)
    ours = m.rate_metrics(probabilities, labels, values, ratings)

    predicted = probabilities.argmax(axis=1)
    average = "binary" if num_classes == 2 else "macro"
    p, r, f, _ = sk.precision_recall_fscore_support(labels, predicted, average=average)
    auc_scores = probabilities[:, 1] if num_classes == 2 else probabilities
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": p,
        "recall": r,
        "f1": f,
        "auc": sk.roc_auc_score(labels, auc_scores, multi_class="ovr"),
        "log_loss": sk.log_loss(labels, probabilities),
        "rmse": sk.root_mean_squared_error(ratings, probabilities @ values),
        "mae": sk.mean_absolute_error(ratings, probabilities @ values),
    }
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-9), name


def test_rate_metrics_average_over_the_classes_that_occur():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 3])
    ours = m.rate_metrics(np.eye(5)[predicted], labels, np.arange(5.0))
    p, r, f, _ = sk.precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx((p, r, f))
    assert ours["mae"] == pytest.approx(3 / 4) and ours["rmse"] == pytest.approx(np.sqrt(5 / 4))


def test_rate_metrics_of_a_constant_and_of_nan():
    labels, values = np.array([0, 1, 1, 0]), np.array([1.0, 5.0])
    assert m.rate_metrics(np.full((4, 2), 0.5), labels, values)["auc"] == 0.5
    broken = m.rate_metrics(np.full((4, 2), np.nan), labels, values)
    assert (broken["accuracy"], broken["f1"], broken["auc"], broken["mae"]) == (0, 0, 0, 4)
    assert broken["log_loss"] > 30
    one_sided = m.rate_metrics(np.full((2, 2), 0.5), np.array([1, 1]), values)
    assert np.isnan(one_sided["auc"]) and one_sided["recall"] == 0  # ties predict the first class


def test_loss_example_in_nats():
    student = np.array([[0.6, 0.4]])
    assert 0.8 * m.log_loss(student, np.array([0]))[0] + 0.2 * m.log_loss(student, np.array([1]))[
        0
    ] == pytest.approx(0.591919, abs=1e-6)


def test_bootstrap_is_deterministic_and_its_numbers_agree():
    rng = np.random.default_rng(0)
    a = rng.random((3, 500))
    b = a + rng.normal(0.03, 0.2, a.shape)
    first, again = (
        significance.paired_bootstrap(a, b, seed=7),
        significance.paired_bootstrap(a, b, seed=7),
    )
    assert first == again and first != significance.paired_bootstrap(a, b, seed=8)
    assert first.baseline == pytest.approx(a.mean()) and first.candidate == pytest.approx(b.mean())
    assert first.relative == pytest.approx(b.mean() / a.mean() - 1)
    low, high = first.ci95
    assert low < first.relative < high and first.p_value < 0.01
    flat = significance.paired_bootstrap(a.mean(axis=0), b.mean(axis=0), seed=7)
    assert flat.ci95 == pytest.approx(first.ci95)


def test_bootstrap_is_paired():
    """A small gain that every user has is significant, however much users differ.

    Without pairs, the differences between users would hide it.
    """
    a = np.random.default_rng(0).exponential(size=200)
    gain = significance.paired_bootstrap(a, 1.01 * a, resamples=2000)
    assert (
        gain.ci95 == pytest.approx((0.01, 0.01)) and gain.p_value == 2 / 2001
    )  # the least it can be: never 0
    assert (
        significance.paired_bootstrap(
            a, np.random.default_rng(1).permutation(1.01 * a), resamples=2000
        ).p_value
        > 0.5
    )


def test_bootstrap_interval_covers_and_p_value_is_calibrated():
    """Intervals cover the true gain in 95 % of experiments; 5 % of null ones have p < 0.05.

    There are 400 experiments of 80 users. Binomial spread at 400 draws is 1.1 points; the band of
    4 points allows for the known optimism of percentile intervals at this size.
    """
    rng = np.random.default_rng(5)
    covered, rejected = [], []
    for i in range(400):
        a = rng.normal(1.0, 0.3, 80)
        b = a + rng.normal(0.1, 0.3, 80)
        low, high = significance.paired_bootstrap(a, b, resamples=1000, seed=i).ci95
        covered.append(low <= 0.1 <= high)
        rejected.append(
            significance.paired_bootstrap(a, b - 0.1, resamples=1000, seed=i).p_value < 0.05
        )
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.04)


def test_the_transfer_ratio_is_one_of_means_and_its_interval_one_of_the_same_users():
    rng = np.random.default_rng(0)
    student = rng.exponential(size=(3, 300))
    teacher = student.mean(axis=0) + rng.normal(0.4, 0.5, (2, 300))
    candidate = student.mean(axis=0) + 0.5 * (teacher.mean(axis=0) - student.mean(axis=0))
    half = significance.transfer(student, teacher, candidate, resamples=500)
    assert half.ratio == pytest.approx(0.5) and half.ci95 == pytest.approx((0.5, 0.5))
    assert half.lead == pytest.approx(teacher.mean() - student.mean())
    noisy = candidate + rng.normal(0, 0.3, 300)
    found = significance.transfer(student, teacher, noisy, resamples=500, seed=3)
    means = [side.mean() for side in (student, teacher, noisy)]
    assert found.ratio == pytest.approx((means[2] - means[0]) / (means[1] - means[0]))
    drawn = np.random.default_rng(3).integers(0, 300, (500, 300))
    a, b, c = (np.atleast_2d(v).mean(axis=0)[drawn].mean(axis=1)
               for v in (student, teacher, noisy))  # fmt: skip
    ends = np.quantile((c - a) / (b - a), [0.025, 0.975], method="inverted_cdf")
    assert found.ci95 == pytest.approx(tuple(ends))
    ends = np.quantile(b - a, [0.025, 0.975], method="inverted_cdf")
    assert found.lead_ci95 == pytest.approx(tuple(ends))


def test_there_is_no_transfer_ratio_over_a_lead_that_may_be_zero():
    student = np.random.default_rng(0).exponential(size=200)
    noise = np.random.default_rng(1).normal(0, 1, 200)
    found = significance.transfer(student, student + noise - noise.mean(), student + 1)
    assert found.ratio is None and found.ci95 == (None, None)
    assert found.lead_ci95[0] < 0 < found.lead_ci95[1]
    same = significance.transfer(student, student, student + 1, resamples=50)
    assert same.ratio is None and same.lead == 0
    missing = np.where(np.arange(200) < 5, np.nan, student)
    known = significance.transfer(missing, student + 1, student + 2, resamples=50)
    assert known.ratio == pytest.approx(2.0)
    with pytest.raises(InputError, match="200, 200, 3 users"):
        significance.transfer(student, student, student[:3])
    with pytest.raises(InputError, match="no user"):
        significance.transfer(student, student, np.full(200, np.nan))


def test_bootstrap_edges():
    nothing = significance.paired_bootstrap(np.zeros(20), np.full(20, 0.1), resamples=500)
    assert nothing.relative is None and nothing.ci95 == (None, None) and nothing.p_value < 0.01
    same = significance.paired_bootstrap(np.ones(20), np.ones(20), resamples=500)
    assert same.relative == 0 and same.p_value == 1 and same.ci95 == (0, 0)
    rare = np.zeros(40)
    rare[0] = (
        # a third of the resamples hold nobody whom the baseline serves: the upper bound does not
        # exist
        1.0
    )
    assert significance.paired_bootstrap(rare, np.ones(40), resamples=500).ci95[1] is None
    gap = significance.paired_bootstrap(
        np.array([1.0, np.nan, 2.0]), np.array([1.0, 5.0, np.nan]), resamples=500
    )
    assert (gap.baseline, gap.candidate) == (1.0, 1.0)
    with pytest.raises(InputError, match="3 users.*2"):
        significance.paired_bootstrap(np.ones(3), np.ones(2))
    with pytest.raises(InputError, match="no user"):
        significance.paired_bootstrap(np.full(3, np.nan), np.ones(3))
