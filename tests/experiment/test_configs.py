"""Every file in configs/ runs as shipped, with ``runlocal`` and a tiny language model."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from ml_collections import ConfigDict

from configs import (
    amazon,
    amazon_2014,
    citeulike,
    common,
    courses,
    csv,
    mind,
    movielens,
    online_retail,
    posts,
    quickstart,
)
from helpers import toy
from helpers.runs import ROOT, launched
from kd_jax.core.logging import Log
from kd_jax.data import synthetic
from kd_jax.data.synthetic.amazon import write as write_amazon
from kd_jax.distillation.schedule import Schedule
from kd_jax.distillation.term import of_section
from kd_jax.experiment import overrides, pipeline, renamed, roles, sections
from kd_jax.experiment.config import settings_of
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.prepared import prepared
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import written

CONFIGS = (
    *(quickstart, online_retail, csv, mind, movielens),
    *(amazon, amazon_2014, citeulike, posts, courses),
)
QUICK = ("data", "student", "evaluate")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return toy.tiny_bert(tmp_path_factory.mktemp("bert"))


def run(c, workdir, bert, **fields):
    """Runs the config with small sizes; returns the names of the models in the report."""
    small = {
        "teacher.model.components": 8,
        "teacher.model.dim": 8,
        "teacher.model.blocks": 1,
        "teacher.model.hidden": 8,
        "teacher.model.history": 6,
    }
    small |= {
        **{f"student.{name}.dim": 8 for name in ("mf", "mlp", "sasrec")},
        "student.sasrec.blocks": 1,
        "student.sasrec.history": 6,
        "teacher.popularity.snapshots": 4,
        "eval.bootstrap": 50,
    }
    small["eval.batch_size"] = 64
    for section in ("teacher.optimizer", "student.optimizer"):
        small |= {
            f"{section}.steps": 4,
            f"{section}.eval_every": 2,
            f"{section}.batch_size": 8,
            f"{section}.warmup_steps": 1,
        }
    c.update_from_flattened_dict(small | {"teacher.lm.weights": str(bert), "mesh.data": 1} | fields)
    assert pipeline.main(c, workdir) == 0
    report = json.loads((workdir / "report/metrics.json").read_text())
    for row in report["models"]:
        assert 0 <= row["test"]["ndcg@10"] <= 1
    return {row["name"] for row in report["models"]}


def test_runlocal_shrinks_every_config():
    for module in CONFIGS:
        whole, local = module.get_config(), module.get_config("runlocal")
        assert local.seeds == (0,) and local.data.max_users > 0 == whole.data.max_users
        assert local.compile_quickly and not whole.compile_quickly
        assert (
            max(local.teacher.optimizer.steps, local.student.optimizer.steps)
            <= 20
            < min(whole.teacher.optimizer.steps, whole.student.optimizer.steps)
        )
        assert local.data.reader == whole.data.reader and local.student.name == whole.student.name


@pytest.mark.slow
def test_quickstart(tmp_path, bert):
    stages = ("data", "teacher", "labels", "distilled", "evaluate", "export", "report")
    fields = {"data.max_users": 60, "stages": stages}
    names = run(quickstart.get_config("runlocal"), tmp_path, bert, **fields)
    assert names >= {"popularity", "teacher", "distilled"}
    assert (tmp_path / "export/item_vectors.parquet").exists() and (
        tmp_path / "report/index.html"
    ).exists()


@pytest.mark.slow
def test_online_retail(tmp_path, bert):
    c = online_retail.get_config("runlocal")
    names = run(c, tmp_path, bert, **{"data.max_users": 60, "stages": QUICK})
    assert names >= {"popularity", "student"}


def test_csv(tmp_path, bert):
    toy.write_csv(tmp_path / "mine")
    paths = {
        "data.files.path": str(tmp_path / "mine/interactions.csv"),
        "data.files.items_path": str(tmp_path / "mine/items.csv"),
    }
    names = run(csv.get_config("runlocal"), tmp_path / "run", bert, stages=QUICK, **paths)
    assert names >= {"popularity", "student"}


@pytest.mark.slow
def test_csv_trends(tmp_path, bert):
    path = toy.write_csv(tmp_path / "mine") / "interactions.csv"
    hours = (1_600_000_000 + 3600 * pl.col("timestamp")).alias("timestamp")
    pl.read_csv(path).with_columns(hours).write_csv(path)
    c = csv.get_config("trends,runlocal")
    assert c.data.split == "temporal" and c.teacher.popularity.enabled
    paths = {
        "data.files.path": str(tmp_path / "mine/interactions.csv"),
        "data.files.items_path": str(tmp_path / "mine/items.csv"),
    }
    names = run(c, tmp_path / "run", bert, **paths)
    assert names >= {"trending", "teacher", "student", "control", "distilled"}


@pytest.mark.slow
def test_csv_sequences(tmp_path, bert):
    toy.write_csv(tmp_path / "mine")
    c = csv.get_config("sequences,runlocal")
    c.seeds = (0, 1)
    paths = {
        "data.files.path": str(tmp_path / "mine/interactions.csv"),
        "data.files.items_path": str(tmp_path / "mine/items.csv"),
    }
    names = run(c, tmp_path / "run", bert, **paths)
    assert names == {"popularity", "item_knn", "student", "ensemble", "distilled"}
    assert (tmp_path / "run/export").is_dir() and (tmp_path / "run/report/index.html").exists()


SMALL = {"users": 60, "items": 60}


@pytest.mark.slow
def test_amazon(tmp_path, bert):
    synthetic.SHAPES["amazon"](tmp_path / "data", **SMALL)
    c = amazon.get_config("runlocal")
    c.data.amazon.path = str(tmp_path / "data")
    names = run(c, tmp_path / "run", bert, stages=QUICK)
    assert names >= {"popularity", "student"}


@pytest.mark.slow
def test_amazon_2014(tmp_path, bert):
    """Its student draws negatives, and starts from the language model's vectors."""
    world = toy.raw(ratings=True)
    path, items_path = (tmp_path / f"{name}.parquet" for name in ("interactions", "items"))
    world.interactions.select("user", "item", pl.col("timestamp").alias("position")).write_parquet(
        path
    )
    terms = pl.col("title").alias("terms")
    world.items.select(pl.col("item").alias("item_id"), terms).write_parquet(items_path)
    c = amazon_2014.get_config("sports,runlocal")
    c.data.files.path, c.data.files.items_path = str(path), str(items_path)
    c.student.sasrec.heads = 2
    c.student.sasrec.dim = 8
    names = run(
        c, tmp_path / "run", bert, stages=QUICK, **{"distill.negatives": 4, "distill.top": 2}
    )
    assert names >= {"popularity", "student"}
    narrow = amazon_2014.get_config("sports_mf,runlocal")
    narrow.data.files.path, narrow.data.files.items_path = str(path), str(items_path)
    for source in narrow.distill.sources.values():
        source.path = str(tmp_path / "run/student")
    assert run(narrow, tmp_path / "narrow", bert) >= {"student", "distilled"}


@pytest.mark.slow
def test_citeulike(tmp_path, bert):
    """The published split as it is, without times and texts; the narrow student learns from it."""
    rows = [
        (user, (5 * user + place) % 40, split)
        for user in range(60)
        for place, split in enumerate(["train"] * 4 + ["valid", "test"])
    ]
    path = tmp_path / "interactions.parquet"
    pl.DataFrame(rows, ["user", "item", "split"], orient="row").write_parquet(path)
    wide, narrow = citeulike.get_config("runlocal"), citeulike.get_config("d10,runlocal")
    wide.data.files.path = narrow.data.files.path = str(path)
    for source in narrow.distill.sources.values():
        source.path = str(tmp_path / "wide/student")
    assert run(wide, tmp_path / "wide", bert) >= {"popularity", "student"}
    assert run(narrow, tmp_path / "narrow", bert) >= {"student", "distilled"}
    report = json.loads((tmp_path / "narrow/report/metrics.json").read_text())
    assert report["dataset"]["interactions"] == len(rows)
    for model in report["models"]:
        assert model["test"]["recall@50"] == model["test"]["hit_rate@50"]  # one target a user


@pytest.mark.slow
@pytest.mark.parametrize("module", [posts, courses], ids=["posts", "courses"])
def test_uses_with_synthetic_data(tmp_path, bert, module):
    """The tables are found where the configuration says that the command writes them."""
    c = module.get_config("runlocal")
    name = Path(c.data.files.path).parent.name
    synthetic.SHAPES[name]((tmp_path / c.data.files.path).parent, **SMALL)
    for field in ("path", "items_path"):
        c.data.files[field] = str(tmp_path / c.data.files[field])
    names = run(c, tmp_path / "run", bert, stages=QUICK)
    assert names >= {"popularity", "student"}


def write_release(folder, release):
    """The toy world laid out as that MovieLens release is."""
    world = toy.raw(ratings=True)
    rows = world.interactions.select("user", "item", "rating", "timestamp")
    films = [
        (item, f"Café {title} (1995)", genre.title()) for item, title, genre in world.items.rows()
    ]
    folder.mkdir(parents=True)
    if release == "100k":
        (folder / "u.data").write_text(
            "".join(f"{u}\t{i}\t{r:.0f}\t{t}\n" for u, i, r, t in rows.rows())
        )
        place = {"Drama": 8, "Comedy": 5, "Horror": 11, "Western": 18}
        lines = [
            f"{i}|{t}|01-Jan-1995||http://x|{'|'.join('01'[place[g] == n] for n in range(19))}"
            for i, t, g in films
        ]
        (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    elif release in ("1m", "10m"):
        (folder / "ratings.dat").write_text(
            "".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in rows.rows())
        )
        lines = "".join(f"{i}::{t}::{g}\n" for i, t, g in films)
        (folder / "movies.dat").write_text(
            lines, encoding="latin-1" if release == "1m" else "utf-8"
        )
    else:
        rows.rename({"user": "userId", "item": "movieId"}).write_csv(folder / "ratings.csv")
        (folder / "movies.csv").write_text(
            "movieId,title,genres\n" + "".join(f"{i},{t},{g}\n" for i, t, g in films)
        )
        (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n500,1,1\n")
        (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n100,500,fun,1\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("release", movielens.RELEASES)
def test_movielens(tmp_path, bert, release):
    c = movielens.get_config(f"{release},runlocal")
    assert c.data.movielens.path == f"data/ml-{release}"
    folder = write_release(tmp_path / f"ml-{release}", release)
    c.data.movielens.path = str(folder)
    with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
        found = Experiment(c, tmp_path / "alone", log).dataset
    assert found.name == f"ml-{release}" and len(found.item) == 480
    if release == "100k":  # what comes after the reader is the same for all
        names = run(c, tmp_path / "run", bert, stages=QUICK)
        assert names >= {"popularity", "student"}


@pytest.mark.parametrize("arg", ["2m", "1m,20m", "runlocl", "1M"])
def test_an_unknown_argument_is_named_with_what_is_known(arg):
    known = r"known: 100k, 1m, 10m, 20m, 25m, 32m, latest-small, runlocal"
    with pytest.raises(ValueError, match=rf"config argument '{arg}' is unknown; {known}"):
        movielens.get_config(arg)
    with pytest.raises(ValueError, match="known: runlocal"):
        quickstart.get_config(arg)


def test_an_empty_argument_is_the_default():
    assert movielens.get_config("").data.movielens.path == "data/ml-1m"
    assert movielens.get_config().data.movielens.path == "data/ml-1m"
    assert common.parse("runlocal,1m", ("1m",)) == ("1m", True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/movielens.py:2m", "config argument '2m' is unknown; known: 100k, 1m, "),
        ("configs/nothing.py", "No such file or directory: 'configs/nothing.py'"),
    ],
)
def test_on_the_command_line(tmp_path, config, message):
    command = [sys.executable, "launch.py", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode and message in done.stderr
    assert not (tmp_path / "run").exists()


# Names of earlier versions


def with_field(name, value=1):
    """The default config with a field of an earlier version added."""
    *parents, field = name.split(".")
    c = section = common.get_config()
    for part in parents:
        if not isinstance(section.get(part), ConfigDict):
            section[part] = {}
        section = section[part]
    with section.ignore_type():
        section[field] = value
    return c


def the_new(name):
    """Fields that the table names, with a reader and a student filled in."""
    filled = name.replace("<name>", "sasrec").replace("<reader>", "files")
    return filled.split(" and ")


@pytest.mark.parametrize("old", renamed.RENAMED)
def test_every_old_field_is_refused_with_its_new_name(old):
    message = f"{old} is now {renamed.RENAMED[old]}"
    toy.refused(lambda: renamed.check_names(with_field(old)), message)
    toy.refused(lambda: renamed.check_names(with_field(old).to_dict()), message)
    for flag in (f"--config.{old}=1", f"-config.{old}", f"--noconfig.{old}"):
        toy.refused(lambda flag=flag: renamed.check_flags([flag]), f"--config.{old}: {message}")
    for name in the_new(renamed.RENAMED[old]):
        section = common.get_config()
        for part in name.split("."):
            section = section[part]
        renamed.check_flags([f"--config.{name}=1"])


@pytest.mark.parametrize("old", renamed.RESHAPED)
def test_every_old_tuple_is_refused_with_what_it_is_now(old):
    toy.refused(lambda: renamed.check_names(with_field(old, (("x", 1),))), f"{old} is now a")
    toy.refused(lambda: renamed.check_flags([f"--config.{old}=(('x', 1),)"]), f"{old} is now a")


@pytest.mark.parametrize("old", renamed.FORMATS)
def test_every_old_export_format_is_refused_with_its_new_name(old, tmp_path, capsys):
    c = csv.get_config("runlocal")
    c.export.formats = ("runtime", old)
    assert pipeline.main(c, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error == f"error: export.formats: {old!r} is now {renamed.FORMATS[old]!r}\n"
    assert not (tmp_path / "run").exists()


def test_every_config_has_new_names_alone():
    for module in (common, *CONFIGS):
        renamed.check_names(module.get_config())


OLD_FILE = """
from configs.common import get_config as common
def get_config():
    c = common()
    {line}
    return c
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.train.steps = 5", "train is now student.optimizer"),
        ("c.teacher.steps = 5", "teacher.steps is now teacher.optimizer.steps"),
        ("c.data.columns.user = 'who'", "data.columns is now data.files.columns"),
        ("c.distill.terms = (('kl', 1.0),)", "distill.terms is now a section per term"),
        ("c.tuned.teacher = ()", "tuned.teacher is now a part of the sections"),
        ("c.student.gru4rec.dim = 8", "no field 'gru4rec', which the file reads or sets; "),
    ],
)
def test_fields_that_a_configuration_file_has_wrong_are_refused(
    tmp_path, monkeypatch, capsys, line, message
):
    (tmp_path / "old.py").write_text(OLD_FILE.format(line=line))
    arguments = (f"--config={tmp_path / 'old.py'}", f"--workdir={tmp_path / 'run'}")
    assert launched(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_an_earlier_version_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    old = {"data": {"source": "files", "path": "x.csv"}, "train": {"steps": 5}}
    (tmp_path / "run/config.json").write_text(json.dumps(old))
    c = csv.get_config("runlocal")
    assert pipeline.main(c, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.json is of an earlier version of kd_jax" in error
    toy.refused(lambda: written(tmp_path / "run"), "data.source is now data.reader")


def test_a_workdir_with_old_export_formats_is_read(tmp_path):
    """They say what is written at the end, and nothing that is trained depends on them."""
    c = csv.get_config().to_dict()
    c["export"] = {"formats": ["runtime", "safetensors", "parquet"], "parquet": {}, "npz": {}}
    (tmp_path / "config.json").write_text(json.dumps(c))
    assert list(written(tmp_path).export.formats) == c["export"]["formats"]


# Named sections on the command line


def applied(*arguments, config=None):
    c = config or quickstart.get_config()
    c.lock()
    rest, found = overrides.take_out(["launch.py", *arguments])
    assert rest == ["launch.py"]
    overrides.apply(c, found)
    return c


def test_terms_and_sources_are_set_made_and_removed():
    c = applied(
        "--config.distill.terms.soft.temperature=4",
        "--config.distill.terms.soft.weight.end=0",
        "--config.distill.terms.new.loss=ce",
        "--config.distill.terms.new.items",
        "warm",
        "--config.distill.terms.whole={'loss': 'kl', 'weight': {'start': 2, 'end': 0.5}}",
        "--config.distill.sources.big.path=runs/0",
        "--config.teacher.clicks.weight=2",
    )
    terms = c.distill.terms.to_dict()
    assert terms["soft"] == sections.TERM | {
        "loss": "kl",
        "temperature": 4.0,
        "weight": {"start": 1.0, "end": 0.0, "schedule": "linear"},
    }
    assert terms["new"] == sections.TERM | {"loss": "ce", "items": "warm"}
    assert terms["whole"]["weight"] == {"start": 2.0, "end": 0.5, "schedule": "linear"}
    assert c.distill.sources.big.to_dict() == {"path": "runs/0", "confidence": ""}
    assert c.teacher.clicks.weight == 2.0 and c.is_locked
    c = applied("--config.distill.terms.soft=None", config=c)
    assert set(c.distill.terms) == {"new", "whole"}
    c = applied("--config.distill.terms.whole.weight=3", "--config.distill.sources=None", config=c)
    assert c.distill.terms.whole.weight == 3.0 and not c.distill.sources


def test_what_was_tuned_is_set_made_and_removed():
    c = applied(
        "--config.tuned.distilled.student.mf.dropout=0.2",
        "--config.tuned.distilled.distill.terms.soft.weight.end=0",
        "--config.tuned.student.student.name=mlp",
        "--config.tuned.control_teacher.teacher.optimizer.batch_size=None",
        "--config.tuned.teacher=None",
    )
    assert c.tuned.distilled.student.mf.dropout == 0.2
    assert c.tuned.distilled.distill.terms.soft.to_dict() == {
        "temperature": 2.0,
        "weight": {"end": 0.0},
    }
    assert c.tuned.student.student.name == "mlp" and not c.tuned.teacher
    assert "batch_size" not in c.tuned.control_teacher.teacher.optimizer
    merged = settings_of(c, ROLES["distilled"])
    assert merged.student.mf.dropout == 0.2 and c.student.mf.dropout == 0.5
    term = of_section("distill.terms.soft", merged.distill.terms.soft)
    assert term.weight == Schedule(1.0, 0.0, "linear")
    assert term.temperature == Schedule(2.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "distill.terms.soft.wieght=1",
            "no field 'distill.terms.soft.wieght'; did you mean 'weight'",
        ),
        (
            "distill.terms.soft.weight=much",
            "distill.terms.soft.weight is 1.0 now; give another float",
        ),
        ("distill.terms.soft.weight.stop=1", "known: end, schedule, start"),
        ("distill.terms.soft.loss.x=1", "distill.terms.soft.loss is a value, not a section"),
        ("distill.terms.soft=kl", "distill.terms.soft is a section; set its fields"),
        ("distill.terms.sofft=None", "there is no 'sofft' in distill.terms; did you mean 'soft'"),
        ("distill.terms.soft.loss=None", "only a whole section can be removed"),
        ("distill.terms.a b.loss=kl", "a name has letters"),
        ("distill.terms=kl", "give --config.distill.terms.<name>.<field>=<value>"),
        ("distill.terms.soft={'loss'", "cannot be read"),
        ("distill.sources.big.pth=x", "did you mean 'path'"),
        ("tuned.distiled.student.mf.dim=8", "no role 'distiled'; did you mean 'distilled'"),
        ("tuned.student.student.mf.dropuot=0", "did you mean 'dropout'"),
        ("tuned.student.student.mf.dim=0.5", "student.mf.dim is 64 now; give another int"),
        ("tuned.student.data.split=ratio", "no field 'data.split'"),
        ("tuned.student.distill.labels=online", "is the same for all models"),
        ("tuned.student=0.5", "give --config.tuned.student.<field>=<value>"),
        ("tuned.student.student.mf.dim=None", "is not set"),
    ],
)
def test_mistakes_in_named_sections_are_one_line(argument, message):
    toy.refused(lambda: applied(f"--config.{argument}"), f"--config.{argument}: ", message)


def test_an_argument_without_a_value_is_refused():
    toy.refused(lambda: overrides.take_out(["--config.distill.terms.soft.loss"]), "has no value")


def test_a_term_can_be_left_out_of_what_one_role_learns_from():
    c = common.get_config()
    c.tuned.distilled = {"distill": {"terms": {"clicks": None, "new": {"loss": "ce"}}}}
    assert set(settings_of(c, ROLES["distilled"]).distill.terms) == {"soft", "new"}
    assert set(settings_of(c, ROLES["control"]).distill.terms) == {"clicks", "soft"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loss": "kl", "weight": True}, "x.weight=True must be a number, 0 or more"),
        ({"loss": "kl", "weight": -1.0}, "x.weight=-1.0 must be a number, 0 or more"),
        ({"loss": "kl", "weight": {"start": 1, "end": "z"}}, "x.weight.end='z' must be a number"),
        ({"loss": "kl", "weight": {"stop": 1.0}}, "x.weight.stop is unknown"),
        ({"loss": "kl", "temperature": "hot"}, "x.temperature='hot' must be a number, more than 0"),
    ],
)
def test_a_section_that_is_no_term_is_refused(section, message):
    toy.refused(lambda: of_section("x", section), message)


def test_a_loss_has_its_hyper_parameters_in_its_section():
    c = applied(
        "--config.distill.terms.items.loss=squared_distance", "--config.distill.terms.items.drawn=9"
    )
    assert of_section("distill.terms.items", c.distill.terms["items"]).loss.drawn == 9


@pytest.mark.parametrize("part", ["meta_All_Beauty.jsonl.gz", "All_Beauty.test.csv.gz"])
def test_files_that_a_reader_finds_beside_the_given_one_are_in_the_identity(tmp_path, part):
    write_amazon(tmp_path, users=80, items=60)
    folder = tmp_path / "5core/last_out"
    shutil.copy(tmp_path / "meta_All_Beauty.jsonl.gz", folder)
    c = amazon.get_config()
    c.data.amazon = {"path": str(folder / "All_Beauty.train.csv.gz")}
    c.data.split = "column"
    with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
        first = prepared(c, tmp_path / "run", log)
        assert prepared(c, tmp_path / "run", log).checksum == first.checksum
        lines = gzip.decompress((folder / part).read_bytes()).splitlines(keepends=True)
        (folder / part).write_bytes(gzip.compress(b"".join(lines[:-1])))
        toy.refused(lambda: prepared(c, tmp_path / "run", log), f"other files ({part})")
        (folder / "All_Beauty.train.csv.gz").unlink()  # the source is gone
        assert prepared(c, tmp_path / "run", log).checksum == first.checksum


def test_a_section_that_the_run_does_not_read_changes_no_identity(tmp_path):
    toy.write_csv(tmp_path)

    def identities(**fields):
        c = csv.get_config("teacher")
        paths = {"data.files.path": "interactions.csv", "data.files.items_path": "items.csv"}
        c.update_from_flattened_dict({k: str(tmp_path / v) for k, v in paths.items()} | fields)
        with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
            experiment = Experiment(c, tmp_path / "run", log)
            return identity_of(experiment, roles.ROLES["student"], 0)

    first = identities()
    assert first == identities(**{"student.sasrec.dim": 8, "data.movielens.path": "x"})
    assert first == identities(**{"data.tfds.name": "other", "teacher.model.dim": 8})
    assert first != identities(**{"student.mf.dim": 8})
    # A field that came later does not part a run from an earlier one.
    plain, ligr = (
        identities(**{"student.name": "sasrec", "student.sasrec.block": block})["student"]["sasrec"]
        for block in ("plain", "ligr")
    )
    assert "block" not in plain and ligr["block"] == "ligr" and "item_dropout" not in plain
    assert "vector_norm" not in first["student"]["optimizer"]
    assert first != identities(**{"student.optimizer.vector_norm": 2.0})
    made = json.loads((tmp_path / "run/dataset/identity.json").read_text())
    assert set(made["files"]) and "tfds" not in made
