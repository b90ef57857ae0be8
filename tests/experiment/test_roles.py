"""The table of roles: a further row is trained, labelled, evaluated, shown and exported."""

import dataclasses
import json
from pathlib import Path

import pytest

import kd_jax
from helpers.runs import config, metrics_of, run
from kd_jax.evaluation.baselines import BASELINES as BASELINES_OF_CLICKS
from kd_jax.experiment import roles
from kd_jax.experiment.config import settings_of
from kd_jax.experiment.roles import ROLES, Kind, Role
from kd_jax.report.legend import Appearance

pytestmark = pytest.mark.slow


@pytest.fixture
def further(monkeypatch):
    """A teacher and a student of it, each narrower than those of the run."""
    small = Role(
        "small_teacher",
        Kind.TEACHER,
        Appearance("#111111", "#eeeeee", "<", "is a narrower teacher"),
        place=5,
        overrides={"teacher": {"model": {"dim": 8}, "optimizer": {"steps": 6}}},
    )
    narrow = Role(
        "narrow",
        Kind.STUDENT,
        Appearance("#222222", "#dddddd", ">", "learns from the narrower teacher"),
        place=6,
        labels_from="small_teacher",
        overrides={"student": {"mf": {"dim": 4}}, "distill": {"terms": {"clicks": None}}},
        over={"distilled": "narrow_over_distilled"},
        export=9,
    )
    for role in (small, narrow):
        monkeypatch.setitem(ROLES, role.name, role)
    return small, narrow


def test_a_further_row_goes_all_the_way(world, tmp_path, further):
    stages = ("data", "teacher", "small_teacher", "labels", "student", "distilled", "narrow")
    workdir = tmp_path / "run"
    c = config(world, stages=(*stages, "evaluate", "export", "report"))
    c.tuned.narrow = {"student": {"mf": {"dropout": 0.1}}}
    run(c, workdir)
    rows = {row["name"]: row for row in metrics_of(workdir)["models"]}
    assert list(rows) == [
        *("popularity", "item_knn", "teacher", "student", "distilled", "small_teacher", "narrow")
    ]
    assert rows["narrow"]["params"] == 40 * 4 + 24 * 4 + 24  # of its overrides
    assert rows["narrow"]["label_seconds"] > 0
    identity = json.loads((workdir / "narrow/identity.json").read_text())
    assert identity["student"]["mf"]["dim"] == 4 and identity["student"]["mf"]["dropout"] == 0.1
    assert len(identity["distill"]["terms"]) == 1
    teacher = json.loads((workdir / "small_teacher/identity.json").read_text())["teacher"]
    assert teacher["model"]["dim"] == 8
    assert (workdir / "labels/small_teacher.seed0/done.json").exists()
    gain = metrics_of(workdir)["gain"]["ndcg@10"]
    assert gain["narrow"] == pytest.approx(rows["narrow"]["test"]["ndcg@10"], rel=1e-5)
    assert gain["narrow_over_distilled"]["ci95"][0] <= gain["narrow_over_distilled"]["ci95"][1]
    page = (workdir / "report/index.html").read_text()
    for text in ("--narrow: #222222", "--narrow: #dddddd", "learns from the narrower teacher"):
        assert text in page
    assert "narrow over distilled" in page
    description = json.loads((workdir / "export/student.json").read_text())
    assert description["model"] == "narrow" and description["spec"]["dim"] == 4
    assert kd_jax.load(workdir).recommend(user=107, k=3).height == 3


def test_a_control_reads_no_text_and_has_the_budget_of_what_it_controls(further):
    for role in ROLES.values():
        if role.distilled:
            teacher = ROLES[role.labels_from]
            assert teacher.is_teacher and teacher.text == role.text
        assert role.is_teacher or not role.overrides or role.name == "narrow"
    assert not ROLES["control"].text and ROLES["distilled"].text
    c = config(Path("nowhere"))
    c.teacher.lm.train, c.teacher.model.dim = "lora", 24
    settings = settings_of(c, ROLES["control_teacher"])
    assert settings.teacher.lm.train == "head" and settings.teacher.model.item_features == "id"
    assert settings.teacher.model.dim == 24
    assert settings.teacher.optimizer == c.teacher.optimizer


def test_the_table_is_consistent():
    names = [role.name for role in roles.in_tables()]
    assert names == ["control_teacher", "teacher", "student", "control", "distilled"]
    assert [role.name for role in roles.by_export()] == ["distilled", "control", "student"]
    assert roles.main_teacher().name == "teacher" and roles.plain_student().name == "student"
    (main,) = roles.comparisons()
    assert list(main.over.items()) == [
        *(("student", ""), ("control", "lm_share")),
        *((name, f"over_{name}") for name in ("popularity", "trending", *BASELINES_OF_CLICKS)),
    ]
    assert main.teacher == "teacher"
    assert list(roles.BASELINES) == ["popularity", "trending", *BASELINES_OF_CLICKS]
    legend = roles.legend()
    assert legend.large == "teacher" and list(legend.models)[:2] == ["popularity", "trending"]
    colours = [look.colour for look in legend.models.values()]
    assert len(set(colours)) == len(colours)
    assert dataclasses.is_dataclass(Role) and all(name == r.name for name, r in ROLES.items())
