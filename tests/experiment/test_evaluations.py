"""Evaluations that are kept: what is asked for again is not evaluated again."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from helpers import runs
from kd_jax.evaluation.tasks import Evaluation
from kd_jax.experiment import evaluate as stage
from kd_jax.experiment.evaluations import Evaluations

STAGES = ("data", "student", "evaluate")


def of(tmp_path, **fields):
    c = {"task": "rank", "data": {}, "mesh": {}, "rate": {"boundaries": (3.5,)}}
    c["eval"] = {"ks": (10,), "select": "", "lists": ()} | fields
    data = SimpleNamespace(checksum="abc", impressions=None)
    experiment = SimpleNamespace(config=ConfigDict(c), dataset=data, workdir=tmp_path)
    return Evaluations(experiment, ("ndcg@10", "ndcg@10/warm"))


class Once:
    """An evaluation that counts how often it is made."""

    def __init__(self):
        self.made = 0
        values = {"ndcg@10": np.float32([0.5, np.nan]), "ndcg@10/warm": np.float32([1, 0])}
        values["mrr"] = np.float32([1, 1])
        counts = {"users": 2, "targets": 3}
        test = Evaluation({"ndcg@10": 0.1}, {"warm": {"ndcg@10": np.float32(0.3)}}, values, counts)
        self.found = {"name": "student", "seed": 0, "rate": float("nan")}, {"test": test}

    def __call__(self):
        self.made += 1
        return self.found


def test_what_is_kept_equals_what_was_evaluated(tmp_path):
    once = Once()
    of(tmp_path).kept(["student", 0], once)
    row, found = of(tmp_path, lists=("other.jsonl",)).kept(["student", 0], once)
    assert once.made == 1
    assert row["name"] == "student" and row["seed"] == 0 and np.isnan(row["rate"])
    (want,) = once.found[1].values()
    assert (found["test"].metrics, found["test"].counts) == (want.metrics, want.counts)
    assert found["test"].slices["warm"]["ndcg@10"] == pytest.approx(0.3)
    assert found["test"].per_user.keys() == {"ndcg@10", "ndcg@10/warm"}  # what is compared
    for name, values in found["test"].per_user.items():
        np.testing.assert_array_equal(values, want.per_user[name])


def test_another_key_or_other_settings_are_evaluated(tmp_path):
    once = Once()
    of(tmp_path).kept("student", once)
    of(tmp_path).kept("teacher", once)
    of(tmp_path, ks=(20,)).kept("student", once)
    assert once.made == 3


def test_a_damaged_file_is_made_again_and_one_of_other_settings_deleted(tmp_path):
    once, evaluations = Once(), of(tmp_path)
    evaluations.kept("student", once)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    evaluations.kept("student", once)
    assert once.made == 2
    evaluations.prune()
    assert path.exists()
    of(tmp_path, ks=(20,)).prune()
    assert not path.exists()


def test_a_model_is_evaluated_again_where_something_changed(world, tmp_path, monkeypatch):
    made = []
    plain = stage._evaluated
    monkeypatch.setattr(stage, "_evaluated", lambda *key: made.append(key) or plain(*key))
    runs.run(runs.config(world, stages=STAGES), tmp_path)
    first = runs.metrics_of(tmp_path)["models"]
    assert len(made) == 1
    runs.run(runs.config(world, stages=STAGES, **{"eval.bootstrap": 50}), tmp_path)
    assert len(made) == 1 and runs.metrics_of(tmp_path)["models"] == first
    runs.run(runs.config(world, stages=STAGES, **{"export.new_items": 0.2}), tmp_path)
    assert len(made) == 2  # the exported student's served metrics depend on it
    runs.run(runs.config(world, stages=STAGES, **{"eval.ks": (10, 30)}), tmp_path)
    assert len(made) == 3 and "ndcg@30" in runs.metrics_of(tmp_path)["models"][-1]["test"]
    kept = len(list((tmp_path / "cache/evaluations").glob("*")))
    assert kept == len(first)


def test_new_users_of_a_student_of_histories_are_known_users(world, tmp_path):
    fields = {"student.name": "sasrec", "student.sasrec.dim": 8, "student.sasrec.history": 4}
    runs.run(runs.config(world, stages=STAGES, **fields), tmp_path)
    (row,) = (row for row in runs.metrics_of(tmp_path)["models"] if row["name"] == "student")
    (found,) = row["new_users"].values()
    assert found.keys() == {"1", "3", "10", "all"}
    known = row["test"]["ndcg@10"]
    assert found["all"] == known and found["10"] == pytest.approx(known, abs=1e-6)  # reads 4 items
    assert found["1"] != pytest.approx(known, abs=1e-6)
