"""Streamed evaluation against a brute-force oracle.

The oracle sorts the full list of every user, one user at a time.
"""

import gc
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from benchmarks import hlo
from helpers import toy
from helpers.marks import first_fast
from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import TILE
from kd_jax.core.types import PAD
from kd_jax.data.dataset import build
from kd_jax.data.raw import RawData
from kd_jax.devices.sharding import make_mesh, put, put_whole
from kd_jax.evaluation import batching, ranking
from kd_jax.evaluation import evaluator as ev
from kd_jax.evaluation import metrics as m

USERS, ITEMS = 37, 50


class TinyDataset:
    """The part of a Dataset that evaluation reads, from (user, item) pairs of the three splits."""

    name = "tiny"

    def __init__(self, pairs, num_users=USERS, num_items=ITEMS):
        self.pairs, self.num_users, self.num_items = pairs, num_users, num_items
        self.item_counts = np.bincount(pairs[0][1], minlength=num_items)

    def _csr(self, parts):
        users, items = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        order = np.argsort(users, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=self.num_users))])
        return indptr.astype(np.int64), items[order].astype(np.int32)

    def history(self, split):
        return self._csr(self.pairs[:split])

    def targets(self, split):
        return self._csr(self.pairs[split : split + 1])


def make_dataset(seed=0, repeat=False):
    """Interactions with skewed popularity.

    The last 12 items are cold; some users lack a history, some lack targets.
    """
    rng = np.random.default_rng(seed)
    parts = ([], [], [])
    for user in range(USERS):
        warm = list((rng.permutation(ITEMS - 12) ** 2 // (ITEMS - 12)).astype(int))
        warm = list(dict.fromkeys(warm))
        cold = list(ITEMS - 12 + rng.permutation(12))
        history = 0 if user % 11 == 5 else 1 + user % 9
        parts[0].extend((user, i) for i in warm[:history])
        valid = warm[history : history + user % 3] + cold[5 : 5 + user % 2] if history else []
        parts[1].extend((user, i) for i in valid)
        if user % 7 != 3:
            test = warm[history + 2 : history + 2 + user % 5] + cold[: user % 4] or cold[:1]
            parts[2].extend(
                (user, i) for i in test + (warm[:1] + valid[-1:] if repeat and history else [])
            )
    return TinyDataset([tuple(np.array(part).T) for part in parts])


def make_scorer(seed=1):
    rng = np.random.default_rng(seed)
    left, right = (jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (USERS, ITEMS))
    return jax.jit(lambda users: left[users] @ right.T)


def oracle(scores, targets, candidates):
    """All per-user target metrics of one user from the sorted list. Assumes no ties."""
    order = sorted(candidates, key=lambda i: -scores[i])
    relevant = np.array([i in targets for i in order], float)
    n, out = int(relevant.sum()), {}
    for k in (3, 7):
        top, discount = relevant[:k], 1 / np.log2(np.arange(2, k + 2))
        out[f"ndcg@{k}"] = (top * discount[: len(top)]).sum() / discount[: min(k, n)].sum()
        out[f"recall@{k}"], out[f"precision@{k}"] = top.sum() / n, top.sum() / k
        p, r = out[f"precision@{k}"], out[f"recall@{k}"]
        out[f"f1@{k}"] = 2 * p * r / (p + r) if p + r else 0.0
        out[f"hit_rate@{k}"] = float(top.any())
        out[f"map@{k}"] = sum(top[: j + 1].mean() for j in range(len(top)) if top[j]) / min(k, n)
    out["mrr"] = 1 / (1 + int(np.argmax(relevant)))
    wins = sum(scores[t] > scores[o] for t in targets for o in candidates if o not in targets)
    out["auc"] = wins / (n * (len(candidates) - n))
    return out


def by_user(csr):
    return [csr[1][csr[0][u] : csr[0][u + 1]].tolist() for u in range(len(csr[0]) - 1)]


def brute_force(score_fn, data, split):
    """{slice: {user: {metric: value}}}, written without anything from the package."""
    scores = np.asarray(score_fn(np.arange(USERS)))
    counts = np.bincount(data.pairs[0][1], minlength=ITEMS)
    warm = [i for i in range(ITEMS) if counts[i]]
    cold = [i for i in range(ITEMS) if not counts[i]]
    head = sorted(warm, key=lambda i: (-counts[i], i))[: int(np.ceil(len(warm) / 5))]
    kinds = {
        "all": range(ITEMS),
        "warm": warm,
        "cold": cold,
        "head": head,
        "tail": [i for i in warm if i not in head],
    }
    out = {name: {} for name in [*kinds, "cold_only", "short", "long"]}
    history, targets = by_user(data.history(split)), by_user(data.targets(split))
    evaluated = [u for u in range(USERS) if history[u] and targets[u]]
    median = np.median([len(history[u]) for u in evaluated])
    for u in evaluated:
        candidates = [i for i in range(ITEMS) if i not in history[u]]
        for name, kind in kinds.items():
            if mine := [t for t in targets[u] if t in kind and t in candidates]:
                out[name][u] = oracle(scores[u], mine, candidates)
                if name == "cold":
                    out["cold_only"][u] = oracle(
                        scores[u], mine, [i for i in candidates if i in cold]
                    )
        if u in out["all"]:
            out["short" if len(history[u]) <= median else "long"][u] = out["all"][u]
    return evaluated, out


def assert_same(result, expected_users, expected):
    assert result.users.tolist() == expected_users
    assert set(result.slices) == {name for name, users in expected.items() if users} - {"all"}
    for name, per_user in expected.items():
        if not per_user:
            continue
        ours = result.per_user if name == "all" else result.per_user_slices[name]
        means = result.metrics if name == "all" else result.slices[name]
        assert result.counts[name]["users"] == len(per_user)
        for metric in next(iter(per_user.values())):
            want = [per_user[u][metric] if u in per_user else np.nan for u in expected_users]
            np.testing.assert_allclose(
                ours[metric], want, rtol=1e-5, atol=1e-7, err_msg=f"{name} {metric}"
            )
            assert means[metric] == pytest.approx(np.nanmean(want), rel=1e-5), (name, metric)


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("repeat", [False, True])
def test_everything_matches_brute_force(split, repeat):
    data, score_fn = make_dataset(repeat=repeat), make_scorer()
    result = ev.evaluate_rank(score_fn, data, split, ks=(3, 7), batch_size=8)
    users, expected = brute_force(score_fn, data, split)
    assert len(users) % 8  # the last batch has padding
    if split == 2:
        assert all(len(part) > 3 for part in expected.values())  # every slice is really exercised
    assert_same(result, users, expected)
    assert (result.repeats > 0) == (repeat and split == 2)


def test_counts_of_targets():
    result = ev.evaluate_rank(make_scorer(), make_dataset(), 2, metrics=["mrr"], batch_size=8)
    targets = {name: c["targets"] for name, c in result.counts.items()}
    indptr, _ = make_dataset().targets(2)
    assert targets["all"] == np.diff(indptr)[result.users].sum()
    assert targets["all"] == targets["warm"] + targets["cold"] == targets["short"] + targets["long"]
    assert (
        targets["warm"] == targets["head"] + targets["tail"]
        and targets["cold"] == targets["cold_only"]
    )


def test_a_sample_of_users_with_all_that_have_a_cold_target():
    data, score_fn, fields = make_dataset(), make_scorer(), {"metrics": ["mrr"], "batch_size": 8}
    whole = ev.evaluate_rank(score_fn, data, 2, **fields)
    sample = ev.evaluate_rank(score_fn, data, 2, max_users=4, **fields)
    found = ev.evaluate_rank(score_fn, data, 2, max_users=4, with_cold=True, **fields)
    indptr, items = data.targets(2)
    cold = [
        user
        for user in whole.users
        if (data.item_counts[items[indptr[user] : indptr[user + 1]]] == 0).any()
    ]
    assert len(sample.users) == 4 and set(sample.users) < set(found.users) < set(whole.users)
    assert set(found.users) == set(sample.users) | set(cold)
    for name in ("cold", "cold_only"):  # nothing is lost of these
        assert found.slices[name] == whole.slices[name]
        assert found.counts[name] == whole.counts[name]
    place = np.searchsorted(whole.users, found.users)
    np.testing.assert_array_equal(found.per_user["mrr"], whole.per_user["mrr"][place])


@pytest.mark.parametrize("batch_size", first_fast([7, 1, 64]))
def test_batch_size_changes_nothing(batch_size):
    data, score_fn = make_dataset(), make_scorer()
    scores = score_fn(
        np.arange(USERS)
    )  # rows of one product, so that no rounding differs between batch sizes
    want = ev.evaluate_rank(lambda users: scores[users], data, 2, batch_size=16)
    got = ev.evaluate_rank(lambda users: scores[users], data, 2, batch_size=batch_size)
    assert got.metrics == want.metrics and got.slices == want.slices and got.counts == want.counts
    for name in want.per_user:
        np.testing.assert_array_equal(got.per_user[name], want.per_user[name])


def test_list_metrics_match_lists():
    data, score_fn = make_dataset(), make_scorer()
    result = ev.evaluate_rank(
        score_fn, data, 2, metrics=["coverage", "novelty"], ks=(3, 7), batch_size=8
    )
    scores, seen = np.array(score_fn(np.arange(USERS))), by_user(data.history(2))
    for u in range(USERS):
        scores[u, seen[u]] = -np.inf
    share = (data.item_counts + 1) / (data.item_counts.sum() + ITEMS)
    for k in (3, 7):
        lists = np.argsort(-scores, axis=1)[result.users, :k]
        assert result.metrics[f"coverage@{k}"] == len(set(lists.ravel())) / ITEMS
        assert result.metrics[f"novelty@{k}"] == pytest.approx(
            -np.log2(share[lists]).mean(), rel=1e-5
        )


def test_one_program_for_all_batches_and_for_the_next_evaluation():
    data, score_fn = make_dataset(), make_scorer()
    shapes = []

    def watched(users):
        shapes.append((users.shape, users.dtype))
        return score_fn(users)

    jax.clear_caches()
    before = ranking.target_counts._cache_size()
    ev.evaluate_rank(watched, data, 2, batch_size=8)
    ev.evaluate_rank(watched, data, 2, batch_size=8)
    assert len(shapes) >= 8 and set(shapes) == {((8,), np.dtype(np.int32))}
    assert ranking.target_counts._cache_size() - before == 1


def test_results_are_fetched_once_and_few_score_blocks_are_alive(monkeypatch):
    data, score_fn = make_dataset(), make_scorer()
    fetches, waits, alive, unfinished = [], [], [], []
    fetch, wait = jax.device_get, jax.block_until_ready
    monkeypatch.setattr(jax, "device_get", lambda x: fetches.append(1) or fetch(x))
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(1) or wait(x))

    def blocks():
        return sum(a.shape == (2, ITEMS) for a in jax.live_arrays())

    def watched(users):
        alive.append(blocks() - before)
        unfinished.append(len(alive) - 1 - len(waits))
        return score_fn(users)

    gc.collect()  # blocks that other tests left behind in reference cycles
    before = blocks()
    ev.evaluate_rank(watched, data, 2, batch_size=2)
    assert len(fetches) == 1
    assert len(alive) > 12 and max(alive) <= 3 and max(unfinished) == batching.LOOK_AHEAD <= 3


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf, np.inf])
def test_a_constant_scorer_scores_nothing(value):
    data = make_dataset()
    data.pairs[1] = tuple(np.array(data.pairs[1])[:, data.pairs[1][1] != ITEMS - 1])
    data.pairs[2] = (
        np.arange(USERS),
        np.full(USERS, ITEMS - 1),
    )  # one target each, which nobody has seen

    def constant(users):
        return jnp.full((len(users), ITEMS), value)

    result = ev.evaluate_rank(
        constant, data, 2, metrics=["ndcg", "recall", "mrr", "auc"], batch_size=8
    )
    assert result.metrics["ndcg@20"] == result.metrics["recall@20"] == result.metrics["auc"] == 0
    unseen = ITEMS - np.diff(data.history(2)[0])[result.users]
    np.testing.assert_allclose(result.per_user["mrr"], 1 / unseen, rtol=1e-6)


def test_seen_items_are_masked_unless_asked():
    """A scorer that ranks seen items first is perfect with the mask, and useless without it."""
    data = make_dataset()
    table = np.zeros((USERS, ITEMS), np.float32)
    for csr, value in ((data.history(2), 2.0), (data.targets(2), 1.0)):
        for u, items in enumerate(by_user(csr)):
            table[u, items] = value

    def score_fn(users):
        return jnp.asarray(table)[users]

    masked = ev.evaluate_rank(score_fn, data, 2, metrics=["ndcg", "auc"], batch_size=8)
    assert masked.metrics["ndcg@10"] == pytest.approx(1) and masked.metrics["auc"] == pytest.approx(
        1
    )
    open_ = ev.evaluate_rank(score_fn, data, 2, metrics=["mrr"], batch_size=8, exclude_seen=False)
    length = np.diff(data.history(2)[0])[open_.users]
    np.testing.assert_allclose(open_.per_user["mrr"], 1 / (1 + length), rtol=1e-6)


def test_repeats_count_when_nothing_is_masked():
    data = make_dataset(repeat=True)
    masked = ev.evaluate_rank(make_scorer(), data, 2, metrics=["mrr"], batch_size=8)
    open_ = ev.evaluate_rank(
        make_scorer(), data, 2, metrics=["mrr"], batch_size=8, exclude_seen=False
    )
    assert open_.repeats == 0
    assert open_.counts["all"]["targets"] == masked.counts["all"]["targets"] + masked.repeats


def test_a_target_listed_twice_counts_once():
    data, score_fn = make_dataset(), make_scorer()
    want = ev.evaluate_rank(score_fn, data, 2, batch_size=8)
    data.pairs[2] = tuple(np.repeat(column, 2) for column in data.pairs[2])
    got = ev.evaluate_rank(score_fn, data, 2, batch_size=8)
    assert got.metrics == want.metrics and got.counts == want.counts


def test_slices_can_be_left_out_and_empty_ones_are_absent():
    data = make_dataset()
    plain = ev.evaluate_rank(make_scorer(), data, 2, batch_size=8, slices=False)
    full = ev.evaluate_rank(make_scorer(), data, 2, batch_size=8)
    assert plain.slices == {} and plain.metrics == full.metrics
    data.pairs[2] = tuple(np.array(data.pairs[2])[:, np.array(data.pairs[2][1]) < ITEMS - 12])
    no_cold = ev.evaluate_rank(make_scorer(), data, 2, batch_size=8)
    assert (
        "cold" not in no_cold.slices
        and "cold_only" not in no_cold.slices
        and "warm" in no_cold.slices
    )


def test_users_known_only_by_a_fold_in_history_are_evaluated():
    """Strong generalisation: no training interaction, but a history to start from."""
    data, nothing = make_dataset(), (np.zeros(0, int), np.zeros(0, int))

    class Folded(TinyDataset):
        def history(self, split):
            return self._csr([*self.pairs[:split], (np.array([5]), np.array([2]))])

    folded = Folded([data.pairs[0], nothing, (np.array([5]), np.array([7]))])
    assert 5 not in data.pairs[0][0]
    assert ev.eval_users(folded, 2).tolist() == [5]
    assert ev.evaluate_rank(make_scorer(), folded, 2, metrics=["mrr"]).metrics["mrr"] > 0


def test_users_without_anything_to_train_on_are_left_out():
    """A user needs an interaction in training or in a fold-in history.

    Sequence models could read such a user's validation items, but matrix factorisation never
    trained a vector for the user.
    """
    data = make_dataset()
    late = TinyDataset(
        [data.pairs[0], (np.array([5]), np.array([2])), (np.array([5]), np.array([7]))]
    )
    assert ev.eval_users(late, 2).tolist() == []


def test_the_real_dataset_gives_the_same_result():
    data, score_fn = make_dataset(), make_scorer()
    names = ("train", "valid", "test")
    rows = pl.DataFrame(
        [
            (int(u), int(i), name)
            for name, pairs in zip(names, data.pairs, strict=True)
            for u, i in zip(*pairs, strict=True)
        ],
        schema=["user", "item", "split"],
        orient="row",
    )
    titles = pl.DataFrame({"item": range(ITEMS), "title": [f"item {i}" for i in range(ITEMS)]})
    real = build(RawData("real", rows, titles), split="column")
    ids = real.user_ids.to_numpy()  # users without any interaction have no index there
    want = ev.evaluate_rank(score_fn, data, 2, batch_size=8)
    got = ev.evaluate_rank(lambda users: score_fn(ids[users]), real, 2, batch_size=8)
    assert ids[got.users].tolist() == want.users.tolist()
    assert got.metrics == want.metrics and got.slices == want.slices and got.counts == want.counts


def test_head_is_a_fifth_of_the_warm_items_with_ties_by_index():
    counts = np.array([0, 5, 9, 5, 1, 1, 1, 0, 1])
    kinds = {name: np.flatnonzero(mask).tolist() for name, mask in ev.item_slices(counts).items()}
    assert kinds == {
        "warm": [1, 2, 3, 4, 5, 6, 8],
        "cold": [0, 7],
        "head": [1, 2],
        "tail": [3, 4, 5, 6, 8],
    }


def test_popularity_ranks_by_training_count():
    data = make_dataset()
    scores = np.asarray(ev.popularity(data)(np.arange(3, dtype=np.int32)).dense())
    np.testing.assert_array_equal(
        scores, np.tile(np.bincount(data.pairs[0][1], minlength=ITEMS), (3, 1))
    )
    result = ev.evaluate_rank(ev.popularity(data), data, 2, metrics=["auc"], batch_size=8)
    assert result.slices["warm"]["auc"] > result.slices["cold"]["auc"]


def test_nobody_to_evaluate():
    data = make_dataset()
    data.pairs[0] = data.pairs[1] = (np.array([0]), np.array([0]))
    data.pairs[2] = (np.array([1]), np.array([0]))
    with pytest.raises(InputError, match="tiny: no user has both.*split 2"):
        ev.evaluate_rank(make_scorer(), data, 2)


def test_a_scorer_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(8, 3\) for 8 users and 50 items"):
        ev.evaluate_rank(lambda users: jnp.zeros((len(users), 3)), make_dataset(), 2, batch_size=8)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_top_k_returns_the_best_unseen_items(batch_size):
    data, score_fn = make_dataset(), make_scorer()
    users = np.array([3, 30, 1, 3])
    items, values = ev.top_k(score_fn, users, 6, data.history(2), batch_size=batch_size)
    assert items.shape == values.shape == (4, 6) and items.dtype == np.int32
    seen = by_user(data.history(2))
    scores = np.asarray(score_fn(np.arange(USERS)))
    for row, u in enumerate(users):
        best = sorted(set(range(ITEMS)) - set(seen[u]), key=lambda i: -scores[u, i])[:6]
        assert items[row].tolist() == best
        np.testing.assert_allclose(values[row], scores[u, best], rtol=1e-5)


def test_top_k_pads_and_ranks_nan_last():
    everything_but_3 = (np.array([0, ITEMS - 3, ITEMS - 3]), np.arange(3, ITEMS, dtype=np.int32))
    table = jnp.zeros((2, ITEMS)).at[0, 1].set(jnp.nan).at[0, 2].set(1.0)
    items, values = ev.top_k(
        lambda users: table[users], np.array([0]), 5, everything_but_3, batch_size=2
    )
    assert items.tolist() == [[2, 0, 1, PAD, PAD]]
    assert np.isneginf(values[0, 3:]).all() and np.isfinite(values[0, :3]).all()
    items, _ = ev.top_k(lambda users: table[users], np.array([1]), ITEMS + 2, batch_size=2)
    assert items[0].tolist() == [*range(ITEMS), PAD, PAD]
    assert ev.top_k(lambda users: table[users], np.zeros(0, int), 5)[0].shape == (0, 5)
    with pytest.raises(InputError, match="k is 0"):
        ev.top_k(lambda users: table[users], np.array([0]), 0)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_sharded_scores_give_the_same_result():
    data, score_fn = make_dataset(), make_scorer()
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    want = ev.evaluate_rank(score_fn, data, 2, batch_size=8)
    got = ev.evaluate_rank(
        lambda users: jax.device_put(score_fn(users), sharding), data, 2, batch_size=8
    )
    assert got.metrics == want.metrics and got.slices == want.slices


@pytest.mark.parametrize(("shape", "items"), [((1, 8), ITEMS), ((2, 4), 48), ((8, 1), ITEMS)])
def test_on_a_mesh_the_best_of_each_device_are_merged_and_no_score_crosses(shape, items):
    mesh = make_mesh(*shape)
    spec = jax.P("data", "model") if items % shape[1] == 0 else jax.P("data")
    table = (
        np.random.default_rng(0).integers(0, 9, (USERS + 3, items)).astype(np.float32)
    )  # with many ties
    table[3, :40], table[4] = np.nan, 7.0
    scores = jax.device_put(table, jax.NamedSharding(mesh, spec))
    seen = (np.repeat(np.arange(3, dtype=np.int32), 45), np.tile(np.arange(45, dtype=np.int32), 3))
    how = {"num_items": items, "k": 7}
    one, many = (
        ranking.top_k(table, seen, mesh=None, **how),
        ranking.top_k(scores, seen, mesh=mesh, **how),
    )
    np.testing.assert_array_equal(one, many)
    text = ranking.top_k.lower(scores, seen, mesh=mesh, **how).compile().as_text()
    best = [f"{kind}[{len(table) // shape[0]},{shape[1] * 7}]" for kind in ("f32", "s32")]
    assert sorted(c["shape"] for c in hlo.collectives(text)) == (best if shape[1] > 1 else [])


@pytest.mark.parametrize("shape", first_fast([((2, 4),), (None,), ((1, 1),), ((1, 8),), ((8, 1),)]))
@pytest.mark.parametrize("batch_size", first_fast([8, 30]))
def test_chunks_of_the_catalogue_rank_as_all_of_it(shape, batch_size, monkeypatch):
    """All scores are whole numbers, so they often tie and do not depend on the order of sums."""
    monkeypatch.setattr(ranking, "SMALLEST_CHUNK", 4)
    monkeypatch.setitem(TILE, "cpu", 7 * batch_size)
    data, rng = make_dataset(), np.random.default_rng(0)
    user, item = (rng.integers(-2, 3, (count, 3)).astype(np.float32) for count in (USERS, ITEMS))
    bias = rng.integers(0, 3, ITEMS).astype(np.float32)
    bias[[4, 45]] = np.nan, -np.inf
    scores = jnp.asarray(user @ item.T + bias)
    mesh = None if shape is None else make_mesh(*shape)

    def factors(users):
        found = Factors(jnp.asarray(user[users]), jnp.asarray(item), jnp.asarray(bias))
        return found if mesh is None else put(found, mesh)

    want = ev.evaluate_rank(lambda users: scores[users], data, 2, ks=(3, 7), batch_size=batch_size)
    jax.clear_caches()  # the sizes of chunks are no arguments
    got = ev.evaluate_rank(factors, data, 2, ks=(3, 7), batch_size=batch_size)
    assert got.metrics == want.metrics and got.slices == want.slices and got.counts == want.counts
    for name in want.per_user:
        np.testing.assert_array_equal(got.per_user[name], want.per_user[name])
    for k in (1, 5, ITEMS + 2):
        lists = [ev.top_k(f, np.arange(USERS), k, data.history(2), batch_size=batch_size)
                 for f in (factors, lambda users: scores[users])]  # fmt: skip
        np.testing.assert_array_equal(*(items for items, _ in lists))
        np.testing.assert_array_equal(*(values for _, values in lists))
    jax.clear_caches()


@pytest.mark.parametrize("off", first_fast([1e-6, 0.0]))
def test_a_target_never_competes_with_itself(off, monkeypatch):
    """The second visit may compute its score with another rounding."""
    monkeypatch.setattr(ranking, "SMALLEST_CHUNK", 4)
    monkeypatch.setitem(TILE, "cpu", 8)
    rng, chunk, visits = np.random.default_rng(0), ranking._Ranked._chunk, []
    user, item = (rng.normal(size=(count, 5)).astype(np.float32) for count in (2, 23))

    def lower(self, *where):
        visits.append(where)
        return chunk(self, *where) - (off if len(visits) > 1 else 0.0)  # in the second visit

    monkeypatch.setattr(ranking._Ranked, "_chunk", lower)
    jax.clear_caches()
    nothing = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    targets = tuple(np.arange(46, dtype=np.int32) // d % m for d, m in ((23, 2), (1, 23)))
    given = Factors(jnp.asarray(user), jnp.asarray(item), jnp.zeros(23))
    found = ranking.target_counts(given, nothing, targets, None, num_items=23, k=0, mesh=None)
    jax.clear_caches()
    assert len(visits) == 2
    counts, scores = np.asarray(found["counts"]), np.asarray(found["scores"])
    ranks = m.ranks_of(counts, scores, targets[0], 23)
    order = np.argsort(np.argsort(-(user @ item.T), axis=1), axis=1) + 1
    np.testing.assert_array_equal(ranks.reshape(2, 23), order)


@pytest.mark.parametrize("shape", [None, (2, 4)])
@pytest.mark.slow
def test_memory_and_traffic_of_ranking_do_not_grow_with_the_catalogue(shape, monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 2**13)
    mesh = None if shape is None else make_mesh(*shape)
    users, pairs = 32, jax.ShapeDtypeStruct((64,), np.int32)

    def compiled(items):
        def of(shape, *spec):
            where = None if mesh is None else jax.NamedSharding(mesh, jax.P(*spec))
            return jax.ShapeDtypeStruct(shape, np.float32, sharding=where)

        scores = Factors(of((users, 8), "data"), of((items, 8), "model"), of((items,), "model"))
        how = {"num_items": items, "k": 5, "mesh": mesh}
        given = scores, (pairs, pairs), (pairs, pairs), None
        return ranking.target_counts.lower(*given, **how).compile()

    small, large = compiled(2**12), compiled(2**16)
    temporary = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
    assert temporary[1] <= 1.1 * temporary[0] < 4 * users * 2**16 / 8
    one = re.compile(
        r"= (.+?)"
        r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    )
    sent = [sorted(one.findall(program.as_text())) for program in (small, large)]
    assert sent[0] == sent[1] and bool(sent[0]) == (mesh is not None)


def test_evaluate_rate_streams_the_same_numbers():
    rng = np.random.default_rng(0)
    logits, labels, values = (
        rng.normal(size=(23, 5)).astype(np.float32),
        rng.integers(0, 5, 23),
        np.arange(1.0, 6.0),
    )
    ratings = rng.uniform(1, 5, 23)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    want = m.rate_metrics(probabilities, labels, values, ratings)
    seen = SimpleNamespace(shapes=set())

    def logits_fn(rows):
        seen.shapes.add(rows.shape)
        return jnp.asarray(logits)[rows]

    found, probabilities = ev.evaluate_rate(
        logits_fn, labels, values=values, ratings=ratings, batch_size=8
    )
    assert found == pytest.approx(want)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-5)
    assert seen.shapes == {(8,)}
    with pytest.raises(InputError, match="no rated pair"):
        ev.evaluate_rate(logits_fn, labels[:0], values=values)


def test_evaluate_rate_of_nan_and_infinite_logits():
    labels, values = np.array([0, 1, 0, 1]), np.array([0.0, 1.0])

    def rate(value):
        return ev.evaluate_rate(
            lambda rows: jnp.full((len(rows), 2), value), labels, values=values, batch_size=4
        )[0]

    for value in (np.nan, np.inf, -np.inf):
        assert rate(value)["accuracy"] == 0 and rate(value)["mae"] == 1


def test_baselines_and_models_of_both_splits_are_ranked_by_one_program():
    data = toy.dataset()
    rng, mesh = np.random.default_rng(0), make_mesh(1, 1)
    vectors = rng.normal(size=(data.num_items, ev.WIDTH)).astype(np.float32)
    placed = put_whole((vectors, np.zeros(data.num_items, np.float32)), mesh)
    users = put_whole(rng.normal(size=(data.num_users, ev.WIDTH)).astype(np.float32), mesh)
    ranking.target_counts.clear_cache()
    for score_fn in (ev.popularity(data), lambda rows: Factors(users[rows], *placed)):
        for split in (1, 2):
            ev.evaluate_rank(score_fn, data, split, slices=False)
    assert ranking.target_counts._cache_size() == 1
