"""Inputs that went wrong once, where they are at hand; test_sources.py has some of each kind."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.data import summary
from kd_jax.data.dataset import build
from kd_jax.data.readers import files
from kd_jax.evaluation.tasks import Rate

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")


def read(case, name, items="items.csv", split="leave_one_out", columns=None, **options):
    folder = CASES / case
    raw = files.read(
        folder / name, items_path=folder / items if items else "", columns=columns or {}
    )
    return build(raw, split=split, **options)


def size(data):
    return data.num_users, len(data.user)


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    assert size(read("bracket-path", "ratings[1].csv")) == (24, 192)
    folder = tmp_path / "[2024] export"
    shutil.copytree(CASES / "bracket-path", folder)
    (folder / "ratings1.csv").unlink()
    raw = files.read(folder / "ratings[1].csv", items_path=folder / "items.csv")
    assert size(build(raw, split="leave_one_out")) == (24, 192)
    pl.read_csv(folder / "items.csv", glob=False).write_parquet(folder / "items[1].parquet")
    raw = files.read(folder / "ratings[1].csv", items_path=folder / "items[1].parquet")
    assert size(build(raw, split="leave_one_out")) == (24, 192)


def test_dislikes_are_named():
    (line,) = (
        line for line in summary.warnings(read("dislikes", "signs.csv"), True) if "rating" in line
    )
    assert "rating of 0 or less" in line and "data.min_rating" in line


def test_a_bad_first_time_is_one_row():
    data = read("first-timestamp-bad", "inter.csv", max_malformed=0.05)
    assert data.counts["malformed"] == 1 and len(data.user) == 191
    refused(lambda: read("first-timestamp-bad", "inter.csv"), "NaT", "1 of 192 rows")


def test_atomic_files_and_json_lines():
    columns = {"user": "user_id", "item": "item_id", "item_id": "item_id"}
    assert size(read("inter-and-jsonl", "data.inter", "items.item", columns=columns)) == (24, 192)
    assert size(read("inter-and-jsonl", "data.inter", "items.item")) == (24, 192)
    columns = {"user": "user_id", "item": "parent_asin", "item_id": "parent_asin"}
    data = read("inter-and-jsonl", "inter.jsonl", "items.jsonl", columns=columns)
    assert size(data) == (24, 192)


def test_milliseconds_are_seconds():
    ms, s = read("milliseconds", "ms.csv"), read("milliseconds", "s.csv")
    assert (ms.timestamp // ms.day == s.timestamp // s.day).all()


@pytest.mark.parametrize("name", ["listlist", "liststruct"])
def test_nested_columns(name):
    items = f"{name}.parquet"
    data = read("nested-item-columns", "inter.csv", items, text_columns=["title"])
    assert data.items.columns == ["title"]
    refused(
        lambda: read("nested-item-columns", "inter.csv", items),
        "column",
        "List(",
        "data.text_columns",
    )


@pytest.mark.parametrize(("name", "what"), [("utf16.csv", "UTF-16"), ("parquet.csv", "Parquet")])
def test_files_that_are_something_else(name, what):
    assert refused(lambda: read("not-what-its-ending-says", name), what).isprintable()


@pytest.mark.parametrize("items", ["items.csv", "items_unnamed.csv"])
def test_the_index_of_pandas_is_no_text(items):
    data = read("pandas-index", "inter.csv", items)
    assert all(title.startswith("Title") for title in data.titles)


@pytest.mark.parametrize(("boundary", "upper"), [(3.6, 128), (4.2, 64), (2.6, 192)])
def test_a_rating_at_the_boundary_is_above_it(boundary, upper):
    data = read("rate-boundary", "inter.csv")
    boundaries = np.asarray([boundary], np.float32)
    assert int((data.rating >= boundaries[0]).sum()) == upper
    if upper < 192:
        assert int(Rate(data, (boundary,), "accuracy").classes.sum()) == upper


@pytest.mark.parametrize("name", ["inter.parquet", "plain"])
def test_a_folder_of_spark(name):
    assert size(read("spark-folder", name)) == (24, 192)


def test_times_within_a_second():
    for name in ("text.csv", "float.csv"):
        data = read("subsecond-order", name)
        rows = data.user == data.user_ids.to_list().index(100)
        ids = data.item_ids.gather(data.item[rows]).to_list()
        assert ids == [23, 16, 22, 24, 10, 14, 18, 17]


def test_stray_quotes_of_a_tsv():
    assert size(read("tsv-stray-quotes", "inter.tsv", missing_text="id")) == (24, 192)


def test_unsigned_ids():
    data = read("uint64-ids", "inter.parquet")
    assert data.num_users == 24
    assert "9223372036855567708" in data.user_ids.cast(pl.String).to_list()


def test_users_that_cannot_be_judged():
    data = read("unjudged-test-users", "inter.csv", split="column")
    assert summary.unjudged(data)[2] == (12, 96)


@pytest.mark.parametrize("name", ["utc", "offset", "mixed-offsets"])
def test_zones(name):
    zoned, plain = read("zoned-timestamps", f"{name}.csv"), read("zoned-timestamps", "seconds.csv")
    assert (zoned.timestamp == plain.timestamp).all() and zoned.checksum == plain.checksum
