"""Repeats and events of several types, against a loop over the events of each pair."""

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.data import dataset, events, readers, summary
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.snapshot import snapshot_examples
from kd_jax.data.examples.user import user_examples
from kd_jax.data.raw import RawData
from kd_jax.data.splits import TEST, TRAIN, VALID

SHOP = "view=0.25, like=1, buy=2, unlike=0, hate=-1, login=None"
WEIGHTS = {"view": 0.25, "like": 1.0, "buy": 2.0, "unlike": 0.0, "hate": -1.0}


def raw_of(rows, columns=("user", "item", "timestamp", "event")):
    frame = pl.DataFrame(rows, list(columns), orient="row")
    items = frame.select(pl.col("item").unique().sort(), title=pl.lit("a"))
    return RawData("log", frame, items)


def built(rows, columns=("user", "item", "timestamp", "event"), **options):
    events_ = {"events": SHOP} if "event" in columns else {}
    return dataset.build(raw_of(rows, columns), **(events_ | options))


def one_user(*rows):
    """Events of user 1 with item 7, among likes of other items that fill the splits."""
    rest = [(1, 1, 0, "like"), (1, 8, 500, "like"), (1, 9, 900, "like")]
    return built([*rest, *((1, 7, time, event) for time, event in rows)], split="leave_one_out")


def pair(data, item=7):
    """(time, weight) of an item, or None; and whether it is disliked."""
    index = data.item_ids.to_list().index(item)
    disliked = data.disliked is not None and index in data.disliked[1]
    row = np.flatnonzero(data.item == index)
    if not len(row):
        return None, disliked
    weight = 1.0 if data.weight is None else float(data.weight[row[0]])
    return (int(data.timestamp[row[0]]), weight), disliked


@pytest.mark.parametrize(
    ("rows", "want", "disliked"),
    [
        ([(10, "view"), (20, "like")], (20, 1.0), False),
        ([(10, "like"), (20, "view")], (10, 1.0), False),
        ([(10, "like"), (20, "unlike")], None, False),
        ([(10, "like"), (20, "unlike"), (30, "view")], (30, 0.25), False),
        ([(10, "like"), (20, "hate")], None, True),
        ([(10, "hate"), (20, "view")], None, True),
        ([(10, "hate"), (20, "view"), (30, "like")], (30, 1.0), False),
        ([(10, "hate"), (20, "unlike")], None, False),
        ([(10, "view"), (20, "login"), (30, "view")], (10, 0.25), False),
    ],
)
def test_the_heaviest_event_that_was_not_taken_back_is_the_interaction(rows, want, disliked):
    assert pair(one_user(*rows)) == (want, disliked)


def loop(rows, repeats):
    """(user, item) -> (time, weight), and the disliked pairs; by the rules, one event at a time."""
    state, low = {}, {}
    for user, item, time, event in sorted(rows, key=lambda row: row[2]):
        weight, key = WEIGHTS[event], (user, item)
        if weight <= 0:
            state[key], low[key] = [], -weight
        elif weight >= low.get(key, 0):
            state.setdefault(key, []).append((time, weight))
    kept = {}
    for key, found in state.items():
        if found:
            most = max(weight for _, weight in found)
            times = [time for time, weight in found if weight == most]
            total = sum(weight for _, weight in found)
            first = repeats in ("first", "count")
            kept[key] = times[0] if first else times[-1], total if repeats == "count" else most
    return kept, {key for key, weight in low.items() if weight > 0 and key not in kept}


@pytest.mark.parametrize("repeats", ["first", "last", "count"])
def test_random_logs_agree_with_a_loop_over_their_events(repeats):
    rng = np.random.default_rng(3)
    names = rng.choice(list(WEIGHTS), 3000, p=[0.4, 0.25, 0.1, 0.15, 0.1])
    times = rng.permutation(3000).tolist()
    rows = [
        (int(u), int(i), t, str(name))
        for u, i, t, name in zip(
            rng.integers(0, 30, 3000), rng.integers(0, 40, 3000), times, names, strict=True
        )
    ]
    data = built(rows, split="strong", repeats=repeats, ratios=(0.8, 0.1, 0.1))
    kept, low = loop(rows, repeats)
    assert data.weight.dtype == np.float32
    users, items = data.user_ids.to_list(), data.item_ids.to_list()
    alone = data.split == TRAIN  # users of one split only: nothing of theirs is in the future
    for row in np.flatnonzero(alone):
        key = users[data.user[row]], items[data.item[row]]
        assert (data.timestamp[row], data.weight[row]) == kept[key]
    assert len(data.item) == len(kept) and alone.mean() > 0.7
    owner = np.repeat(np.arange(len(users)), np.diff(data.disliked[0]))
    assert {(users[u], items[i]) for u, i in zip(owner, data.disliked[1], strict=True)} == low
    reason = data.counts
    assert reason["rows"] == len(kept) + reason["repeated"] + reason["taken_back"]


def test_counts_are_of_what_was_known_when_a_later_split_begins():
    rows = [(1, 1, 10), (1, 1, 20), (1, 2, 30), (1, 1, 40), (1, 3, 50), (1, 2, 60), (1, 3, 70)]
    columns = ("user", "item", "timestamp")
    data = built(rows, columns, split="leave_one_out", repeats="count")
    assert data.timestamp.tolist() == [10, 30, 50] and data.split.tolist() == [TRAIN, VALID, TEST]
    # item 1 was repeated before valid begins at 30 and after, item 2 only after test has begun
    assert data.weight.tolist() == [2.0, 1.0, 2.0]
    # another user's valid begins at 35, and the cut is the same for all
    more = [(2, 9, 5), (2, 4, 35), (2, 5, 80), (1, 1, 34)]
    data = built([*rows, *more], columns, split="temporal", ratios=(0.5, 0.2, 0.3), repeats="count")
    first = int(data.timestamp[data.split > TRAIN].min())
    assert first == 35 and data.weight[0] == 3.0  # 10, 20 and 34; not 40
    once = built([row for row in rows if row[2] in (10, 30, 50)], columns, split="leave_one_out")
    assert once.weight is None and data.weight is not None


def test_without_types_or_repeats_the_data_set_is_the_same_and_files_are_kept(tmp_path):
    columns = ("user", "item", "timestamp")
    rows = [(u, i, 10 * i + u) for u in range(4) for i in range(6)]
    plain, counted = (
        built(rows, columns, split="leave_one_out", repeats=repeats)
        for repeats in ("first", "count")
    )
    assert plain.checksum == counted.checksum and counted.weight is None
    twice = built([*rows, *((u, 0, 1 + u) for u in range(4))], columns, repeats="count")
    assert twice.checksum != plain.checksum
    twice.save(tmp_path)
    loaded = dataset.load(tmp_path)
    assert loaded.weight.tolist() == twice.weight.tolist() and loaded.checksum == twice.checksum
    plain.save(tmp_path)
    assert dataset.load(tmp_path).weight is None


WEIGHTED = [
    (1, 1, 0, "like"), (1, 2, 86_400, "view"), (1, 3, 172_800, "buy"), (1, 4, 200_000, "like"),
    (1, 5, 300_000, "like"), (1, 6, 400_000, "like"),
    (2, 1, 10, "view"), (2, 3, 20, "buy"), (2, 5, 30, "like"), (2, 6, 40, "like"),
]  # fmt: skip


def test_examples_carry_weights_to_the_loss():
    data = built(WEIGHTED, split="leave_one_out")
    assert data.train_weights.tolist() == [1.0, 0.25, 2.0, 1.0, 0.25, 2.0]

    def batch(examples):
        return examples.gather(np.arange(examples.size))

    found = batch(user_examples(data, history=4, decay=1e9, user_power=1.0))
    assert np.allclose(found["target_weights"][0, 0], np.array([1.0, 0.25, 2.0, 1.0]) / 4.25)
    assert np.allclose(found["weights"][:, 0], np.array([4.25, 2.25]) / 3.25)
    found = batch(sequence_examples(data, history=4, example_kind="all"))
    assert found["weights"].tolist() == [[0.0, 0.25, 2.0, 1.0], [0.0, 0.0, 0.0, 2.0]]
    found = batch(sequence_examples(data, history=4, example_kind="last"))
    assert found["weights"].tolist() == [[1.0], [2.0]]
    times = np.array([86_400, 200_001])
    found = batch(snapshot_examples(data, times, history=2, max_targets=4, user_power=1.0))
    assert np.allclose(found["target_weights"][0, 0], np.array([0.25, 2.0, 1.0, 0]) / 3.25)
    assert found["weights"].tolist() == [[3.25]]


def test_the_reading_says_what_became_of_each_type(tmp_path):
    log = ("u,i,t,what\n1,1,1,view\n1,1,2,like\n1,2,3,like\n1,2,4,unlike\n1,3,5,hate\n1,4,6,like\n"
           "1,5,7,like\n1,6,8,login\n")  # fmt: skip
    (tmp_path / "log.csv").write_text(log)
    names = {"user": "u", "item": "i", "timestamp": "t", "event": "what"}
    raw = readers.read("files", {"path": str(tmp_path / "log.csv"), "columns": names})
    data = dataset.build(raw, split="leave_one_out", events=SHOP, missing_text="id")
    assert data.notes == (
        "events: view (0.25): 1, 0 kept, 1 merged, 0 taken back; like (1): 4, 3 kept, 0 merged, 1"
        " taken back; buy (2): 0, 0 kept, 0 merged, 0 taken back; unlike (0): 1, takes back; hate"
        " (-1): 1, 1 pairs disliked",
    )
    (line, _) = summary.lines(data)
    assert "(1 left out events, 1 repeated, 3 taken back)" in line
    message = refused(
        lambda: dataset.build(raw, events="view=1, likes=1"),
        "'like' (4)", "'unlike' (1)", "'login' (1)", "did you mean 'likes'", "data.events",
    )  # fmt: skip
    assert "'view'" not in message
    refused(lambda: dataset.build(raw), "'like' (4)", "data.events")
    plain = raw_of([(1, 1, 1)], ("user", "item", "timestamp"))
    refused(lambda: dataset.build(plain, events=SHOP), "data.files.columns.event")


@pytest.mark.parametrize("text", ["view", "view=x", "=1", "view=1, view=2", "view=nan", "view=0"])
def test_weights_that_cannot_be_read_are_refused(text):
    refused(lambda: dataset.DatasetOptions(events=text), f"data.events={text!r}")


def test_weights_are_read_from_text():
    assert events.parse(SHOP) == {**WEIGHTS, "login": None}
    assert events.parse("add to cart=2,a=b=1,") == {"add to cart": 2.0, "a=b": 1.0}


def test_events_that_leave_no_choice_are_refused_with_a_fix():
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 1], "timestamp": [1, 2], "event": ["a", "a"]})
    raw = RawData("log", frame, pl.DataFrame({"item": [1], "title": ["x"]}))
    refused(
        lambda: dataset.build(raw, split="leave_one_out", events="a=-1, b=1"),
        "none of 2 interactions is left after data.events; raise a weight",
    )
