"""The benchmark of methods: selection on validation, and what it says of unfinished work."""

import argparse
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from benchmarks import distillation
from kd_jax.distillation.term import of_section
from kd_jax.losses import LOSSES


def write(folder, valid, test, seeds=(0,)):
    models = [
        {
            "name": "distilled",
            "seed": seed,
            "valid": {"ndcg@10": valid},
            "test": {"ndcg@10": test},
            "train_seconds": 2.0,
        }
        for seed in seeds
    ]
    gain = {"ndcg@10": {"relative": 0.1, "ci95": [0.05, 0.15]}}
    (folder / "report").mkdir(parents=True)
    (folder / "report/metrics.json").write_text(json.dumps({"models": models, "gain": gain}))
    (folder / "distilled").mkdir()
    (folder / "distilled/result.json").write_text(json.dumps({"best_score": valid}))


def test_the_weight_is_chosen_on_validation(tmp_path):
    options = argparse.Namespace(out=tmp_path, weights=[1.0, 3.0], report=True, metric="ndcg@10")
    write(tmp_path / "kl.teacher.1", valid=0.2, test=0.1)
    assert distillation.best("kl", "teacher", options, [], [0])["missing"] == "1 trials"
    write(tmp_path / "kl.teacher.3", valid=0.1, test=0.9)
    row = distillation.best("kl", "teacher", options, [], [0])
    assert (row["weight"], row["test"]) == (1.0, [0.1])
    assert distillation.line(row)[-2] == "+10.0 % (+5.0 to +15.0)"
    missing = distillation.best("kl", "teacher", options, [], [0, 1])
    assert missing["missing"] == "1 seeds" and "missing: 1 seeds" in distillation.line(missing)


def test_a_gain_that_was_not_computed_is_a_dash():
    row = {"method": "kl", "teacher": "teacher", "weight": 1.0, "valid": [0.1], "test": [0.1]}
    row |= {"gain": None, "ci95": [None, 0.1], "seconds": [1.0]}
    assert distillation.line(row)[-2] == "– % (– to +10.0)"


@pytest.mark.parametrize("method", distillation.METHODS)
def test_every_method_is_a_term_that_the_configuration_accepts(method, tmp_path):
    clicks = {"loss": "ce", "items": "warm"}
    (tmp_path / "config.json").write_text(json.dumps({"student": {"clicks": clicks}}))
    flags = [
        flag.partition("=") for flag in distillation.Trial(method, "teacher", 2).flags(tmp_path)
    ]
    prefix = "--config.distill.terms.method."
    section = {name.removeprefix(prefix): value for name, _, value in flags if prefix in name}
    section["weight"] = float(section["weight"])
    term = of_section("method", ConfigDict(section))
    assert isinstance(term.loss, LOSSES[method]) and term.items == "warm"


def test_a_teacher_may_be_a_model_of_another_workdir(tmp_path):
    clicks = {"loss": "ce", "items": "warm"}
    (tmp_path / "config.json").write_text(json.dumps({"student": {"clicks": clicks}}))

    def path(teacher):
        (flag,) = (
            flag
            for flag in distillation.Trial("kl", teacher, 1).flags(tmp_path)
            if "sources.base.path=" in flag
        )
        return flag.partition("=")[2]

    assert path("teacher") == str(tmp_path / "teacher")
    assert path("/runs/wide/student") == "/runs/wide/student"
    assert path("runs/wide/student") == str(Path("runs/wide/student").absolute())
    assert distillation.Trial("kl", "runs/wide/student", 0.3).name == "kl.student.0.3"


@pytest.mark.parametrize(("select", "metric"), [("recall@50", "recall@50"), ("", "ndcg@10")])
def test_the_metric_is_the_one_that_selects_models(tmp_path, select, metric):
    c = {"task": "rank", "eval": {"select": select}}
    (tmp_path / "config.json").write_text(json.dumps(c))
    assert distillation.metric_of(tmp_path) == metric
