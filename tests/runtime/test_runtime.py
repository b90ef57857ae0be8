"""The runtime: lists, filters, names, explanations, similar items and the file it reads."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from helpers.toy import refused
from kd_jax.runtime import Filters, Runtime, load, store
from kd_jax.runtime.contexts import HistoryMap

U, ITEMS, D = 6, 20, 4
INDPTR = np.array([0, 3, 4, 4, 9, 12, 13])


def export(seed=0, **changes):
    """A small factorised student; user 2 has no interaction and a vector of zeros."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    users = draw(U, D)
    users[2] = 0.0
    titles = [f"film {n}" for n in range(ITEMS)]
    titles[3] = "12"  # the id of item 12 in the order of the ids is its place
    titles[4] = "film 5"
    titles[6] = "Amélie"
    titles[17] = "id:18"
    values = dict(
        description={"student": "mf", "dataset": {"name": "toy", "checksum": "x"}},
        user_ids=[f"u{n}" for n in range(U)],
        item_ids=list(range(ITEMS)),
        titles=titles,
        item_vectors=draw(ITEMS, D),
        item_bias=draw(ITEMS),
        user_vectors=users,
        indptr=INDPTR,
        items=rng.integers(0, ITEMS, INDPTR[-1]).astype(np.int32),
        context=HistoryMap(draw(D, D), draw(D), 3.0, 0.5),
    )
    return store.Export(**(values | changes))


@pytest.fixture
def runtime():
    return Runtime(export())


def items_of(found):
    return [row.item for row in found]


def expected(runtime, vector, banned, k):
    e = runtime.export
    scores = vector @ e.item_vectors.T + e.item_bias
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in set(banned)]
    return order[:k]


def test_a_known_user_gets_the_best_items_that_are_not_seen(runtime):
    e = runtime.export
    for user in (0, 1, 3):
        seen = e.items[INDPTR[user] : INDPTR[user + 1]].tolist()
        found = runtime.recommend(user=f"u{user}", k=7)
        assert items_of(found) == expected(runtime, e.user_vectors[user], seen, 7)
        assert [row.rank for row in found] == list(range(1, 8))
        assert [row.title for row in found] == [e.titles[row.item] for row in found]
    everything = runtime.recommend(user="u0", k=99, filters=Filters(include_seen=True))
    assert items_of(everything) == expected(runtime, e.user_vectors[0], [], ITEMS)


def test_a_history_gets_its_context_and_an_untrained_user_that_of_theirs(runtime):
    e = runtime.export
    vector = e.context(np.array([[7, 9, 11]]), e.item_vectors)[0]
    found = runtime.recommend(history=["film 7", 9, "id:11"], k=5)
    assert items_of(found) == expected(runtime, vector, [7, 9, 11], 5)
    assert items_of(runtime.recommend("u2", k=5)) == expected(runtime, e.context.intercept, [], 5)


def test_newer_clicks_move_a_trained_vector_by_what_they_change_in_the_context(runtime):
    e = runtime.export
    seen = e.items[:3].tolist()
    before, after = (e.context(np.array([h]), e.item_vectors)[0] for h in (seen, [*seen, 15]))
    found = runtime.recommend("u0", [15], k=5)
    want = expected(runtime, e.user_vectors[0] + after - before, [*seen, 15], 5)
    assert items_of(found) == want


def test_filters_choose_among_the_items(runtime):
    only = runtime.items(range(10))
    found = items_of(runtime.recommend("u0", k=99, filters=Filters(only=only)))
    assert found and set(found) <= set(range(10))
    left = Filters(exclude=runtime.items(found[:2]), only=only)
    assert items_of(runtime.recommend("u0", k=99, filters=left)) == found[2:]


def test_many_users_get_the_lists_of_each_alone(runtime, monkeypatch):
    from kd_jax.runtime import runtime as module

    monkeypatch.setattr(module, "USERS_AT_ONCE", 4)  # a last block that is not full
    blocks = list(runtime.many(k=5))
    assert [list(block) for block, _, _ in blocks] == [[0, 1, 2, 3], [4, 5]]
    rows = list(itertools.chain.from_iterable(items.tolist() for _, items, _ in blocks))
    assert rows == [items_of(runtime.recommend(f"u{u}", k=5)) for u in range(U)]
    histories = [[1], [2, 3], [4, 5, 6]]
    ((_, items, scores),) = runtime.many(histories=histories, k=5)
    for row, history in enumerate(histories):
        one = runtime.recommend(history=[i for i in history], k=5)
        assert items[row].tolist() == items_of(one)
        np.testing.assert_allclose(scores[row], [r.score for r in one], rtol=1e-5)
    assert list(runtime.many(users=[], k=5)) == []
    ((_, items, _),) = runtime.many(users=iter(["u3", "u1"]), k=5)
    assert items[1].tolist() == rows[1]
    for wrong in ({"histories": ["film 1"]}, {"users": "u0"}):
        refused(lambda ask=wrong: list(runtime.many(**ask)), "must be a list")
    refused(lambda: list(runtime.many(histories=[[1], []])), "history is empty")
    refused(lambda: list(runtime.many(users=[], histories=[])), "not both")


def test_arrays_and_series_are_histories(runtime):
    want = items_of(runtime.recommend(history=[7, 9]))
    assert items_of(runtime.recommend(history=np.array([7, 9]))) == want
    assert items_of(runtime.recommend(history=np.array([7.0, 9.0]))) == want
    assert items_of(runtime.recommend(history=iter((np.int32(7), 9)))) == want


@pytest.mark.parametrize(
    ("ask", "fragments"),
    [
        ({}, ["a user, a history or both"]),
        ({"user": "u9"}, ["'u9' is not in the data set", "u0, u1, u2"]),
        ({"history": []}, ["history is empty"]),
        ({"history": "film 1"}, ["must be a list", "['film 1']"]),
        ({"history": 5}, ["must be a list", "[5]"]),
        ({"history": ["fim 1"]}, ["'fim 1'", "did you mean"]),
        ({"history": ["film 5"]}, ["2 items", "id:4, id:5"]),
        ({"history": ["12"]}, ["2 items", "id:3, id:12"]),
        ({"history": ["id:18"]}, ["2 items", "17", "18"]),
        ({"user": "u0", "k": 0}, ["k is 0"]),
        ({"user": "u0", "k": 2.5}, ["k is 2.5"]),
        ({"user": "u0", "k": True}, ["k is True"]),
        ({"user": "u0", "diversity": 1.5}, ["diversity is 1.5"]),
        ({"user": "u0", "diversity": float("nan")}, ["diversity is nan"]),
        ({"user": "u0", "diversity": "0.3"}, ["diversity is '0.3'"]),
    ],
)
def test_bad_requests_are_one_line_with_the_fix(runtime, ask, fragments):
    refused(lambda: runtime.recommend(**ask), *fragments)


def test_names_are_ids_titles_or_either_with_a_prefix(runtime):
    for name, index in [
        (12, 12), ("id:12", 12), ("title:12", 3), ("FILM  7", 7), ("title:film 7", 7),
        ("Ame\N{COMBINING ACUTE ACCENT}lie", 6),
    ]:  # fmt: skip
        assert runtime.item(name) == index, name


def test_the_parts_of_a_score_add_up_and_are_those_of_the_history(runtime):
    e = runtime.export
    for ask in ({"history": [7, 9, 11]}, {"user": "u3"}, {"user": "u0", "history": [15]}):
        query = runtime.query(**ask)
        score = runtime.scores(query.contexts)[0, 8]
        parts = runtime.explain(8, **ask)
        assert sum(part.share for part in parts) == pytest.approx(float(score), abs=1e-4)
    parts = {part.item: part.share for part in runtime.explain(8, history=[7, 9, 11])}
    whole = e.context(np.array([[7, 9, 11]]), e.item_vectors)[0]
    # Item 9 with a vector of zeros takes its share out of the context and nothing else.
    gone = e.item_vectors.copy()
    gone[9] = 0.0
    less = e.context(np.array([[7, 9, 11]]), gone)[0]
    assert parts[9] == pytest.approx(float((whole - less) @ e.item_vectors[8]), abs=1e-5)


def test_without_factors_a_share_is_what_the_score_of_the_history_loses():
    hidden = store.Hidden(
        np.eye(D, dtype=np.float32), np.zeros(D, np.float32), np.eye(D, dtype=np.float32),
        np.ones((D, 1), np.float32), np.zeros(1, np.float32),
    )  # fmt: skip
    distinct = np.arange(INDPTR[-1], dtype=np.int32)
    runtime = Runtime(export(hidden=hidden, items=distinct))
    seen = runtime.seen(0).tolist()
    for ask, history in (({"history": [7, 9]}, [7, 9]), ({"user": "u0"}, seen)):
        parts = runtime.explain(8, **ask)
        score = runtime.scores(runtime.query(**ask).contexts)[0, 8]
        assert sum(part.share for part in parts) == pytest.approx(float(score), abs=1e-4)
        whole, less = (
            runtime.scores(runtime.query(history=h).contexts)[0, 8] for h in (history, history[:-1])
        )
        shares = {part.item: part.share for part in parts if part.part == "history"}
        assert shares[history[-1]] == pytest.approx(float(whole - less), abs=1e-5)
        (user,) = [part.share for part in parts if part.part == "user"]
        assert user == pytest.approx(float(score - whole), abs=1e-5)


def test_similar_items_are_those_of_the_same_direction_and_not_the_item_itself(runtime):
    e = runtime.export
    vectors = e.item_vectors.copy()
    warm = np.unique(e.items)
    vectors[19] = vectors[7] * 3 - 2 * vectors[warm].mean(0)  # item 7's direction from the mean
    users = e.user_vectors * 1e-6  # the average user prefers no item
    changed = dataclasses.replace(
        e, item_vectors=vectors, user_vectors=users, item_bias=np.zeros_like(e.item_bias)
    )
    found = Runtime(changed).similar(7, ITEMS)
    assert 7 not in items_of(found) and len(found) == ITEMS - 1
    assert items_of(found)[0] == 19


def test_a_file_holds_what_was_written_strided_arrays_included(tmp_path):
    e = export(item_ids=[f"i{n}" for n in range(ITEMS)], user_ids=list(range(2**63, 2**63 + U)))
    e = dataclasses.replace(e, item_vectors=np.asfortranarray(e.item_vectors))
    path = tmp_path / store.FILE
    store.write(path, e)
    found = load(path).export
    for field in dataclasses.fields(store.Export):
        one, other = getattr(e, field.name), getattr(found, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
    assert list(found.item_ids) == e.item_ids and list(found.user_ids) == e.user_ids
    assert found.titles == e.titles and found.description == e.description
    np.testing.assert_array_equal(found.context.weight, e.context.weight)
    assert (found.context.decay, found.context.shrink) == (3.0, 0.5)
    assert items_of(load(tmp_path).recommend(2**63, k=3)) == items_of(
        load(path).recommend(2**63, k=3)
    )


def test_large_ids_stay_exact_beside_small_ones(tmp_path):
    ids = [1, 2**53 + 1, 2**63, 2**64 - 1, 5, 6]
    store.write(tmp_path / store.FILE, export(user_ids=ids))
    assert list(load(tmp_path).export.user_ids) == ids


def test_without_any_interaction_items_are_similar_by_their_vectors():
    e = export(indptr=np.zeros(U + 1, np.int64), items=np.zeros(0, np.int32))
    assert len(Runtime(e).similar(7, 5)) == 5


def test_a_history_is_cut_where_its_weights_vanish(runtime):
    context = runtime.export.context
    long = np.random.default_rng(1).integers(0, ITEMS, 500)
    whole = context(long[None], runtime.export.item_vectors)
    cut = runtime.contexts([long])
    assert context.length == 48
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_damaged_missing_and_infinite_exports_are_refused(tmp_path):
    path = tmp_path / store.FILE
    refused(lambda: load(tmp_path), "runtime.safetensors is missing", "launch.py")
    store.write(path, export())
    whole = path.read_bytes()
    for size in (0, 7, 200, len(whole) - 5):
        path.write_bytes(whole[:size])
        refused(lambda: load(tmp_path), "runtime.safetensors is damaged", "launch.py")
    for place in (len(whole) // 2, len(whole) - 1):  # inside the tensors
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(lambda: load(tmp_path), "runtime.safetensors is damaged", "checksum")
    bad = export()
    bad.item_bias[3] = np.nan
    refused(lambda: store.write(path, bad), "item_bias is not finite")


def test_the_runtime_needs_neither_jax_nor_flax_nor_polars(tmp_path):
    store.write(tmp_path / store.FILE, export())
    code = (
        "import sys\n"
        "for name in ('jax', 'flax', 'polars', 'scipy'): sys.modules[name] = None\n"
        "from kd_jax import runtime\n"
        "found = runtime.load(sys.argv[1])\n"
        "print([row.item for row in found.recommend(history=[1, 2], k=3)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    want = items_of(Runtime(export()).recommend(history=[1, 2], k=3))
    assert done.stdout.strip() == str(want)


def test_what_a_user_disliked_is_not_recommended():
    indptr = np.array([0, 2, 2, 2, 2, 2, 3])
    never = store.Disliked(indptr, np.array([5, 7, 9], np.int32))
    runtime = Runtime(export(disliked=never))
    plain = Runtime(export())
    for user, banned in (("u0", {5, 7}), ("u1", set()), ("u5", {9})):
        found = items_of(runtime.recommend(user, k=ITEMS, filters=Filters(include_seen=True)))
        assert set(found) == set(range(ITEMS)) - banned
        kept = [item for item in items_of(plain.recommend(user, k=ITEMS)) if item not in banned]
        assert items_of(runtime.recommend(user, k=ITEMS)) == kept
    lists = {}
    for block, found, _ in runtime.many(k=ITEMS):
        lists |= dict(zip(block, found.tolist(), strict=True))
    assert not {5, 7} & set(lists[0]) and 9 not in lists[5]
    newer = items_of(runtime.recommend("u0", ["id:5"], k=ITEMS, filters=Filters(include_seen=True)))
    assert 5 in newer and 7 not in newer  # chosen since


def test_dislikes_are_in_the_file(tmp_path):
    never = store.Disliked(np.array([0, 1, 1, 1, 1, 1, 1]), np.array([5], np.int32))
    store.write(tmp_path / store.FILE, export(disliked=never))
    found = Runtime(store.read(tmp_path / store.FILE))
    assert found.disliked(0).tolist() == [5] and found.disliked(1).tolist() == []
