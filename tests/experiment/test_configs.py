"""Every file in configs/ runs as it is shipped, shrunk by ``runlocal``, with a tiny language
model.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common, csv, movielens, online_retail, quickstart
from helpers import toy
from kd_jax.experiment import pipeline, setup

ROOT = Path(__file__).parents[2]
QUICK = ("data", "student", "evaluate")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return toy.tiny_bert(tmp_path_factory.mktemp("bert"))


def run(c, workdir, bert, **fields):
    """A run of what the config says but for sizes; returns the names in the report."""
    small = {
        "teacher.model.components": 8,
        "teacher.model.dim": 8,
        "teacher.model.blocks": 1,
        "teacher.model.hidden": 8,
        "teacher.model.history": 6,
    }
    small |= {
        "student.mf.dim": 8,
        "student.sasrec.blocks": 1,
        "student.sasrec.history": 6,
        "teacher.popularity.snapshots": 4,
        "eval.bootstrap": 50,
    }
    small["eval.batch_size"] = 64
    for section in ("teacher", "train"):
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
    for module in (quickstart, online_retail, csv, movielens):
        whole, local = module.get_config(), module.get_config("runlocal")
        assert local.seeds == (0,) and local.data.max_users > 0 == whole.data.max_users
        assert (
            max(local.teacher.steps, local.train.steps)
            <= 20
            < min(whole.teacher.steps, whole.train.steps)
        )
        assert local.data.source == whole.data.source and local.student.name == whole.student.name


def test_quickstart(tmp_path, bert):
    names = run(quickstart.get_config("runlocal"), tmp_path, bert, **{"data.max_users": 60})
    assert names >= {"popularity", *setup.MODELS}
    assert (tmp_path / "export/item_vectors.parquet").exists() and (
        tmp_path / "report/index.html"
    ).exists()


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


@pytest.mark.parametrize("release", movielens.RELEASES)
def test_movielens(tmp_path, bert, release):
    c = movielens.get_config(f"{release},runlocal")
    assert c.data.path == f"data/ml-{release}"
    folder = write_release(tmp_path / f"ml-{release}", release)
    names = run(c, tmp_path / "run", bert, stages=QUICK, **{"data.files.path": str(folder)})
    assert names >= {"popularity", "student"}
    report = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert report["dataset"]["name"] == f"ml-{release}" and report["dataset"]["interactions"] == 480


@pytest.mark.parametrize("arg", ["2m", "1m,20m", "runlocl", "1M"])
def test_an_unknown_argument_is_named_with_what_is_known(arg):
    known = r"known: 100k, 1m, 10m, 20m, 25m, 32m, latest-small, runlocal"
    with pytest.raises(ValueError, match=rf"config argument '{arg}' is unknown; {known}"):
        movielens.get_config(arg)
    with pytest.raises(ValueError, match="known: runlocal"):
        quickstart.get_config(arg)


def test_an_empty_argument_is_the_default():
    assert movielens.get_config("").data.path == movielens.get_config().data.path == "data/ml-1m"
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
