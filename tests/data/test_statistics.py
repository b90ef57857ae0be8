"""The numbers that describe a data set, against closed forms and direct counts."""

import json

import numpy as np
import polars as pl
import pytest

from helpers import toy
from kd_jax.data import dataset as datasets
from kd_jax.data.raw import RawData
from kd_jax.data.splits import TEST
from kd_jax.data.statistics import histogram, over_time, popularity, statistics, text_lengths

DAY = 86_400
START = 1_600_000_000


def timed(times, split="temporal", **options):
    """Ten users, whose interactions have the given times in turn."""
    rows = len(times)
    frame = pl.DataFrame(
        {
            "user": np.arange(rows) % 10,
            "item": np.arange(rows) // 10,
            "timestamp": times,
        }
    )
    items = pl.DataFrame({"item": np.arange(-(-rows // 10)), "title": "a film"})
    return datasets.build(RawData("timed", frame, items), split=split, **options)


def test_every_size_is_in_its_bin():
    sizes = np.array([0, 1, 1, 2, 3, 3, 4, 7, 8, 31])
    found = histogram(sizes)
    assert found["from"] == [0, 1, 2, 4, 8, 16]
    assert found["count"] == [1, 2, 3, 2, 1, 1]
    assert (found["median"], found["largest"]) == (3.0, 31)


def test_no_sizes_are_an_empty_bin():
    assert histogram(np.zeros(0, np.int64))["count"] == [0]


def test_popularity_has_the_counts_at_its_ranks():
    data = toy.dataset()
    found = popularity(data)
    counts = sorted(data.item_counts.tolist(), reverse=True)
    assert found["interactions"] == [counts[rank - 1] for rank in found["rank"]]
    assert (found["rank"][0], found["rank"][-1]) == (1, len(counts))
    assert found["top"]["0.1"] == pytest.approx(sum(counts[:3]) / sum(counts))  # of 24 items


@pytest.mark.parametrize("unit", ("s", "ms"))
def test_interactions_over_time_are_counted_once_and_cut_where_train_ends(unit):
    times = START + np.arange(100) * DAY
    size = {"s": 1, "ms": 1000}[unit]
    data = timed(times * size + (size > 1))
    found = over_time(data)
    assert {name: sum(counts) for name, counts in found["splits"].items()} == {
        "train": 80,
        "valid": 10,
        "test": 10,
    }
    assert found["cuts"] == pytest.approx([START + 79 * DAY, START + 89 * DAY], abs=1)
    assert found["edges"][0] == pytest.approx(START, abs=1)
    assert found["edges"][-1] == pytest.approx(START + 99 * DAY, abs=1)


def test_a_split_by_user_has_no_cut():
    times = START + np.random.default_rng(0).permutation(100) * DAY
    assert over_time(timed(times, "leave_one_out"))["cuts"] == []


def test_one_time_for_all_rows_has_no_course():
    assert over_time(timed(np.full(100, START), "leave_one_out")) is None


def test_the_numbers_of_a_data_set_are_json_and_those_of_a_direct_count():
    data = toy.dataset()
    found = statistics(data)
    assert json.loads(json.dumps(found)) == found
    before = np.diff(data.history(TEST)[0])
    assert sum(found["history"]["count"]) == data.num_users
    assert found["history"]["largest"] == before.max()
    warm = set(data.item[data.split == 0].tolist())
    test = data.item[data.split == TEST].tolist()
    assert found["cold"]["test"] == pytest.approx(sum(i not in warm for i in test) / len(test))
    assert found["cold"]["items"] == pytest.approx(1 - len(warm) / data.num_items)


def test_texts_are_in_bins_of_one_width():
    lengths = np.concatenate([np.full(3, 1), np.full(2, 3), np.full(5, 100)])
    found = text_lengths(lengths, 100)
    assert found["width"] == 3
    assert (found["from"][:2], found["count"][:2]) == ([1, 4], [5, 0])
    assert (sum(found["count"]), found["full"], found["most"]) == (10, 5, 100)
