"""Filters against brute force, splits against their definitions, and no leak of the future."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.data import dataset, filters, readers, summary
from kd_jax.data.raw import RawData

TRAIN, VALID, TEST, FOLD_IN = range(4)


def raw_data(rows, columns=("user", "item", "rating", "timestamp"), items=None) -> RawData:
    frame = pl.DataFrame(rows, list(columns), orient="row")
    ids = frame["item"].unique().sort() if items is None else pl.Series("item", items)
    return RawData(
        "test", frame, pl.DataFrame({"item": ids}).with_columns(title=pl.format("Item {}", "item"))
    )


def random_data(
    seed: int, rows: int = 600, users: int = 40, items: int = 30, moments: int = 50
) -> RawData:
    """Shuffled in time, with many ties, repeated pairs and users of very different activity."""
    rng = np.random.default_rng(seed)
    user = np.minimum(rng.geometric(0.08, rows), users)
    item = np.minimum(rng.geometric(0.1, rows), items)
    return raw_data(
        list(
            zip(
                user.tolist(),
                item.tolist(),
                rng.integers(1, 6, rows).astype(float).tolist(),
                rng.integers(0, moments, rows).tolist(),
                strict=True,
            )
        )
    )


def with_column(raw: RawData, seed: int) -> RawData:
    """A split column that keeps to the order of time: two moments per user."""
    rng = np.random.default_rng(seed)
    cuts = {user: np.sort(rng.integers(10, 50, 2)) for user in raw.interactions["user"].unique()}
    names = np.array(["train", "valid", "test"])
    split = [
        str(names[np.searchsorted(cuts[u], t, side="right")])
        for u, t in raw.interactions.select("user", "timestamp").iter_rows()
    ]
    return RawData(raw.name, raw.interactions.with_columns(split=pl.Series(split)), raw.items)


def per_user(csr):
    indptr, values = csr
    assert indptr[0] == 0 and indptr[-1] == len(values)
    return [values[a:b].tolist() for a, b in zip(indptr[:-1], indptr[1:], strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("split", ["leave_one_out", "temporal", "ratio", "strong", "column"])
def test_history_is_never_later_than_its_targets(seed, split):
    raw = random_data(seed)
    if split == "column":
        raw = with_column(raw, seed)
    data = dataset.build(raw, split=split, seed=seed, ratios=(0.6, 0.2, 0.2))
    time = {}  # of each pair the first moment: what deduplication keeps
    for u, i, _, t in raw.interactions.select("user", "item", "rating", "timestamp").iter_rows():
        time[u, i] = min(t, time.get((u, i), t))
    for code in (VALID, TEST):
        histories, targets = per_user(data.history(code)), per_user(data.targets(code))
        assert sum(map(len, targets)) == (data.split == code).sum() > 0
        for user, history, target in zip(data.user_ids, histories, targets, strict=True):
            known = [time[user, data.item_ids[i]] for i in history]
            ahead = [time[user, data.item_ids[i]] for i in target]
            assert not set(history) & set(target)
            assert known == sorted(known) and ahead == sorted(ahead)
            if known and ahead:
                assert max(known) <= min(ahead)
                assert split != "temporal" or max(known) < min(ahead)
    assert sum(map(len, per_user(data.targets(TRAIN)))) == (data.split == TRAIN).sum()


@pytest.mark.parametrize("split", ["leave_one_out", "temporal", "ratio", "strong"])
def test_arrays_are_consistent_and_complete(split):
    raw = random_data(7)
    data = dataset.build(raw, split=split)
    assert np.array_equal(data.user, np.repeat(np.arange(data.num_users), np.diff(data.indptr)))
    order = np.lexsort((data.timestamp, data.user))
    assert np.array_equal(order, np.arange(len(order)))  # sorted by (user, time)
    level = np.where(data.split == FOLD_IN, TRAIN, data.split)
    assert not ((np.diff(level) < 0) & (np.diff(data.user) == 0)).any()
    found = set(zip(data.user_ids.gather(data.user), data.item_ids.gather(data.item), strict=True))
    assert len(found) == len(data.user) and found == set(
        raw.interactions.select("user", "item").iter_rows()
    )
    kinds = [getattr(data, name).dtype for name in (*dataset.ARRAYS, "indptr")]
    assert kinds == [np.int32, np.int32, np.float32, np.int64, np.int8, np.int64]
    counts = np.zeros(data.num_items, int)
    for i in data.item[data.split == TRAIN]:
        counts[i] += 1
    assert np.array_equal(data.item_counts, counts) and np.array_equal(data.warm, counts > 0)


def test_leave_one_out():
    backwards, two, three = (
        [(1, i, 1.0, 10 - i) for i in range(5)],
        [(2, 0, 1.0, 1), (2, 1, 1.0, 2)],
        range(3),
    )
    raw = raw_data([*backwards, *two, *((3, i, 1.0, i) for i in three)])
    data = dataset.build(raw, split="leave_one_out")
    assert per_user(data.history(VALID)) == [[4, 3, 2], [0, 1], [0]]
    assert per_user(data.targets(VALID)) == [[1], [], [1]]
    assert per_user(data.history(TEST)) == [[4, 3, 2, 1], [0, 1], [0, 1]]
    assert per_user(data.targets(TEST)) == [[0], [], [2]]
    assert data.counts["users_with_fewer_than_3"] == 1


def test_temporal_never_parts_a_moment():
    raw = random_data(3, moments=12)
    data = dataset.build(raw, split="temporal", ratios=(0.6, 0.2, 0.2))
    latest = [data.timestamp[data.split == code].max() for code in (TRAIN, VALID)]
    earliest = [data.timestamp[data.split == code].min() for code in (VALID, TEST)]
    assert latest[0] < earliest[0] and latest[1] < earliest[1]
    # The borders are the quantiles: one moment earlier would give train no more than its share.
    ordered = np.sort(data.timestamp)
    assert earliest == [ordered[int(0.6 * len(ordered))], ordered[int(0.8 * len(ordered))]]


def test_ratio():
    raw = raw_data([(u, i, 1.0, i) for u, n in ((1, 10), (2, 1), (3, 4)) for i in range(n)])
    data = dataset.build(raw, split="ratio")
    assert list(map(len, per_user(data.targets(TRAIN)))) == [8, 1, 3]  # 3.2 of 4, rounded
    assert list(map(len, per_user(data.targets(VALID)))) == [1, 0, 1]  # up to 3.6 of 4, rounded
    assert list(map(len, per_user(data.targets(TEST)))) == [1, 0, 0]


def test_strong_generalisation():
    raw = raw_data([(u, i, 1.0, i) for u in range(100) for i in range(1 if u % 10 == 0 else 10)])
    data = dataset.build(raw, split="strong", ratios=(0.7, 0.1, 0.2), seed=1)
    codes = [set(data.split[a:b]) for a, b in zip(data.indptr[:-1], data.indptr[1:], strict=True)]
    assert Counter(map(frozenset, codes)) == {
        frozenset({TRAIN}): 70,
        frozenset({FOLD_IN, VALID}): 10,
        frozenset({FOLD_IN, TEST}): 20,
    }
    trained_on = per_user(data.targets(TRAIN))
    for code in (VALID, TEST):
        histories, targets = per_user(data.history(code)), per_user(data.targets(code))
        for learnt, history, target in zip(trained_on, histories, targets, strict=True):
            if target:
                assert history == list(range(8)) and target == [8, 9]
                assert learnt == []  # a held-out user is never trained on
    assert data.item_counts.sum() == (data.split == TRAIN).sum()  # nor counted
    others = [dataset.build(raw, split="strong", seed=seed).checksum for seed in (1, 1, 2)]
    assert others[0] == others[1] != others[2]


def test_column_split_names_and_order():
    names = ["Train", "train", "validation", "TEST"]
    raw = raw_data([(1, i, n) for i, n in enumerate(names)], ("user", "item", "split"))
    assert dataset.build(raw, split="column").split.tolist() == [0, 0, 1, 2]
    mixed = raw_data(
        [(1, 0, "test"), (1, 1, "valid"), (1, 2, "train"), (1, 3, "train")],
        ("user", "item", "split"),
    )
    data = dataset.build(mixed, split="column")
    assert data.split.tolist() == [0, 0, 1, 2] and data.item.tolist() == [2, 3, 1, 0]
    timed = raw_data(
        [(1, 0, "train", 5), (1, 1, "valid", 6), (1, 2, "test", 7), (1, 3, "train", 9)],
        ("user", "item", "split", "timestamp"),
    )
    refused(
        lambda: dataset.build(timed, split="column"),
        "timestamp 9",
        "test at 7",
        "data.files.columns.timestamp=''",
    )
    refused(
        lambda: dataset.build(
            raw_data([(1, 1, "tset")], ("user", "item", "split")), split="column"
        ),
        "'tset'",
        "did you mean 'test'?",
    )
    refused(lambda: dataset.build(random_data(0), split="column"), "needs a split column")


def brute_force_core(pairs, min_user, min_item):
    pairs = set(pairs)
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = {(u, i) for u, i in pairs if users[u] >= min_user and items[i] >= min_item}
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("min_user", "min_item"), [(3, 3), (6, 2), (2, 9), (5, 0), (1, 4)])
def test_core_is_the_fixed_point(seed, min_user, min_item):
    rng = np.random.default_rng(seed)
    pairs = np.unique(np.minimum(rng.geometric(0.12, (150, 2)), 30), axis=0)
    user, item = pairs.T.astype(np.int32)
    kept = filters.core(user, item, min_user, min_item)
    assert set(map(tuple, pairs[kept].tolist())) == brute_force_core(
        map(tuple, pairs.tolist()), min_user, min_item
    )


def test_core_of_real_data():
    data = dataset.build(
        readers.read("movietweetings"),
        split="leave_one_out",
        min_user_interactions=5,
        min_item_interactions=5,
    )
    assert (len(data.user), data.num_users, data.num_items) == (68_055, 4_333, 2_414)


def test_default_scenario_has_cold_films():
    data = dataset.build(readers.read("movietweetings"), min_user_interactions=5)
    assert (data.num_users, data.num_items, len(data.user)) == (
        4_692,
        10_506,
        80_854,
    )  # every film stays
    cold = ~data.warm[data.targets(TEST)[1]]
    assert 0.15 < cold.mean() < 0.25
    assert np.bincount(data.split) / len(data.user) == pytest.approx([0.8, 0.1, 0.1], abs=0.001)


def test_filters_in_order():
    rows = [
        (1, 1, 5.0, 3),
        (1, 1, 4.0, 1),
        (1, 1, 2.0, 0),
        (1, 2, 5.0, 5),
        (1, 3, 3.0, 6),
        (2, 1, 5.0, 7),
        (1, 4, 5.0, 8),
    ]
    raw = raw_data(rows, items=range(1, 6))
    data = dataset.build(raw, split="leave_one_out", min_rating=4.0, min_user_interactions=2)
    assert data.timestamp.tolist() == [
        1,
        5,
        8,
    ]  # the first of 1-1 that is rated high enough; user 2 has one left
    assert data.rating.tolist() == [4.0, 5.0, 5.0]
    assert data.item_ids.to_list() == [1, 2, 3, 4, 5]  # the whole items table
    assert {
        key: data.counts[key]
        for key in ("rows", "below_min_rating", "repeated", "below_min_interactions")
    } == {
        "rows": 7,
        "below_min_rating": 2,
        "repeated": 1,
        "below_min_interactions": 1,
    }
    assert data.counts["interactions"] == 3
    core = dataset.build(raw, split="leave_one_out", min_item_interactions=1)
    assert core.item_ids.to_list() == [1, 2, 3, 4]  # only what somebody chose


@pytest.mark.parametrize("timed", [True, False])
def test_ties_and_missing_timestamps_keep_the_order_of_the_rows(timed):
    items = np.random.default_rng(0).permutation(5000).tolist()
    rows = [(9, item, 3) for item in items] if timed else [(9, item) for item in items]
    data = dataset.build(
        raw_data(rows, ("user", "item", "timestamp")[: 2 + timed]), split="leave_one_out"
    )
    assert data.item_ids.gather(data.item).to_list() == items
    assert data.timestamp.tolist() == ([3] * 5000 if timed else list(range(5000)))
    assert set(data.rating) == {1.0}


def test_the_order_of_rows_does_not_matter_but_for_ties():
    rows = [(u, i, 1.0, 100 * i + u) for u in range(6) for i in range(8)]
    one, other = (dataset.build(raw_data(r)) for r in (rows, rows[::-1]))
    assert one.checksum == other.checksum
    assert one.checksum != dataset.build(raw_data(rows[1:])).checksum
    assert one.checksum != dataset.build(raw_data(rows), split="ratio").checksum


def test_string_ids_and_sparse_numbers():
    names = raw_data([(f"u{u}", f"i{i}", 1.0, i) for u in (2, 10, 1) for i in (30, 4, 5)])
    data = dataset.build(names, split="leave_one_out")
    assert data.user_ids.to_list() == ["u1", "u10", "u2"] and data.item_ids.to_list() == [
        "i30",
        "i4",
        "i5",
    ]
    assert data.item_ids.gather(data.item).to_list() == ["i4", "i5", "i30"] * 3
    far = raw_data([(u, i, 1.0, i) for u in (2**40, 5) for i in (2**50, 3, 7)])
    data = dataset.build(far, split="leave_one_out")
    assert data.user_ids.to_list() == [5, 2**40] and data.item.tolist() == [0, 1, 2] * 2


def test_texts():
    rows = [(1, i, 1.0, i) for i in range(3)]
    items = pl.DataFrame(
        {"item": [2, 0, 1], "year": [1999, 2000, None], "title": [" Two ", "", "One"]}
    )
    raw = RawData("films", raw_data(rows).interactions, items)
    data = dataset.build(raw, split="leave_one_out", text_columns=["title", "year"])
    assert data.items.rows() == [("", "2000"), ("One", ""), ("Two", "1999")]
    assert data.titles == ["0", "One", "Two"]
    refused(
        lambda: dataset.build(raw, split="leave_one_out", text_columns=["titel"]),
        "'titel'",
        "mean 'title'?",
    )
    refused(
        lambda: dataset.build(raw, split="leave_one_out", text_columns=["title"]),
        "films, items table: 1 of 3 items have an empty text (0)",
        "data.missing_text='id'",
    )
    named = dataset.build(raw, split="leave_one_out", text_columns=["title"], missing_text="id")
    assert named.items.rows() == [("0",), ("One",), ("Two",)]
    absent = RawData(
        "films", raw.interactions, items.filter(pl.col("item") == 1)
    )  # 0 and 2 aren't in the table
    refused(
        lambda: dataset.build(absent, split="leave_one_out"),
        "2 of 3 items of films are not in it (0, 2)",
    )
    bare = RawData("films", raw.interactions, items.select("item"))
    refused(
        lambda: dataset.build(bare, split="leave_one_out"),
        "films: 3 items have no text, because there is no items table",
    )
    assert dataset.build(bare, split="leave_one_out", missing_text="id").items.rows() == [
        ("0",),
        ("1",),
        ("2",),
    ]


def test_max_users():
    data = dataset.build(random_data(1), split="ratio", min_user_interactions=3, max_users=4)
    whole = dataset.build(random_data(1), split="ratio", min_user_interactions=3)
    assert data.user_ids.to_list() == whole.user_ids[:4].to_list()
    assert len(data.user) == whole.indptr[4] and data.num_items == whole.num_items
    assert data.counts["beyond_max_users"] == len(whole.user) - len(data.user) > 0
    assert f", {len(whole.user) - len(data.user)} beyond max users)" in summary.lines(data)[0]


@pytest.mark.parametrize("ids", [int, str])
def test_save_and_load(tmp_path, ids):
    raw = raw_data([(ids(u), ids(i), float(i % 5), 10 * i + u) for u in range(6) for i in range(8)])
    data = dataset.build(raw, split="strong", ratios=(0.5, 0.25, 0.25))
    data.save(tmp_path)
    again = dataset.load(tmp_path)
    for name in (*dataset.ARRAYS, "indptr"):
        assert np.array_equal(getattr(data, name), getattr(again, name))
        assert getattr(data, name).dtype == getattr(again, name).dtype
    for name in ("items", "item_ids", "user_ids"):
        assert getattr(again, name).equals(getattr(data, name))
    for name in ("name", "split_name", "counts", "checksum"):
        assert getattr(again, name) == getattr(data, name)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".json",
        ".parquet",
        ".parquet",
        ".parquet",
    ]

    pl.read_parquet(tmp_path / "users.parquet").reverse().write_parquet(tmp_path / "users.parquet")
    refused(lambda: dataset.load(tmp_path), "has changed since it was written", data.checksum)
    (tmp_path / "items.parquet").write_bytes(b"PAR1 cut off")
    refused(lambda: dataset.load(tmp_path), "can't be read", str(tmp_path))
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "test"}))
    refused(lambda: dataset.load(tmp_path), "can't be read")


def test_an_empty_result_names_the_options():
    raw = random_data(0)
    refused(
        lambda: dataset.build(raw, min_rating=6),
        "none of 600 interactions is left after data.min_rating=6; lower",
    )
    refused(
        lambda: dataset.build(raw, min_user_interactions=99, min_item_interactions=5),
        "none of 600",
        "data.min_interactions=99 and data.min_item_interactions=5",
        "lower one of them",
    )
    bare = raw_data([(1, 1), (1, 2)], ("user", "item"))
    refused(lambda: dataset.build(bare, min_rating=3), "data.min_rating=3 needs a rating column")


@pytest.mark.parametrize("split", ["leave_one_out", "temporal", "ratio", "strong"])
def test_everyone_has_one_interaction(split):
    raw = raw_data([(u, u % 7, 1.0, u) for u in range(50)])
    refused(
        lambda: dataset.build(raw, split=split),
        f"split '{split}'",
        "50 interactions of 50 users",
        "at most 1 of one user",
        "change data.split",
    )


def test_empty_split():
    raw = raw_data([(u, i, 1.0, 5) for u in range(4) for i in range(4)])
    refused(
        lambda: dataset.build(raw, split="temporal"),
        "leaves train empty",
        "16 interactions of 4 users",
    )
    refused(lambda: dataset.build(raw, split="tempral"), "'tempral'", "did you mean 'temporal'?")
    refused(
        lambda: dataset.build(raw, split="ratio", ratios=(0.9, 0.2, 0.1)),
        "data.ratios=(0.9, 0.2, 0.1)",
    )
    refused(
        lambda: dataset.build(raw, split="ratio", ratios=(1.0, 0.0, 0.0)), "three positive shares"
    )


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([(1, 1, 1.0, 1), (None, 2, 1.0, 1)], ["row 1: user None is missing"]),
        ([(1, 1, float("nan"), 1), (1, 2, 1.0, 1)], ["row 0: rating nan is not a finite number"]),
        ([(1, 1, 1.0, None), (1, 2, 1.0, 1)], ["row 0: timestamp None is not a finite number"]),
    ],
)
def test_raw_data_from_elsewhere_is_checked(rows, fragments):
    refused(lambda: dataset.build(raw_data(rows, items=[1, 2])), *fragments)


def test_items_from_elsewhere_are_checked():
    raw = random_data(0)

    def build(items):
        table = pl.DataFrame({"item": items}).with_columns(title=pl.lit("t"))
        return lambda: dataset.build(RawData("x", raw.interactions, table))

    refused(build([1, 2, 1]), "row 2: item id 1 is there twice")
    refused(build([1, None]), "row 1: the item has no id")
    refused(
        build(["1", "2"]), "item ids are Int64 in the interactions and String in the items table"
    )


def test_what_is_rated_too_low_is_kept_as_disliked(tmp_path):
    rows = [(u, i, 5.0 if (u + i) % 3 else 1.0, 10 * i + u) for u in range(5) for i in range(9)]
    rows += [(0, 3, 5.0, 500), (7, 1, 1.0, 3)]  # disliked once, then liked; a user without likes
    data = dataset.build(raw_data(rows), split="leave_one_out", min_rating=3.0)
    indptr, items = data.disliked
    want = {u: [i for i in range(9) if (u + i) % 3 == 0 and (u, i) != (0, 3)] for u in range(5)}
    assert data.user_ids.to_list() == list(range(5))
    assert {u: items[indptr[u] : indptr[u + 1]].tolist() for u in range(5)} == want
    data.save(tmp_path)
    loaded = dataset.load(tmp_path).disliked
    assert all(np.array_equal(a, b) for a, b in zip(loaded, data.disliked, strict=True))
    assert dataset.build(raw_data(rows), split="leave_one_out").disliked is None


@pytest.mark.parametrize(
    ("repeats", "kept"),
    [
        ("first", [(1, 2.0, 10), (2, 5.0, 20), (3, 1.0, 30)]),
        ("last", [(3, 1.0, 30), (2, 5.0, 40), (1, 5.0, 60)]),
        ("max", [(3, 1.0, 30), (2, 5.0, 40), (1, 5.0, 60)]),
    ],
)
def test_repeats(repeats, kept):
    rows = [(1, 2.0, 10), (2, 5.0, 20), (3, 1.0, 30), (2, 5.0, 40), (1, 5.0, 50), (1, 5.0, 60)]
    if repeats == "max":
        rows[-1] = (1, 4.0, 70)
        kept = [*kept[:-1], (1, 5.0, 50)]
    raw = raw_data([(9, *row) for row in rows])
    data = dataset.build(raw, split="leave_one_out", repeats=repeats)
    found = zip(data.item_ids.gather(data.item), data.rating, data.timestamp, strict=True)
    assert list(found) == kept and data.counts["repeated"] == 3
    refused(lambda: dataset.build(raw, repeats="lst"), "data.repeats='lst'", "'last'")
