"""Whole runs on a small MIND: what was shown is learned from, judged and reported."""

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from configs import mind as mind_config
from helpers import mind
from helpers.runs import ROOT, config, launched, metrics_of, run
from helpers.terms import loss_of, term
from helpers.toy import refused
from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.data import dataset, readers
from kd_jax.data.examples.shown import shown_examples
from kd_jax.data.raw import RawData
from kd_jax.data.splits import TRAIN
from kd_jax.evaluation.impressions import METRICS
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.objectives import objective
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import TrainedModels


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mind")
    mind.write(folder / "train")
    mind.write(folder / "dev", days=(13,), users=range(28), seed=1)
    return {"path": str(folder / "train"), "dev_path": str(folder / "dev")}


@pytest.fixture(scope="module")
def data(folders):
    return dataset.build(readers.read("mind", folders), split="column", missing_text="id")


@pytest.mark.parametrize("example_kind", ["user", "all"])
def test_examples_are_the_lists_with_the_history_before_them(data, example_kind):
    length = 5
    examples = shown_examples(data, history=length, example_kind=example_kind)
    batch = examples.gather(np.arange(examples.size))
    shown = data.impressions
    train = np.flatnonzero((shown.split == TRAIN) & shown.mixed)
    assert examples.size == len(train) == 72
    positions = length if example_kind == "all" else 1
    assert batch["shown"].shape[:2] == batch["weights"].shape == (72, positions)
    assert (batch["weights"][:, :-1] == 0).all() and (batch["weights"][:, -1] == 1).all()
    for row, place in enumerate(train):
        user, time = shown.user[place], shown.timestamp[place]
        part = slice(shown.indptr[place], shown.indptr[place + 1])
        items, clicked = shown.item[part], shown.clicked[part]
        got, count = batch["shown"][row, -1], batch["shown_clicks"][row, -1]
        assert set(got[:count]) == set(items[clicked]) and count == clicked.sum()
        assert sorted(got[count:][got[count:] != PAD]) == sorted(items[~clicked])
        mine = (data.user == user) & (data.split == TRAIN) & (data.timestamp < time)
        want = data.item[mine][-length:]
        assert batch["history"][row][batch["history"][row] != PAD].tolist() == want.tolist()
        targets = batch["targets"][row, -1]
        assert set(targets[targets != PAD]) == set(items[clicked])
        assert batch["target_weights"][row, -1].sum() == pytest.approx(1.0)


def test_long_lists_keep_their_clicks_and_some_of_the_others(data, monkeypatch):
    from kd_jax.data.examples import shown as module

    monkeypatch.setattr(module, "MAX_SHOWN", 3)
    monkeypatch.setattr(module, "MAX_CLICKED", 1)
    examples = shown_examples(data, history=2, example_kind="last")
    batch = examples.gather(np.arange(examples.size))
    assert batch["shown"].shape == (72, 1, 3) and (batch["shown"] != PAD).all()
    lists = data.impressions.select((data.impressions.split == TRAIN) & data.impressions.mixed)
    for row in range(72):
        part = slice(lists.indptr[row], lists.indptr[row + 1])
        first, *others = batch["shown"][row, 0]
        assert first in lists.item[part][lists.clicked[part]]
        assert set(others) <= set(lists.item[part][~lists.clicked[part]])


def test_a_click_on_what_a_user_is_evaluated_with_is_no_example():
    """data.repeats='last' moves the interaction of an early click to a later split."""
    rows = [("a", item, time) for time, item in enumerate("yxzvwx")]
    rows += [("b", item, time) for time, item in enumerate("yxzvw")]
    lists = [("a", 1, ["x", "w"]), ("a", 2, ["z", "w"]), ("b", 1, ["x", "w"])]
    raw = RawData(
        "toy",
        pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row"),
        pl.DataFrame({"item": list("vwxyz"), "title": "a film"}),
        impressions=pl.DataFrame(
            [(*row, [True, False]) for row in lists],
            ["user", "timestamp", "items", "clicked"],
            orient="row",
        ),
    )
    options = {"split": "leave_one_out", "min_user_interactions": 1, "min_item_interactions": 1}
    for repeats, want in (("first", "xzx"), ("last", "zx")):
        found = dataset.build(raw, repeats=repeats, **options)
        examples = shown_examples(found, history=2, example_kind="last")
        targets = examples.gather(np.arange(examples.size))["targets"].ravel()
        assert "".join(found.item_ids.gather(targets)) == want


def test_the_softmax_is_over_the_shown_items_alone():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 1, 4)), rng.normal(size=(9, 4)), rng.normal(size=9)
    student = Factors(*(jnp.asarray(part, jnp.float32) for part in parts))
    shown = np.array([[[4, 2, 7, PAD]], [[1, 8, 3, 5]], [[0, PAD, PAD, PAD]]])
    clicks, weights = np.array([[1], [2], [0]]), np.array([[1.0], [3.0], [0.0]])
    batch = {
        "shown": jnp.asarray(shown, jnp.int32),
        "shown_clicks": jnp.asarray(clicks, jnp.int32),
        "weights": jnp.asarray(weights, jnp.float32),
        "targets": jnp.zeros((3, 1, 1), jnp.int32),
        "target_weights": jnp.ones((3, 1, 1)),
    }
    scores = (parts[0] @ parts[1].T + parts[2])[:, 0]
    want = 0.0
    for row, weight in ((0, 0.25), (1, 0.75)):
        items = shown[row, 0][shown[row, 0] != PAD]
        log_p = scores[row, items] - np.log(np.exp(scores[row, items]).sum())
        want -= weight * log_p[: clicks[row, 0]].mean()
    terms = (term("ce", items="shown", name="clicks"), term("ce", 0.5, name="all"))
    for model in (student, student.dense()):
        total, means = loss_of(terms, model, batch)
        assert float(means["clicks"]) == pytest.approx(want, rel=1e-5)
        whole = float(means["clicks"] + 0.5 * means["all"])
        assert float(total) == pytest.approx(whole, rel=1e-5)


@pytest.fixture(scope="module")
def finished(folders, world, tmp_path_factory):
    """A run of configs/mind.py in small, whose teacher learns from what was shown, too."""
    c = mind_config.get_config("runlocal")
    c.teacher.model = config(world).teacher.model
    c.update_from_flattened_dict(
        {f"data.mind.{name}": path for name, path in folders.items()}
        | {"teacher.lm.weights": str(world / "bert"), "mesh.data": 1, "eval.bootstrap": 50}
        | {"teacher.popularity.enabled": False, "teacher.clicks.items": "shown"}
        | {f"{x}.optimizer.{n}": 4 for x in ("teacher", "student") for n in ("steps", "eval_every")}
        | {f"{x}.optimizer.batch_size": 8 for x in ("teacher", "student")}
        | {"stages": ("data", "teacher", "labels", "distilled", "evaluate", "report")}
        | {"eval.metrics": ("ndcg",), "eval.ks": (10,)}
    )
    c.student.two_tower.update({"dim": 8, "hidden": 8, "history": 6})
    workdir = tmp_path_factory.mktemp("shown") / "run"
    run(c, workdir)
    return workdir


@pytest.mark.slow
def test_every_model_is_judged_per_impression_in_both_splits(finished):
    report = metrics_of(finished)
    assert {row["name"] for row in report["models"]} == {
        "popularity",
        "trending",
        "item_knn",
        "teacher",
        "distilled",
    }
    for row in report["models"]:
        for split, count in (("valid", 24), ("test", 28)):
            found = row["impressions"][split]
            assert found["impressions"] == found["users"] == count
            assert all(0 <= found[name] <= 1 for name in METRICS)
    page = (finished / "report/index.html").read_text()
    assert "28 impressions of 28 users" in page and "NDCG@5" in page


def test_labels_of_lists_are_others_than_those_of_the_usual_examples(folders, world, tmp_path):
    """Both have a row per example, and the rows of one mean nothing in the other."""

    def identities(items):
        fields = {"distill.terms.clicks.items": items, "student.name": "sasrec"}
        experiment = Experiment(config(world, **fields), tmp_path, None)
        experiment.dataset = dataset.build(readers.read("mind", folders), split="column")
        store = LabelStore(TrainedModels(experiment))
        return [labels.identity for labels in store.of(ROLES["distilled"], (0,))]

    (usual,), (lists,) = identities("all"), identities("shown")
    assert usual != lists and [lists] == identities("shown")


def test_what_cannot_learn_from_lists_is_refused(folders, world, tmp_path):
    def terms(role, **fields):
        c = config(world, **fields)
        with_log = Experiment(c, tmp_path, None)
        if fields.get("data.reader") == "mind":
            with_log.dataset = dataset.build(readers.read("mind", folders), split="column")
        else:
            with_log.dataset = dataset.build(
                readers.read("files", c.data.files.to_dict()), split="leave_one_out"
            )
        return objective(with_log, ROLES[role])

    shown = {"student.clicks.items": "shown", "teacher.clicks.items": "shown"}
    (one,) = terms("student", **shown, **{"data.reader": "mind"})
    assert one.shown
    where = "student.clicks.items='shown'"
    refused(lambda: terms("student", **shown), where, "no impressions")
    on_mind = shown | {"data.reader": "mind"}
    trained = {"teacher.lm.train": "full"}
    refused(lambda: terms("teacher", **on_mind, **trained), "teacher.lm.train='full'")
    trends = {"teacher.popularity.enabled": True}
    refused(lambda: terms("teacher", **on_mind, **trends), "teacher.popularity.enabled=True")
    written = {"teacher.model.context": "text"}
    refused(lambda: terms("teacher", **on_mind, **written), "teacher.model.context='text'")
    soft = {"data.reader": "mind", "distill.terms.soft.items": "shown"}
    refused(lambda: terms("distilled", **soft), "distill.terms.soft.items='shown'", "teacher")


def test_types_of_events_are_weighed_on_the_command_line(tmp_path, monkeypatch):
    rows = [(u, i, 10 * i, "add to cart") for u in range(3) for i in range(4)]
    rows += [(0, 2, 35, "view"), (1, 9, 5, "undo"), (2, 1, 99, "hate")]
    lines = "".join(f"{u},{i},{t},{what}\n" for u, i, t, what in rows)
    (tmp_path / "log.csv").write_text(f"user,item,timestamp,action\n{lines}")
    arguments = [
        f"--config={ROOT / 'configs/csv.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.files.path={tmp_path / 'log.csv'}",
        "--config.data.files.items_path=",
        "--config.data.files.columns.event=action",
        "--config.data.min_interactions=1",
        "--config.data.missing_text=id",
        "--config.stages=data",
    ]
    assert launched(monkeypatch, *arguments) == 2  # there are no weights
    weights = "--config.data.events=add to cart=2, view=0.5, undo=0, hate=-1"
    assert launched(monkeypatch, *arguments, weights) in (0, None)
    found = dataset.load(tmp_path / "run/dataset")
    assert found.weight.tolist() == [2.0] * 11 and found.disliked[1].tolist() == [1]
    made = (tmp_path / "run/dataset/identity.json").read_text()
    assert "hate=-1" in made
