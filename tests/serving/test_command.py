"""python -m kd_jax.recommend: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses

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
        (["--all"], "--out=FILE"),
        (["--user=100", "--out=x.parquet"], "--out=FILE"),
        (["--all", "--out=x.txt"], "unknown format"),
        (["--all", "--user=100", "--out=x.csv"], "--all is a request of its own"),
        (["--users=missing.txt", "--out=x.csv"], "missing.txt can't be read"),
        (["--all", "--out=x.csv", "--only=colour=red"], "no column 'colour'"),
        (["--all", "--out=x.csv", "--only=genre=red"], "no item has this value"),
        (["--user=100", "--exclude=missing.txt"], "missing.txt can't be read"),
        (["--user=100", "-k", "0"], "k is 0"),
        (["--all", "--out=x.csv", "-k", "0"], "k is 0"),
        (["--user=100", "--diversity=2"], "diversity is 2.0"),
        (["--similar=nobody"], "is not in the data set"),
        (["--explain=500"], "give a user, a history or both"),
    ],
)
def test_bad_arguments_are_one_line(workdir, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert recommend.main([f"--workdir={workdir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_export_of_another_data_set_is_refused(workdir, tmp_path, capsys):
    toy.dataset(split="temporal").save(tmp_path / "dataset")
    export = store.read(workdir / "export" / store.FILE)
    store.write(tmp_path / "export" / store.FILE, export)
    assert recommend.main([f"--workdir={tmp_path}", "--user=100"]) == 2
    assert "is of another data set" in capsys.readouterr().err
