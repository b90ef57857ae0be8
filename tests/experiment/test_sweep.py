"""The search: spaces, budgets, trials that end early, and searches that are cut off."""

import json
import shutil

import pytest
from ml_collections import ConfigDict

from configs.common import get_config
from helpers.runs import config, run
from kd_jax.core import fields
from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.experiment import roles, sweep
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.sections import put
from kd_jax.experiment.sweep import Range, Sweep
from kd_jax.experiment.trained import written
from kd_jax.models.students import STUDENTS
from kd_jax.report.search import search
from kd_jax.training.loop import Diverged


def test_roles_of_one_kind_search_the_same_fields():
    c = get_config()
    for name, cls in STUDENTS.items():
        c.student.name = name
        plain, distilled = (sweep.space(roles.ROLES[r], c) for r in ("student", "distilled"))
        prefix = f"student.{name}."
        own = {field.removeprefix(prefix) for field in plain if field.startswith(prefix)}
        assert own and own <= fields.defaults(cls.spec).keys()
        more = {field: values for field, values in distilled.items() if field not in plain}
        assert {**plain, **more} == distilled
        assert set(more) == {"distill.terms.soft.temperature", "distill.terms.soft.weight"}
    del c.distill.terms["clicks"]  # the weight of one term alone changes nothing
    assert "distill.terms.soft.weight" not in sweep.space(roles.ROLES["distilled"], c)
    teachers = [sweep.space(role, c) for role in roles.teachers()]
    assert all(found == teachers[0] for found in teachers)
    assert sweep.tree({"student.mf.dropout": 0.1, "student.mf.decay": 3.0}) == {
        "student": {"mf": {"dropout": 0.1, "decay": 3.0}}
    }


def test_a_length_of_the_vectors_is_searched_instead_of_the_weight_decay():
    c = get_config()
    free = sweep.space(roles.ROLES["student"], c)
    own = c.copy_and_resolve_references()
    c.student.optimizer.vector_norm = 2.0
    own.tuned.student = {"student": {"optimizer": {"vector_norm": 2.0}}}
    for configured in (c, own):
        found = sweep.space(roles.ROLES["student"], configured)
        assert set(free) - set(found) == {"student.optimizer.weight_decay"}
        assert set(found) - set(free) == {"student.optimizer.vector_norm"}
    assert "student.optimizer.weight_decay" in sweep.space(roles.ROLES["control"], own)


def test_numbers_have_two_digits_and_choices_stay():
    point = {"a": 0.012345, "b": 3, "c": "cosine", "d": 29.96}
    assert sweep._rounded(point) == {"a": 0.012, "b": 3, "c": "cosine", "d": 30.0}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("searched") / "run"
    run(config(world, seeds=(0, 3), stages=("data", "teacher", "labels")), workdir)
    return workdir


def test_a_search_trains_beside_the_run_and_keeps_the_best(trained, capsys):
    sweep.sweep(trained, ("student", "distilled"), trials=2, finalists=1)
    printed = capsys.readouterr().out
    for name in ("student", "distilled"):
        lines = [line for line in printed.splitlines() if line.split()[0] == name]
        assert sum("(1 seeds)" in line for line in lines) == 2
        (final,) = [line for line in lines if "finalist" in line and "(2 seeds)" in line]
        score = final.split("valid ")[1].split()[0]
        assert f"c.tuned.{name} = " in printed and f"# valid {score}" in printed
        assert not (trained / name).exists()
        assert len(list(trained.glob(f"tune/{name}.*/*/{name}/result.json"))) == 2
        assert len(list(trained.glob(f"tune/{name}.*/*/{name}.seed3/result.json"))) == 1
    found = json.loads((trained / "report/search.json").read_text())
    assert set(found["roles"]) == {"student", "distilled"}
    assert found["roles"]["student"]["metric"] == "ndcg@10"
    rows = found["roles"]["distilled"]["best"]
    assert [row["chosen"] for row in rows] == [True, False]
    assert rows[0]["first_seed"] >= rows[1]["first_seed"] and rows[1]["all_seeds"] is None
    page = search(trained, roles.legend())
    assert page.count("chosen") == 2 and "the best of 2 trials, 0 of which ended early" in page

    # Again, with more trials: those that are there are not trained again.
    before = {
        path: path.stat().st_mtime_ns
        for path in trained.glob("tune/student.*/*/student/result.json")
    }
    sweep.sweep(trained, ("student",), trials=3, finalists=1)
    printed = capsys.readouterr().out
    assert " trial  2 " in printed and " trial  1 " not in printed
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize(("score", "better"), [(0.99, False), (0.0, True)])
def test_the_run_itself_is_compared_with_the_best_trial(trained, tmp_path, capsys, score, better):
    shutil.copytree(trained, tmp_path / "run")
    for folder in ("student", "student.seed3"):
        (tmp_path / "run" / folder).mkdir()
        result = {"best_score": score, "best_step": 1, "steps": 1, "seconds": 1.0}
        (tmp_path / "run" / folder / "result.json").write_text(json.dumps(result))
    sweep.sweep(tmp_path / "run", ("student",), trials=1, finalists=1)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if " in the run " in x]
    assert f"valid {score:.4f} (2 seeds)" in line
    assert ("no trial is better" in line) != better


def test_a_search_that_was_cut_off_tries_the_same(trained, monkeypatch, tmp_path, capsys):
    tried = []

    def score(search, role, folder, point, seeds, number=None, judge=None):
        if number == 2 and not tried.count("cut"):
            tried.append("cut")
            raise KeyboardInterrupt
        if number is not None:
            tried.append(dict(point))
        return point["student.optimizer.learning_rate"]

    monkeypatch.setattr(Sweep, "score", score)
    monkeypatch.setattr(sweep, "space", lambda role, c: SMALL)
    before = set(trained.glob("tune/student.*/journal"))
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(trained, ("student",), trials=5, finalists=1)
    sweep.sweep(trained, ("student",), trials=5, finalists=1)
    cut = [point for point in tried if point != "cut"]
    (journal,) = [p for p in trained.glob("tune/student.*/journal") if p not in before]
    journal.write_bytes(journal.read_bytes()[:-9])  # as a full disk leaves it
    sweep.sweep(trained, ("student",), trials=5, finalists=1)
    assert tried[-1] == cut[-1] and len(tried) == 7, "the last trial is done again"
    tried[:] = ["cut"]
    monkeypatch.setattr(sweep, "space", lambda role, c: SMALL | {"student.mf.user_power": (0.5,)})
    sweep.sweep(trained, ("student",), trials=5, finalists=1)
    whole = tried[1:]
    for point in whole:
        assert point.pop("student.mf.user_power") == 0.5
    assert len(whole) == 5 and cut == whole
    best = max(point["student.optimizer.learning_rate"] for point in whole)
    assert f"# valid {best:.4f}" in capsys.readouterr().out


SMALL = {"student.optimizer.learning_rate": Range(1e-3, 1e-1, log=True)}


def test_a_trial_that_is_behind_ends_early(trained, monkeypatch, capsys):
    def score(search, role, folder, point, seeds, number=None, judge=None):
        level = 1.0 if number is None or number < 5 else 0.1
        for step in (4, 10, 15, 20):
            if judge is not None:
                judge(step, level * step)
        return level

    monkeypatch.setattr(Sweep, "score", score)
    monkeypatch.setattr(sweep, "space", lambda role, c: SMALL | {"student.mf.decay": (1.0, 2.0)})
    sweep.sweep(trained, ("student",), trials=7, finalists=1)
    printed = capsys.readouterr().out
    assert printed.count("ended early at step 10") == 2  # 4 is less than a quarter of 20
    found = json.loads((trained / "report/search.json").read_text())["roles"]["student"]
    assert (found["trials"], found["ended_early"]) == (7, 2)


def test_what_a_judge_raises_ends_the_training_and_it_goes_on_later(trained, capsys):
    class Behind(Exception):
        pass

    def judge(step, score):
        raise Behind(step)

    with Log(trained / "judged.jsonl", metric="ndcg@10") as log:
        search = Sweep(trained, [roles.ROLES["student"]], log, written(trained))
        point = {"student.mf.dropout": 0.25}
        with pytest.raises(Behind, match="10"):
            search.score(roles.ROLES["student"], trained / "tune/x", point, (0,), 0, judge)
        assert search.score(roles.ROLES["student"], trained / "tune/x", point, (0,), 0) > 0
    assert "resumes from the checkpoint of step 10" in capsys.readouterr().out


def test_a_trial_that_diverges_is_a_trial_and_a_finalist_may_diverge(trained, monkeypatch, capsys):
    def score(search, role, folder, point, seeds, number=None, judge=None):
        if number in (0, 2) or (
            number is None and point["student.optimizer.learning_rate"] == best
        ):
            raise Diverged("the loss is not finite")
        return point["student.optimizer.learning_rate"]

    best = None
    monkeypatch.setattr(Sweep, "score", score)
    monkeypatch.setattr(sweep, "space", lambda role, c: SMALL | {"student.mf.decay": (4.0,)})
    sweep.sweep(trained, ("student",), trials=5, finalists=2)
    found = json.loads((trained / "report/search.json").read_text())["roles"]["student"]
    assert (found["trials"], found["ended_early"], len(found["best"])) == (5, 2, 3)
    best = found["best"][0]["point"]["student.optimizer.learning_rate"]
    sweep.sweep(trained, ("student",), trials=5, finalists=2)
    found = json.loads((trained / "report/search.json").read_text())["roles"]["student"]
    assert [row["chosen"] for row in found["best"]] == [False, True, False]
    assert found["best"][0]["all_seeds"] is None
    assert "finalist the loss is not finite" in capsys.readouterr().out
    with pytest.raises(InputError, match="no trial of student was trained to its end"):
        sweep.sweep(trained, ("student",), trials=5, finalists=1)


def test_another_configuration_is_another_search(trained, monkeypatch):
    folders = []

    def score(search, role, folder, point, seeds, number=None, judge=None):
        folders.append(folder)
        return 1.0

    monkeypatch.setattr(Sweep, "score", score)
    small = SMALL | {"student.mf.dropout": (0.1, 0.5), "student.mf.decay": (7.0,)}
    monkeypatch.setattr(sweep, "space", lambda role, c: small)
    c = written(trained)
    with Log(trained / "other.jsonl", metric="ndcg@10") as log:
        for change in (
            {},
            {"student.optimizer.learning_rate": 0.123},  # it is searched
            {"tuned": {"student": {"mf": {"dropout": 0.5}}}},  # as is this
            {"student.optimizer.steps": 7},
        ):
            other = ConfigDict(c.to_dict())
            for name, value in change.items():
                if name == "tuned":
                    other.tuned.student = value
                else:
                    put(other, name, value, name)
            Sweep(trained, [roles.ROLES["student"]], log, other).best(roles.ROLES["student"], 1, 1)
    # The trial of the first is there for the second and third, which train the finalist alone.
    assert len(folders) == 6 and len(set(folders[:4])) == 1 and folders[4] == folders[5]
    assert folders[4] != folders[0]


def test_a_role_is_not_searched_with_its_teacher(trained, world, tmp_path):
    with pytest.raises(InputError, match="distilled learns from the labels of teacher, which is"):
        sweep.sweep(trained, ("teacher", "distilled"), trials=1, finalists=1)
    terms = {"soft": {"loss": "kl", "teacher": "student"}}
    stages = ("data", "student", "labels", "distilled")
    with Log(tmp_path / "log.jsonl", metric="ndcg@10") as log:
        c = config(world, **{"stages": stages, "distill.terms": terms})
        experiment = Experiment(c, tmp_path / "run", log)
        assert [role.name for role in sweep.chosen(experiment, ())] == ["student"]
        with pytest.raises(InputError, match="distilled learns from the labels of student"):
            sweep.chosen(experiment, ("student", "distilled"))
        assert [role.name for role in sweep.chosen(experiment, ("distilled",))] == ["distilled"]


def test_lower_is_better_is_shown_as_it_is(trained, monkeypatch):
    monkeypatch.setattr(sweep, "selects", lambda c: "log_loss")
    with Log(trained / "rate.jsonl", metric="log_loss") as log:
        search = Sweep(trained, [], log, written(trained))
        assert search.shown(-0.5) == 0.5
        row = {"first_seed": -0.5, "all_seeds": None}
        assert search._shown(row) == {"first_seed": 0.5}


def test_damage_and_counts_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match="--trials=0 must be at least 1"):
        sweep.sweep(trained, ("student",), trials=0, finalists=1)
    (tmp_path / "report").mkdir()
    for content in ("[]", "{}", '{"roles": {"student": {"best": [1]}}}'):
        (tmp_path / "report/search.json").write_text(content)
        with pytest.raises(InputError, match=r"search\.json"):
            search(tmp_path, roles.legend())
