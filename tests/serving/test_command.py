"""python -m kd_jax.recommend: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import kd_jax
from helpers import toy
from kd_jax import recommend
from kd_jax.data import dataset as datasets
from kd_jax.data.splits import TEST
from kd_jax.runtime import store
from kd_jax.runtime.contexts import HistoryMap

WIDTH = 5


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """dataset/ and an export with random vectors; item 0 is called "Love | Hate"."""
    folder = tmp_path_factory.mktemp("run")
    raw = toy.raw()
    titles = ["Love | Hate", *raw.items["title"][1:]]
    items = raw.items.with_columns(pl.Series("title", titles))
    data = datasets.build(dataclasses.replace(raw, items=items), split="leave_one_out")
    data.save(folder / "dataset")
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    export = store.Export(
        {"dataset": {"name": data.name, "checksum": data.checksum}},
        data.user_ids.to_list(),
        data.item_ids.to_list(),
        data.titles,
        draw(data.num_items, WIDTH),
        draw(data.num_items),
        draw(data.num_users, WIDTH),
        *data.history(TEST + 1),
        HistoryMap(draw(WIDTH, WIDTH), draw(WIDTH), 3.0, 0.5),
    )
    store.write(folder / "export" / store.FILE, export)
    return folder


def printed(workdir, capsys, *arguments):
    """The lines of a command that succeeds."""
    assert recommend.main([f"--workdir={workdir}", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def ids(lines):
    return [int(line.rsplit("[", 1)[1].rstrip("]")) for line in lines]


def test_lists_are_those_of_the_library(workdir, capsys):
    found = kd_jax.load(workdir)
    user = found.dataset.user_ids[3]
    want = found.recommend(user, k=4)["item"].to_list()
    assert ids(printed(workdir, capsys, f"--user={user}", "-k", "4")) == want
    newer = found.recommend(user, [want[0]], k=4)["item"].to_list()
    lines = printed(workdir, capsys, f"--user={user}", f"--history={want[0]}", "-k", "4")
    assert ids(lines) == newer and want[0] not in newer
    varied = found.recommend(user, k=4, diversity=0.9)["item"].to_list()
    lines = printed(workdir, capsys, f"--user={user}", "-k", "4", "--diversity=0.9")
    assert ids(lines) == varied != want
    similar = found.similar(500, 4)["item"].to_list()
    assert ids(printed(workdir, capsys, "--similar=500", "-k", "4")) == similar


def test_a_title_may_contain_the_separator(workdir, capsys):
    found = kd_jax.load(workdir)
    for text, names in [
        ("Love | Hate|501", [500, 501]),
        ("501|love | hate", [501, 500]),
        ("Love | Hate", [500]),
    ]:
        want = found.recommend(history=names, k=3)["item"].to_list()
        assert ids(printed(workdir, capsys, f"--history={text}", "-k", "3")) == want, text


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_all_users_are_written_as_each_alone(workdir, tmp_path, capsys, suffix):
    path = tmp_path / f"lists.{suffix}"
    (line,) = printed(workdir, capsys, "--all", f"--out={path}", "-k", "3")
    found = kd_jax.load(workdir)
    assert f"{found.dataset.num_users} users" in line and str(path) in line
    table = pl.read_parquet(path) if suffix == "parquet" else pl.read_csv(path)
    assert table.columns == ["user", "rank", "item", "title", "score"]
    for user in found.dataset.user_ids[:3]:
        want = found.recommend(user, k=3)
        mine = table.filter(pl.col("user") == user).drop("user")
        assert mine["item"].to_list() == want["item"].to_list()
        assert mine["rank"].to_list() == [1, 2, 3]
        np.testing.assert_allclose(mine["score"], want["score"], rtol=1e-5)
    assert table["user"].n_unique() == found.dataset.num_users


def test_some_users_and_some_items(workdir, tmp_path, capsys):
    found = kd_jax.load(workdir)
    users = found.dataset.user_ids[5:7].to_list()
    (tmp_path / "users.txt").write_text("\n".join(map(str, users)) + "\n\n")
    (tmp_path / "items.txt").write_text("501\n502\nLove | Hate\n")
    path = tmp_path / "lists.parquet"
    arguments = [f"--users={tmp_path}/users.txt", f"--out={path}", "--include-seen"]
    printed(workdir, capsys, *arguments, f"--only={tmp_path}/items.txt")
    table = pl.read_parquet(path)
    assert table["user"].unique().sort().to_list() == users
    assert set(table["item"]) == {500, 501, 502} and len(table) == 6
    printed(workdir, capsys, *arguments, f"--exclude={tmp_path}/items.txt", "-k", "99")
    assert not set(pl.read_parquet(path)["item"]) & {500, 501, 502}
    column = found.dataset.items.columns[1]
    value = found.dataset.items[column][0]
    printed(workdir, capsys, *arguments, f"--only={column}={value}", "-k", "99")
    chosen = found.dataset.item_ids.filter(found.dataset.items[column] == value).to_list()
    assert set(pl.read_parquet(path)["item"]) == set(chosen)


def test_tables_of_users_and_of_histories_keep_the_types_of_their_ids(workdir):
    found = kd_jax.load(workdir)
    user = found.dataset.user_ids[4]
    for users in ([user], [str(user)], np.array([user])):
        table = found.recommend_all(users, k=3)
        assert table.schema == found.schema() and table["user"].unique().to_list() == [user]
        assert table["item"].to_list() == found.recommend(user, k=3)["item"].to_list()
    table = found.recommend_all(histories=[[500], [501, 502]], k=3)
    assert table["user"].to_list() == [0, 0, 0, 1, 1, 1]
    assert found.recommend_all([], k=3).schema == table.schema == found.schema()
    explained = found.explain(503, history=[500])
    assert explained["part"].to_list() == ["history", "bias", "intercept", "user"]
    assert explained["item"].to_list() == [500, None, None, None]


def test_an_explanation_adds_up_to_the_score(workdir, capsys):
    *parts, total = printed(workdir, capsys, "--explain=503", "--history=500|501")
    shares = [float(line.split()[0]) for line in parts]
    assert sum(shares) == pytest.approx(float(total.split()[0]), abs=1e-3)
    assert sum("history" in line for line in parts) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a user, a history or both"),
        (["--history="], "history is empty"),
        (["--history=| |"], "history is empty"),
        (["--history=nothing like it"], "is not in the data set"),
        (["--user=100", "--history=nothing like it"], "is not in the data set"),
        (["--all"], "--all needs --out=FILE"),
        (["--user=100", "--out=x.parquet"], "--out goes with --all"),
        (["--all", "--out=x.txt"], "unknown format"),
        (["--all", "--user=100", "--out=x.csv"], "--all cannot be combined with --user"),
        (["--all", "--diversity=0.5", "--out=x.csv"], "cannot be combined with --diversity"),
        (["--similar=500", "--exclude=x"], "--similar cannot be combined with --exclude"),
        (["--similar=500", "--explain=501"], "--similar cannot be combined with --explain"),
        (["--explain=500", "--history=501", "--include-seen"], "with --include-seen"),
        (["--users=missing.txt", "--out=x.csv"], "missing.txt can't be read"),
        (["--all", "--out=x.csv", "--only=colour=red"], "no column 'colour'"),
        (["--all", "--out=x.csv", "--only=genre=red"], "no item has exactly this value"),
        (["--user=100", "--exclude=missing.txt"], "missing.txt can't be read"),
        (["--user=100", "-k", "0"], "k is 0"),
        (["--all", "--out=x.csv", "-k", "0"], "k is 0"),
        (["--user=100", "--diversity=2"], "diversity is 2.0"),
        (["--similar="], "--similar is empty"),
        (["--users=empty.txt", "--out=x.csv"], "empty.txt names no user"),
        (["--user=100", "--only=empty.txt"], "the filters leave no item"),
        (["--all", "--out=missing/x.csv"], "missing/x.csv can't be written"),
        (["--all", "--out=folder.csv"], "folder.csv can't be written"),
        (["--all", "--out=x.csv", "--only=genre=dramas"], "did you mean 'drama'?"),
        (["--similar=nobody"], "is not in the data set"),
        (["--explain=500"], "give a user, a history or both"),
    ],
)
def test_bad_arguments_are_one_line(workdir, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder.csv").mkdir()
    assert recommend.main([f"--workdir={workdir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "folder.csv"]


def test_an_export_of_another_data_set_is_refused(workdir, tmp_path, capsys):
    toy.dataset(split="temporal").save(tmp_path / "dataset")
    export = store.read(workdir / "export" / store.FILE)
    store.write(tmp_path / "export" / store.FILE, export)
    assert recommend.main([f"--workdir={tmp_path}", "--user=100"]) == 2
    assert "is of another data set" in capsys.readouterr().err


def test_a_run_on_prepared_data_names_what_can_be_loaded(tmp_path, capsys):
    note = tmp_path / "dataset/identity.json"
    note.parent.mkdir()
    note.write_text('{"reader": "prepared", "files": [], "eval_users": 0}')
    assert recommend.main(["--workdir", str(tmp_path), "--user", "7"]) == 2
    assert "kd_jax.runtime.load(" in capsys.readouterr().err


def test_a_reader_that_stops_is_no_error(workdir):
    """As ``recommend … | head -1``: no traceback, the status of a closed pipe."""
    command = [sys.executable, "-m", "kd_jax.recommend", f"--workdir={workdir}", "--user=100"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")
