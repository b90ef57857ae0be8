"""Runs on newer data that start from an older run (``init_from``)."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx

from helpers import toy
from helpers.runs import config, run
from helpers.toy import refused
from kd_jax.core.logging import Log
from kd_jax.experiment import pipeline
from kd_jax.experiment.builders import build
from kd_jax.experiment.earlier import RIDGE, with_new_items
from kd_jax.experiment.new_users import history_map, map_items
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import open_workdir
from kd_jax.models.scorer import rows_by_id
from kd_jax.serving.text_map import fit
from kd_jax.training import loop
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.recipe import Recipe

NEW_USER, NEW_ITEM, OLD_USER, OLD_ITEM = 103, 503, 139, 523
NO_STEPS = {"init_steps.teacher": 0.0, "init_steps.student": 0.0}
MODELS = ("teacher", "control_teacher", "distilled")
STAGES = ("data", "teacher", "control_teacher", "labels", "distilled")


def test_new_items_have_the_mean_row_of_the_carried_ones():
    table = np.array([[1.0, 0.0], [9.0, 9.0], [3.0, 4.0]], np.float32)
    found = with_new_items(table, np.array([5, -1, 0]))
    np.testing.assert_array_equal(found, [[1, 0], [2, 2], [3, 4]])
    np.testing.assert_array_equal(with_new_items(table, np.full(3, -1)), table)


def test_new_items_have_the_row_that_a_text_map_makes_of_their_text():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3)).astype(np.float32)
    texts = [f"{'red' if n % 2 else 'blue'} {'big' if n % 3 else 'small'}" for n in range(40)]
    rows = np.where(np.arange(40) % 5 == 0, -1, np.arange(40))
    known = rows >= 0
    carried = [texts[n] for n in np.flatnonzero(known)]
    text_map = fit(carried, table[known], np.zeros(32), RIDGE)
    found = with_new_items(table, rows, texts)
    np.testing.assert_array_equal(found[known], table[known])
    np.testing.assert_allclose(found[~known], text_map(texts)[0][~known], rtol=1e-6)
    assert not np.allclose(found[~known], table[known].mean(0))


def test_a_recipe_is_shortened_to_whole_evaluations():
    recipe = Recipe(480, 256, 0.02, "cosine", warmup_steps=20, eval_every=30)
    short = recipe.shortened(0.2)
    assert (short.steps, short.warmup_steps, short.eval_every) == (120, 4, 30)
    shorter = recipe.shortened(0.01)
    assert (shorter.steps, shorter.warmup_steps, shorter.eval_every) == (5, 0, 5)
    assert recipe.shortened(1.0) == recipe
    slower = dataclasses.replace(recipe, lm_learning_rate=1e-3).shortened(1.0, 0.25)
    assert (slower.learning_rate, slower.lm_learning_rate) == (0.005, 0.00025)


def write(folder, older):
    """The toy data: the older has another last user and item, and not the newer ones."""
    world = toy.raw(ratings=True)
    lacks = ("user", NEW_USER, "item", NEW_ITEM) if older else ("user", OLD_USER, "item", OLD_ITEM)
    kept = (pl.col(lacks[0]) != lacks[1]) & (pl.col(lacks[2]) != lacks[3])
    rows = world.interactions.filter(kept & (pl.col("timestamp") < (400 if older else 999)))
    folder.mkdir(parents=True)
    rows.write_csv(folder / "interactions.csv")
    world.items.filter(pl.col("item") != lacks[3]).write_csv(folder / "items.csv")
    toy.tiny_bert(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    return {name: write(folder / name, name == "old") for name in ("old", "new")}


@pytest.fixture(scope="module")
def older(worlds, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("older") / "run"
    # The map of new users is fitted by the evaluation.
    run(config(worlds["old"], stages=(*STAGES, "evaluate")), workdir)
    return workdir


def newer(worlds, older, **fields):
    return config(worlds["new"], stages=STAGES, init_from=str(older), **fields)


@pytest.fixture(scope="module")
def started(worlds, older, tmp_path_factory):
    """A run without a step of training, and the hash of the older run before it."""
    workdir = tmp_path_factory.mktemp("started") / "run"
    before = files(older)
    run(newer(worlds, older, **NO_STEPS), workdir)
    return workdir, before


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def trained(workdir, role):
    step = json.loads((workdir / role / "result.json").read_text())["best_step"]
    return step, Checkpoints(workdir / role).plain(step)["params"]


@pytest.mark.slow
def test_a_run_without_steps_has_the_rows_of_the_older_by_id(older, started):
    workdir, before = started
    assert files(older) == before, "the older run must only be read"
    sets = [pl.read_parquet(path / "dataset/items.parquet")["id"] for path in (older, workdir)]
    users = [pl.read_parquet(path / "dataset/users.parquet")["id"] for path in (older, workdir)]
    ids = {"item": sets, "user": users}
    assert NEW_ITEM in sets[1] and OLD_ITEM not in sets[1] and OLD_ITEM in sets[0]
    with Log(workdir / "log.jsonl", "ndcg@10") as log:
        models = open_workdir(workdir, log)
        for role in MODELS:
            parts = build(models.experiment, ROLES[role], 0)
            kinds = rows_by_id(parts.graphdef)
            step, params = trained(workdir, role)
            assert step == 0
            _, want = trained(older, role)
            assert params.keys() == want.keys()
            for name, value in params.items():
                if name not in kinds:
                    jax.tree.map(np.testing.assert_array_equal, value, want[name])
                    continue
                there, here = (series.to_list() for series in ids[kinds[name]])
                for at, one in enumerate(here):
                    if one in there and want[name][there.index(one)].any():
                        np.testing.assert_array_equal(value[at], want[name][there.index(one)])


@pytest.mark.slow
def test_rows_of_a_new_user_are_those_of_the_older_map(older, started):
    workdir, _ = started
    step, _ = trained(older, "distilled")
    known = history_map(older / "distilled", step)
    with Log(workdir / "log.jsonl", "ndcg@10") as log:
        experiment = open_workdir(workdir, log).experiment
        parts = build(experiment, ROLES["distilled"], 0)
        _, params = trained(workdir, "distilled")
        model = nnx.merge(parts.graphdef, params, parts.constants)
        at = experiment.dataset.user_ids.to_list().index(NEW_USER)
        indptr, items = experiment.dataset.targets(0)
    history = items[indptr[at] : indptr[at + 1]][None]
    want = known(history, map_items(model))[0]  # by the runtime, not by the code of the fit
    np.testing.assert_allclose(params["user"][at], want, rtol=1e-5, atol=1e-6)
    assert want.any()


@pytest.mark.slow
def test_an_older_teacher_has_the_same_vectors_of_its_items(older, started):
    """Its tower's weights belong to the whitening of the older catalogue."""
    workdir, _ = started
    vectors = {}
    for path in (older, workdir):
        with Log(workdir / "log.jsonl", "ndcg@10") as log:
            models = open_workdir(path, log)
            found = models.open(ROLES["teacher"], 0).model.items()[0]
            ids = models.experiment.dataset.item_ids.to_list()
            vectors[path] = dict(zip(ids, np.asarray(found), strict=True))
    for one in vectors[older].keys() & vectors[workdir].keys():
        np.testing.assert_allclose(vectors[workdir][one], vectors[older][one], atol=1e-5)
    assert vectors[workdir][NEW_ITEM].any()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(worlds, older, tmp_path, monkeypatch):
    fields = {"init_steps.teacher": 0.5, "init_steps.student": 1.0}
    run(newer(worlds, older, **fields), tmp_path / "whole")
    validate, calls = loop._Loop._validate, []

    def killed(self, bar):
        validate(self, bar)
        calls.append(self.step)
        if len(calls) in (1, 4, 7):
            self.job.checkpoints.wait()
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_validate", killed)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="killed"):
                pipeline.main(newer(worlds, older, **fields), tmp_path / "killed")
    run(newer(worlds, older, **fields), tmp_path / "killed")
    for role in MODELS:
        (step, want), (again, found) = (trained(tmp_path / n, role) for n in ("whole", "killed"))
        assert step == again
        jax.tree.map(np.testing.assert_array_equal, found, want)
    assert (tmp_path / "killed/metrics.jsonl").read_text().count("valid") > len(MODELS)


@pytest.mark.slow
def test_an_older_run_that_does_not_fit_is_refused(worlds, older, started, tmp_path):
    def refuse(*fragments, since=older, **fields):
        workdir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        call = lambda: pipeline.run(newer(worlds, since, **fields), workdir)  # noqa: E731
        refused(call, "init_", *fragments)
        assert not (workdir / "origin").exists()

    refuse("is not the workdir of a run", since=tmp_path / "nothing")
    refuse("student.mf.dim: 8 there, 16 here", **{"student.mf.dim": 16})
    refuse("student.name: mf there, mlp here", **{"student.name": "mlp"})
    refuse("teacher.model.blocks: 1 there, 2 here", **{"teacher.model.blocks": 2})
    refuse("task='rank', here it is 'rate'", task="rate")
    refuse("init_steps.student=2.0 must be from 0 to 1", **{"init_steps.student": 2.0})
    strings = tmp_path / "strings"
    shutil.copytree(worlds["new"], strings)
    rows = pl.read_csv(strings / "interactions.csv")
    rows.with_columns(user="u" + pl.col("user").cast(pl.String)).write_csv(
        strings / "interactions.csv"
    )
    refuse("user ids are String here and Int64 there", **{
        "data.files.path": str(strings / "interactions.csv")
    })  # fmt: skip
    workdir, _ = started
    plain = config(worlds["new"], stages=STAGES)
    refused(lambda: pipeline.run(plain, workdir), "start: ", "None here")
    changed = tmp_path / "changed"
    shutil.copytree(older, changed)
    own = config(worlds["old"], stages=STAGES, init_from=str(changed))
    refused(lambda: pipeline.run(own, changed), "is the workdir itself")
    result = changed / "distilled/result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"best_step": 99}))
    refused(
        lambda: pipeline.run(newer(worlds, changed, **NO_STEPS), workdir),
        "started from other models",
    )


@pytest.mark.slow
def test_what_the_older_run_lacks_starts_fresh(worlds, older, tmp_path, capsys):
    stages = ("data", "student")
    run(config(worlds["new"], stages=stages, init_from=str(older)), tmp_path / "run")
    assert "has no trained student of seed 0: it starts fresh" in capsys.readouterr().out
    run(config(worlds["new"], stages=stages), tmp_path / "plain")
    for name in ("result.json", "identity.json"):
        found, want = (
            json.loads((tmp_path / run / "student" / name).read_text()) for run in ("run", "plain")
        )
        assert {**found, "seconds": 0} == {**want, "seconds": 0}
