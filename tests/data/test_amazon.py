"""Amazon Reviews 2023: raw files, ratings and published splits are the same data."""

import gzip
import json
import shutil

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.data import readers
from kd_jax.data.dataset import build
from kd_jax.data.readers import sources
from kd_jax.data.synthetic import amazon

META = "meta_All_Beauty.jsonl.gz"
CORE = {"min_user_interactions": 5, "min_item_interactions": 5, "missing_text": "id"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small category; its 5-core and splits are made by the generator, not by kd_jax.data."""
    folder = tmp_path_factory.mktemp("amazon")
    amazon.write(folder, users=80, items=60)
    return folder


def read(folder, **section):
    return readers.read("amazon", {"path": str(folder)} | section)


def same(one, other):
    assert one.user_ids.equals(other.user_ids) and one.item_ids.equals(other.item_ids)
    for name in ("user", "item", "rating", "timestamp", "split"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_leave_one_out_of_the_5_core_is_the_published_split(files):
    raw = read(files)
    assert "split" not in raw.interactions.columns and raw.name == "All_Beauty"
    ours = build(raw, split="leave_one_out", **CORE)
    assert ours.counts["repeated"] > 0 and ours.counts["below_min_interactions"] > 0
    assert ours.time_unit == "ms"
    for name in ("last_out", "last_out_w_his"):
        published = read(files / "5core" / name, items_path=str(files / META))
        assert set(published.interactions["split"]) == {"train", "valid", "test"}
        same(ours, build(published, split="column", missing_text="id", min_item_interactions=1))
        same(ours, build(published, split="leave_one_out", **CORE))


def test_ratings_alone(files):
    ours = build(read(files), split="leave_one_out", **CORE)
    ratings = read(files / "5core/rating_only", items_path=str(files / META))
    same(ours, build(ratings, split="leave_one_out", **CORE))


def test_any_file_of_a_split_stands_for_all_and_may_have_no_header(files, tmp_path):
    whole = read(files / "5core/last_out", items_path=str(files / META))
    one = files / "5core/last_out/All_Beauty.valid.csv.gz"
    assert read(one, items_path=str(files / META)).interactions.equals(whole.interactions)
    for path in one.parent.iterdir():  # as the published scripts write them
        text = gzip.decompress(path.read_bytes()).decode().partition("\n")[2]
        (tmp_path / path.name.removesuffix(".gz")).write_text(text)
    shutil.copy(files / META, tmp_path)
    assert read(tmp_path).interactions.equals(whole.interactions)


def test_texts_of_products(files):
    lines = gzip.decompress((files / META).read_bytes()).decode().splitlines()
    first = json.loads(lines[0])
    items = read(files).items
    assert items.height == len(lines)
    assert items.columns == [
        "item",
        "title",
        "store",
        "main_category",
        "categories",
        "features",
        "description",
    ]
    row = items.row(0, named=True)
    assert row["item"] == first["parent_asin"] and row["title"] == first["title"]
    assert row["categories"] == ", ".join(first["categories"])
    assert row["store"] == (first["store"] or "")
    bought = read(files).interactions["item"].unique()
    assert (~bought.is_in(items["item"].implode())).any()  # some products have no metadata


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


REVIEW = {"user_id": "U", "parent_asin": "P1", "asin": "P1x", "rating": 5.0, "timestamp": 10**12}
PRODUCT = {"parent_asin": "P1", "title": "One", "price": 3.5, "details": {"Brand": "B"}}


def test_fields_that_are_not_read_may_hold_anything(tmp_path):
    lines(tmp_path / "Toys.jsonl", [REVIEW, REVIEW | {"images": [{"x": 1}], "helpful_vote": "0"}])
    other = {"parent_asin": "P2", "title": None, "price": "from 3", "details": {"Rank": {"a": 1}}}
    lines(tmp_path / "meta_Toys.jsonl", [PRODUCT, other, PRODUCT | {"title": "Again"}])
    raw = read(tmp_path)
    assert raw.counts == {"rows": 2, "malformed": 0}
    assert raw.items.select("item", "title").rows() == [("P1", "One"), ("P2", "")]
    assert raw.notes[-1].endswith("1 products are listed again; their first row counts")
    with (tmp_path / "Toys.jsonl").open("a") as file:
        file.write('{"user_id": \n')
    broken = read(tmp_path)
    assert broken.counts == {"rows": 3, "malformed": 1}
    assert broken.problems[0].startswith(f"{tmp_path}/Toys.jsonl:3: no JSON object")


def test_bad_folders(files, tmp_path):
    refused(lambda: readers.read("amazon"), "needs data.amazon.path")
    path = tmp_path / "All_Beauty.jsonl.gz"
    shutil.copy(files / path.name, path)
    refused(lambda: read(tmp_path), "has no meta_All_Beauty.jsonl", "data.amazon.items_path")
    shutil.copy(files / META, tmp_path)
    shutil.copy(path, tmp_path / "Toys.jsonl.gz")
    refused(lambda: read(tmp_path), "has reviews of 2 categories or kinds", "data.amazon.path")
    assert read(path).interactions.height == read(files).interactions.height
    refused(lambda: read(files / "5core"), "reviews of 0 categories or kinds (none)")


def test_a_split_without_one_of_its_files(files, tmp_path):
    for part in ("train", "test"):
        shutil.copy(files / f"5core/last_out/All_Beauty.{part}.csv.gz", tmp_path)
    refused(lambda: read(tmp_path), "All_Beauty.valid.csv.gz: no such file", "data.amazon.path")


def test_reviews_of_an_earlier_edition_are_told(tmp_path):
    lines(tmp_path / "Toys.jsonl", [{"reviewerID": "U", "asin": "P", "overall": 5.0}])
    lines(tmp_path / "meta_Toys.jsonl", [PRODUCT])
    refused(lambda: read(tmp_path), "no column 'user_id' for user", "Amazon Reviews 2023")


def test_malformed_reviews_are_counted_in_every_file_of_a_split(files, tmp_path):
    for path in (files / "5core/last_out").iterdir():
        text = gzip.decompress(path.read_bytes()).decode()
        text += "U1,,5.0,1600000000000\n" if ".test." in path.name else ""
        (tmp_path / path.name.removesuffix(".gz")).write_text(text)
    raw = read(tmp_path, items_path=str(files / META))
    assert raw.counts["malformed"] == 1 and "All_Beauty.test.csv:" in raw.problems[0]
    assert raw.interactions.schema["split"] == pl.String


def test_a_column_that_begins_late_is_kept(tmp_path):
    path = tmp_path / "meta.jsonl"
    rows = [{"a": str(n)} | ({"late": "x"} if n > 150 else {}) for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    style = sources.Style(schema={"a": pl.String(), "late": pl.String(), "never": pl.String()})
    table = sources.opened(path, lambda table: table, what="items", field="f", style=style)
    assert list(table.columns()) == ["a", "late"]
    assert table.rows.collect()["late"].count() == 49
