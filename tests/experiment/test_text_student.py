"""A student that reads item texts, through a whole run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import kd_jax
from configs import csv
from helpers import text_student
from helpers.runs import ROOT, config, metrics_of, run
from helpers.toy import refused
from kd_jax.experiment import overrides, pipeline
from kd_jax.models.students import STUDENTS
from kd_jax.models.students.base import ITEM_TEXT
from kd_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

NAME = {"student.name": text_student.NAME}
INPUT = f"input.{ITEM_TEXT}"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(STUDENTS, text_student.NAME, text_student.LinearText)


def params_of(workdir, role):
    step = json.loads((workdir / role / "result.json").read_text())["best_step"]
    return Checkpoints(workdir / role).plain(step)["params"]


def test_it_is_trained_and_exported_and_the_control_reads_no_text(world, tmp_path):
    workdir = tmp_path / "run"
    run(config(world, **NAME), workdir)
    rows = {row["name"]: row["test"] for row in metrics_of(workdir)["models"]}
    assert {"student", "control", "distilled"} <= rows.keys()
    for role, names in (
        ("student", {"user", "bias", "map"}),
        ("distilled", {"user", "bias", "map"}),
        ("control", {"user", "bias", "item"}),
    ):
        assert params_of(workdir, role).keys() == names, role
    tensors = load_file(workdir / "export/student.safetensors")
    assert tensors.keys() == {"user", "bias", "map.kernel", INPUT}
    assert tensors[INPUT].shape[0] == 24 and tensors[INPUT].dtype == np.float32
    # Nothing but dataset/ and export/ is needed to serve it.
    for name in ("config.json", "manifest.json"):
        (workdir / name).unlink()
    found = kd_jax.load(workdir).recommend(user=107, k=5)
    assert found.height == 5
    assert kd_jax.load(workdir).recommend(history=found["item"].to_list()[:2], k=3).height == 3


def test_other_texts_are_another_student(world, tmp_path, capsys):
    stages = {"stages": ("data", "student"), "student.optimizer.steps": 10}
    run(config(world, **NAME, **stages), tmp_path / "run")
    capsys.readouterr()
    run(config(world, **NAME, **stages), tmp_path / "run")
    assert "student (seed 0): up to date" in capsys.readouterr().out
    changed = config(world, **NAME, **stages, **{"teacher.lm.template": "{title}"})
    assert pipeline.main(changed, tmp_path / "run") == 2
    assert "template" in capsys.readouterr().err


def test_a_section_that_no_config_lists_is_made_from_the_spec():
    c = csv.get_config("teacher")
    c.lock()
    argv = ["launch.py", "--config.student.linear_text.dim=4", "--config.seeds=(1,)"]
    rest, given = overrides.take_out(argv)
    assert rest == ["launch.py", "--config.seeds=(1,)"]
    overrides.apply(c, given)
    assert c.student.linear_text.dim == 4 and c.student.linear_text.decay == 3.0
    for argument, message in (
        ("student.linear_text.dmi=4", "did you mean 'dim'"),
        ("student.linear_test.dim=4", "did you mean 'linear_text'"),
        ("student.linear_text.dim=x", "give another int"),
        ("data.moviolens.path=x", "did you mean 'movielens'"),
        ("export.vectorz.x=1", "did you mean 'vectors'"),
    ):
        _, given = overrides.take_out([f"--config.{argument}"])
        refused(lambda given=given: overrides.apply(c, given), f"--config.{argument}", message)


def test_a_wrong_command_line_is_refused_without_waiting_for_jax():
    code = (
        "import sys, launch\n"
        "try:\n"
        "    launch.parse(['launch.py', '--config.student.mf.dmi=3'])\n"
        "except SystemExit:\n"
        "    sys.exit('jax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "did you mean 'dim'" in done.stderr, done


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {**NAME, "student.clicks.items": "sampled"},
            "student.clicks.items='sampled' gathers rows of an item table",
        ),
        (
            {"teacher.clicks.items": "sampled_warm"},
            "teacher.clicks.items='sampled_warm' gathers rows of an item table",
        ),
    ],
)
def test_a_sample_of_the_catalogue_is_refused_without_an_item_table(
    world, tmp_path, capsys, fields, message
):
    c = config(world, **{"distill.negatives": 8, "distill.top": 2} | fields)
    assert pipeline.main(c, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run/teacher").exists()


def test_an_input_that_nobody_provides_is_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text_student.LinearText, "inputs", ("item_image",))
    assert pipeline.main(config(world, **NAME), tmp_path / "run") == 2
    assert "'item_image'" in capsys.readouterr().err
