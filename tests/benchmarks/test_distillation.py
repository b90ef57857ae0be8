"""The benchmark of methods: selection on validation, and what it says of unfinished work."""

import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from benchmarks import distillation, methods
from benchmarks.sets import SETS
from kd_jax.core.errors import InputError
from kd_jax.distillation.term import Limits, check, of_section
from kd_jax.experiment import overrides
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
    study = methods.Study(tmp_path, (), ["kl"], ["teacher"], [1.0, 3.0], report=True)
    write(tmp_path / "kl.teacher.1", valid=0.2, test=0.1)
    assert study.row("kl", "teacher", "ndcg@10", [0])["missing"] == "1 trials"
    write(tmp_path / "kl.teacher.3", valid=0.1, test=0.9)
    row = study.row("kl", "teacher", "ndcg@10", [0])
    assert (row["weight"], row["test"]) == (1.0, [0.1])
    assert distillation.line(row)[-2] == "+10.0 % (+5.0 to +15.0)"
    missing = study.row("kl", "teacher", "ndcg@10", [0, 1])
    assert missing["missing"] == "1 seeds" and "missing: 1 seeds" in distillation.line(missing)


def test_a_gain_that_was_not_computed_is_a_dash():
    row = {"method": "kl", "teacher": "teacher", "weight": 1.0, "valid": [0.1], "test": [0.1]}
    row |= {"gain": None, "ci95": [None, 0.1], "seconds": [1.0]}
    assert distillation.line(row)[-2] == "– % (– to +10.0)"


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_a_term_that_the_configuration_accepts(method, tmp_path):
    clicks = {"loss": "ce", "items": "warm"}
    (tmp_path / "config.json").write_text(json.dumps({"student": {"clicks": clicks}}))
    flags = [flag.partition("=") for flag in methods.Trial(method, "teacher", 2).flags(tmp_path)]
    prefix = "--config.distill.terms.method."
    section = {name.removeprefix(prefix): value for name, _, value in flags if prefix in name}
    section["weight"] = float(section["weight"])
    term = of_section("method", ConfigDict(section))
    assert isinstance(term.loss, LOSSES[method]) and term.items == "warm"


def test_a_sample_is_read_by_all_losses_but_those_of_the_whole_catalogue(tmp_path):
    beauty = ["--config=configs/amazon_2014.py:beauty"]
    config = configuration(beauty)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    sample = {"negatives": config.distill.negatives, "top": config.distill.top}
    refused = []
    for method in methods.METHODS:
        c = configuration(beauty + methods.Trial(method, "student", 1).flags(tmp_path))
        terms = tuple(of_section(name, c.distill.terms[name], **sample) for name in c.distill.terms)
        assert {term.items for term in terms} == {"sampled"}
        try:
            check(terms, Limits(factorised=True, owns_item_table=True, num_items=12_101), "terms")
        except InputError:
            refused.append(method)
    assert refused == ["standardised_kl", "dcd", "rce", "dllm2rec", "on_policy_kl"]


def test_a_teacher_may_be_a_model_of_another_workdir(tmp_path):
    clicks = {"loss": "ce", "items": "warm"}
    (tmp_path / "config.json").write_text(json.dumps({"student": {"clicks": clicks}}))

    def path(teacher):
        (flag,) = (
            flag
            for flag in methods.Trial("kl", teacher, 1).flags(tmp_path)
            if "sources.base.path=" in flag
        )
        return flag.partition("=")[2]

    assert path("teacher") == str(tmp_path / "teacher")
    assert path("/runs/wide/student") == "/runs/wide/student"
    assert path("runs/wide/student") == str(Path("runs/wide/student").absolute())
    one, other = (methods.Trial("kl", f"{run}/student", 0.3).name for run in ("runs/a", "runs/b"))
    assert one != other and one.startswith("kl.student-") and one.endswith(".0.3")


@pytest.mark.parametrize(("select", "metric"), [("recall@50", "recall@50"), ("", "ndcg@10")])
def test_the_metric_is_the_one_that_selects_models(tmp_path, select, metric):
    c = {"task": "rank", "eval": {"select": select}}
    (tmp_path / "config.json").write_text(json.dumps(c))
    assert methods.metric_of(tmp_path) == metric


def row(name, seed, ndcg, **more):
    test = {"ndcg@10": ndcg, "ndcg@50": 0.5, "recall@10": 0.1, "hit_rate@10": 0.1}
    more = {"params": 10, "bytes": 40, "train_seconds": 2.0, "slices": {}} | more
    return {"name": name, "seed": seed, "test": test} | more


def test_the_table_of_models_has_means_of_seeds_and_dashes():
    cold = {"slices": {"cold": {"recall@50": 0.25}}}
    rows = [row("popularity", None, 0.1), row("student", 0, 0.2, **cold), row("student", 1, 0.4)]
    head, _, first, second = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in distillation.models(rows).splitlines()
    )
    popularity, student = (dict(zip(head, line, strict=True)) for line in (first, second))
    assert student["NDCG@10"] == "0.3000 ± 0.1414" and student["Recall@50 cold"] == "0.2500"
    assert student["parameters"] == "10" and student["train s"] == "2"
    assert popularity["NDCG@10"] == "0.1000" and popularity["Recall@50 cold"] == "–"
    assert popularity["HR@50"] == popularity["users/s"] == "–"


def arguments(monkeypatch, *given):
    monkeypatch.setattr("sys.argv", ["distillation.py", *given])
    return distillation.parsed()


def test_a_set_without_its_data_is_missing_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "data/citeulike").mkdir(parents=True)
    (tmp_path / "data/citeulike/interactions.parquet").touch()
    given = f"--out={tmp_path / 'out'} --data={tmp_path / 'data'} --sets=beauty,citeulike-d20"
    found = distillation.studies(*arguments(monkeypatch, *given.split()))
    assert found["beauty"] == f"{tmp_path / 'data/amazon-beauty'} does not exist"
    study = found["citeulike-d20"]
    assert study.teachers == [str(tmp_path / "out/citeulike-wide/base/student")]
    path = f"--config.data.files.path={tmp_path / 'data/citeulike/interactions.parquet'}"
    assert path in study.flags and not any("items_path" in flag for flag in study.flags)
    monkeypatch.setattr(methods, "launch", lambda *_: None)
    arguments(monkeypatch, *given.split())
    distillation.main()
    page = (tmp_path / "out/results.md").read_text()
    assert "amazon-beauty does not exist" in page and "holds no finished run" in page
    assert json.loads((tmp_path / "out/results.json").read_text()) == {}
    assert "missing" in capsys.readouterr().out


def finished(folder):
    """A base with two seeds of a plain student."""
    (folder / "report").mkdir(parents=True)
    (folder / "dataset").mkdir()
    found = {"models": [row("student", 0, 0.2), row("student", 1, 0.4)], "gain": {}}
    (folder / "report/metrics.json").write_text(json.dumps(found))
    student = {"name": "two_tower", "two_tower": {}, "clicks": {"loss": "ce", "items": "warm"}}
    c = {"student": student, "task": "rank", "eval": {"select": ""}}
    (folder / "config.json").write_text(json.dumps(c))


def test_the_page_has_all_sets_that_are_there_without_their_data(tmp_path, monkeypatch):
    for name in ("beauty", "own"):
        finished(tmp_path / name / "base")
    given = (f"--out={tmp_path}", "--data=nowhere", "--sets=sports", "--methods=kl", "--report")
    arguments(monkeypatch, *given)
    distillation.main()
    page = (tmp_path / "results.md").read_text()
    assert [part.split("\n")[0] for part in page.split("## ")[1:]] == ["sports", "beauty", "own"]
    assert page.count("0.3000 ± 0.1414") == 2 and "missing: 3 trials" in page
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["beauty", "own"]


def test_other_flags_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "launch", lambda *_: None)
    finished(tmp_path / "base")

    def study(*flags):
        return methods.Study(tmp_path, flags, [], [], [1.0])

    study("--config.student.name=mf").begin()
    study("--config.student.name=mf").check()
    with pytest.raises(SystemExit, match="other flags; use another --out"):
        study("--config.student.name=mlp").check()


@pytest.mark.parametrize("installed", [True, False])
def test_base_has_all_baselines_that_are_installed_and_its_record_none(
    tmp_path, monkeypatch, installed
):
    launched = []
    monkeypatch.setattr(methods, "launch", lambda _, flags: launched.append(flags))
    monkeypatch.setattr(methods.importlib.util, "find_spec", lambda _: installed or None)
    finished(tmp_path / "base")
    flags = ("--config=configs/csv.py",)
    methods.Study(tmp_path, flags, [], [], [1.0]).begin()
    names = ("item_knn", "ease", "bpr", "ials")[: 4 if installed else 2]
    assert launched == [[*flags, f"--config.eval.baselines={names}"]]
    assert json.loads((tmp_path / "study.json").read_text())["flags"] == list(flags)
    chosen = (*flags, "--config.eval.baselines=()")
    methods.Study(tmp_path, chosen, [], [], [1.0]).begin()
    assert launched[1] == list(chosen)


def test_refused_flags_leave_the_page_alone_and_a_report_is_of_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "launch", lambda *_: None)
    finished(tmp_path / "own/base")
    config = (f"--out={tmp_path}", "--config=configs/csv.py")
    arguments(monkeypatch, *config, "--methods=kl", "--weights=1", "--teachers=teacher")
    assert distillation.main() == 0
    page = (tmp_path / "results.md").read_text()
    assert "| kl | teacher |" in page and "configs/csv.py" in page
    arguments(monkeypatch, *config, "--config.student.optimizer.steps=5")
    with pytest.raises(SystemExit, match="other flags"):
        distillation.main()
    assert (tmp_path / "results.md").read_text() == page
    arguments(monkeypatch, f"--out={tmp_path}", "--config.student.optimizer.steps=5", "--report")
    distillation.main()
    own = page.partition("## own")[2]
    assert (tmp_path / "results.md").read_text().endswith(own) and "| rrd |" not in own


@pytest.mark.parametrize("name", SETS)
def test_the_flags_of_a_set_are_those_of_a_run_that_starts(tmp_path, name):
    """Terms name no source that the flags of the set have taken away."""
    data = tmp_path / SETS[name].folder
    data.mkdir(exist_ok=True)
    c = configuration(SETS[name].command(tmp_path))
    for term in c.distill.terms.values():
        for teacher in term.get("teacher", "own").split("+"):
            assert teacher in ("own", "student", *c.distill.sources)


def configuration(given):
    """The configuration of flags of launch.py."""
    (path,) = (flag.partition("=")[2] for flag in given if flag.startswith("--config="))
    file, _, arg = path.partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    fields = [flag for flag in given if flag.startswith("--config.")]
    c = module.get_config(arg)
    overrides.apply(c, overrides.take_out(fields)[1])
    return c


def test_quick_is_one_seed_of_the_shipped_data_unless_told_otherwise(tmp_path, monkeypatch):
    given = (f"--out={tmp_path}", "--quick", "--methods=kl")
    options, flags = arguments(monkeypatch, *given)
    assert (options.sets, options.methods, options.weights) == (["movietweetings"], ["kl"], [3.0])
    assert options.teachers == ["teacher"] and flags == ["--config.seeds=(0,)"]


def test_unknown_names_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        arguments(monkeypatch, f"--out={tmp_path}", "--sets=movies")
    assert "--sets: movies unknown" in capsys.readouterr().err


def test_gains_are_drawn_with_their_intervals(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, *a, **k: drawn.append(x) or plot(self, x, *a, **k)
    )
    done = {"method": "kl", "teacher": "teacher", "gain": 0.5, "ci95": (0.25, 0.75)}
    unfinished = {"method": "rd", "teacher": "teacher", "missing": "2 seeds"}
    distillation.draw(tmp_path / "none.png", {"own": [unfinished]})
    distillation.draw(tmp_path / "gains.png", {"own": [done, unfinished]})
    assert drawn == [[25.0, 75.0], 50.0]
    distillation.draw(tmp_path / "open.png", {"own": [done | {"ci95": (0.25, None)}]})
    assert drawn[2:] == [50.0], "an interval without an upper end has no line"
    assert (tmp_path / "gains.png").exists() and not (tmp_path / "none.png").exists()
