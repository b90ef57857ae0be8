"""Runs on prepared data, from shards, and what they refuse."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from helpers.runs import config, metrics_of, run
from helpers.toy import refused
from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.data.prepared import streaming
from kd_jax.data.prepared.options import PrepareOptions
from kd_jax.evaluation import evaluator
from kd_jax.experiment import pipeline
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.trained import open_workdir


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """The toy data, prepared."""
    out = tmp_path_factory.mktemp("prepared")
    rows = pl.read_csv(world / "interactions.csv")
    items = pl.read_csv(world / "items.csv")
    rows.rename({"user_id": "user", "item_id": "item"}, strict=False).write_parquet(
        out / "r.parquet"
    )
    items.rename({"item_id": "item"}, strict=False).write_parquet(out / "i.parquet")
    plain = config(world).data
    options = PrepareOptions(
        interactions=str(out / "r.parquet"),
        items=str(out / "i.parquet"),
        rating="rating" if "rating" in rows.columns else "",
        split=plain.split,
        min_interactions=plain.min_interactions,
        min_item_interactions=plain.min_item_interactions,
        shards=4,
    )
    streaming.prepare(options, out / "out", note=lambda _: None)
    return out / "out"


def prepared(world, folder, **fields):
    return config(
        world,
        **{"data.reader": "prepared", "data.prepared": {"path": str(folder)}} | fields,
    )


def test_rankings_are_evaluated_to_the_digit(world, folder, tmp_path):
    with Log(tmp_path / "log.jsonl", "ndcg@10", silent=True) as log:
        one = Experiment(prepared(world, folder), tmp_path / "one", log)
        two = Experiment(config(world), tmp_path / "two", log)
        found, want = (each.dataset for each in (one, two))
        assert found.user_ids.equals(want.user_ids) and found.items.equals(want.items)
        np.testing.assert_array_equal(found.split, want.split)
        for split in ("valid", "test"):
            mine, theirs = (each.task.baseline(split) for each in (one, two))
            assert mine.metrics == theirs.metrics and mine.slices == theirs.slices
        assert [score for _, score in one.task.trending()[1].items()][0].metrics == (
            [score for _, score in two.task.trending()[1].items()][0].metrics
        )
        again = Experiment(prepared(world, folder), tmp_path / "one", log)
        assert again.dataset.checksum == found.checksum
        other = prepared(world, folder, **{"data.split": "temporal"})
        with pytest.raises(InputError, match="data.split='temporal', but .* was prepared with"):
            _ = Experiment(other, tmp_path / "three", log).dataset
    assert dataclasses.is_dataclass(found) and evaluator.eval_users(found, 2).size


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["cached", "online"])
def test_students_learn_from_shards(world, folder, tmp_path, labels):
    fields = {
        "student.name": "mf" if labels == "cached" else "sasrec",
        "teacher.popularity.enabled": False,
        "distill.labels": labels,
        "stages": ("data", "teacher", "labels", "student", "distilled", "evaluate"),
        "data.prepared": {"path": str(folder), "eval_users": 15},
    }
    run(prepared(world, folder, **fields), tmp_path / "run")
    rows = {row["name"]: row for row in metrics_of(tmp_path / "run")["models"]}
    assert rows.keys() >= {"student", "distilled", "teacher"}
    saved = (tmp_path / "run/student/checkpoints").iterdir()
    assert len(list(saved)) > 0
    with Log(tmp_path / "log", "", silent=True) as log:
        refused(lambda: open_workdir(tmp_path / "run", log), "trained from prepared data")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ("data", "export")}, "stages with 'export' needs the interactions of all"),
        ({"task": "rate"}, "task='rate' reads ratings from memory"),
        ({"data.max_users": 3}, "data.max_users=3 is not supported by data.reader='prepared'"),
    ],
)
def test_what_shards_do_not_support_is_refused(world, folder, tmp_path, capsys, fields, message):
    given = {"data.prepared": {"path": str(folder), "eval_users": 9}} | fields
    c = prepared(world, folder, **{"stages": ("data",)} | given)
    assert pipeline.main(c, tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert json.dumps(c.to_dict())
