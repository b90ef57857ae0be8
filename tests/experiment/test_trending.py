"""The baseline of recent popularity, wherever the timestamps are dates."""

import json

import numpy as np
import polars as pl
import pytest

from helpers import toy
from helpers.runs import config, metrics_of, run
from kd_jax.data import dataset as datasets
from kd_jax.data.raw import RawData
from kd_jax.data.statistics import dated

DAY = 24 * 3600
STAGES = ("data", "student", "evaluate", "export", "report")
START = 1_600_000_000


def changing(path):
    """interactions.csv of 30 users; the eight items that they choose from change over time."""
    rng = np.random.default_rng(0)
    rows = [
        (user, 500 + day // 4 + int(rng.integers(8)), START + day * DAY + user)
        for user in range(30)
        for day in rng.choice(40, 12, replace=False)
    ]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(path)


@pytest.mark.parametrize("split", ["temporal", "leave_one_out"])
def test_every_config_has_it(world, tmp_path, split):
    path = tmp_path / "interactions.csv"
    changing(path)
    fields = {"data.files.path": str(path), "data.split": split, "stages": STAGES}
    c = config(world, **fields)
    assert not c.teacher.popularity.enabled
    run(c, tmp_path / "run")
    found = metrics_of(tmp_path / "run")
    row = next(row for row in found["models"] if row["name"] == "trending")
    popular = next(row for row in found["models"] if row["name"] == "popularity")
    assert row["days"] in (1, 3, 7, 21, 60)
    if split == "temporal":
        assert row["test"]["ndcg@10"] > popular["test"]["ndcg@10"]

    # The list that is shown holds the best of the train rows in the workdir.
    rows = pl.read_parquet(tmp_path / "run/dataset/interactions.parquet")
    items = pl.read_parquet(tmp_path / "run/dataset/items.parquet")["text_title"].to_list()
    train = rows.filter(pl.col("split") == 0)
    age = (train["timestamp"].max() - pl.col("timestamp")) / DAY
    worth = train.group_by("item").agg((-age / row["days"]).exp().sum().alias("worth"))
    best = [items[item] for item in worth.sort("worth", descending=True)["item"]]
    for user in json.loads((tmp_path / "run/report/lists.json").read_text())["users"]:
        seen = rows.filter((pl.col("user") == int(user["user"])) & (pl.col("split") < 2))["item"]
        known = {items[item] for item in seen}
        expected = [title for title in best if title not in known][:5]
        assert user["lists"]["trending"][: len(expected)] == expected
        assert user["lists"]["popularity"] != user["lists"]["trending"]


def test_row_numbers_and_small_numbers_are_no_dates():
    world = toy.raw()
    assert not dated(datasets.build(world, split="temporal"))  # hours or so since nothing
    dates = world.interactions.with_columns(pl.col("timestamp") + START)
    assert dated(datasets.build(RawData("toy", dates, world.items), split="temporal"))
    without = RawData("toy", world.interactions.drop("timestamp"), world.items)
    assert not dated(datasets.build(without, split="leave_one_out"))
