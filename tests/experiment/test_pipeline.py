"""Whole runs on a toy data set.

Every stage runs twice; both tasks, every kind of teacher and student, and user errors are included.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx
from safetensors.numpy import load_file

import kd_jax
import launch as launcher
from helpers.runs import ROOT, config, flags, launched, metrics_of, run
from kd_jax import recommend as recommend_command
from kd_jax.core import process
from kd_jax.core.errors import InputError
from kd_jax.core.files import locked
from kd_jax.core.logging import Log
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.data.text import item_texts
from kd_jax.devices import sharding
from kd_jax.distillation import teachers
from kd_jax.experiment import pipeline, roles
from kd_jax.experiment.build_student import spec_of
from kd_jax.experiment.builders import build
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import objective as objective_of
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import open_workdir
from kd_jax.models.language import hf
from kd_jax.models.scorer import split
from kd_jax.models.students import build_student
from kd_jax.runtime import compared
from kd_jax.runtime import load as load_runtime
from kd_jax.training import checkpoint, loop
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.compiled import compiled_step
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(config(world, seeds=(0, 3)), workdir)
    return workdir


def test_the_workdir_keeps_its_contract(finished):
    for name in (
        "config.json",
        "manifest.json",
        "dataset",
        "metrics.jsonl",
        "report/metrics.json",
        "report/index.html",
        "labels",
        "export",
        "teacher/checkpoints",
        "distilled/checkpoints",
        "distilled.seed3/checkpoints",
    ):
        assert (finished / name).exists(), name
    report = metrics_of(finished)
    assert report["schema"] == 1
    rows = {(m["name"], m["seed"]): m for m in report["models"]}
    simple = {("popularity", None), ("item_knn", None)}
    assert rows.keys() == simple | {(n, s) for n in ROLES for s in (0, 3)}
    assert rows["item_knn", None]["setting"].keys() == {"neighbours", "shrink"}
    for (name, _), row in rows.items():
        assert 0 <= row["test"]["ndcg@10"] <= 1 and 0 <= row["valid"]["recall@5"] <= 1
        if name in ROLES:
            assert row["users_per_second"] > 0 and row["train_seconds"] > 0
    assert rows["student", 0]["params"] == rows["distilled", 0]["params"] == 40 * 8 + 24 * 8 + 24
    bert = sum(
        tensor.size
        for tensor in load_file(
            Path(json.loads((finished / "config.json").read_text())["teacher"]["lm"]["weights"])
            / "model.safetensors"
        ).values()
    )
    assert rows["teacher", 0]["params"] > bert
    gain = report["gain"]["ndcg@10"]
    mean = {
        n: np.mean([rows[n, s]["test"]["ndcg@10"] for s in (0, 3)])
        for n in ("student", "control", "distilled")
    }
    assert gain["relative"] == pytest.approx(mean["distilled"] / mean["student"] - 1, rel=1e-4)
    assert gain["lm_share"]["relative"] == pytest.approx(
        mean["distilled"] / mean["control"] - 1, rel=1e-4
    )
    assert gain["ci95"][0] <= gain["relative"] <= gain["ci95"][1]
    assert gain["over_item_knn"]["relative"] == pytest.approx(
        mean["distilled"] / rows["item_knn", None]["test"]["ndcg@10"] - 1, rel=1e-4
    )
    lead = np.mean([rows["teacher", s]["test"]["ndcg@10"] for s in (0, 3)]) - mean["student"]
    assert gain["transfer"]["lead"] == pytest.approx(lead, abs=1e-6)
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["model"] in ROLES


def test_a_second_run_redoes_nothing_and_changes_nothing(finished, world, capsys):
    before = {
        p: p.stat().st_mtime_ns
        for p in finished.rglob("*")
        if "checkpoints" in str(p) and p.is_file()
    }
    old = metrics_of(finished)
    capsys.readouterr()
    run(config(world, seeds=(0, 3)), finished)
    printed = capsys.readouterr().out
    assert printed.count("up to date") == 10 and "labels:" not in printed
    assert before == {
        p: p.stat().st_mtime_ns
        for p in finished.rglob("*")
        if "checkpoints" in str(p) and p.is_file()
    }
    assert metrics_of(finished)["models"] == old["models"]  # evaluations are kept
    shutil.rmtree(finished / "cache/evaluations")
    run(config(world, seeds=(0, 3), stages=("data", "evaluate")), finished)
    for one, other in zip(old["models"], metrics_of(finished)["models"], strict=True):
        assert one["test"] == other["test"]


def test_exported_vectors_and_weights_give_the_scores_of_the_recommender(finished):
    recommender = kd_jax.load(finished)
    users = pl.read_parquet(finished / "export/user_vectors.parquet")
    items = pl.read_parquet(finished / "export/item_vectors.parquet")
    scores = (
        users["vector"].to_numpy() @ items["vector"].to_numpy().T + items["bias"].to_numpy()[None]
    )
    user = users["user"][7]
    best = recommender.recommend(user=user, k=5)
    index = {item: i for i, item in enumerate(items["item"])}
    np.testing.assert_allclose(
        best["score"], scores[7, [index[i] for i in best["item"]]], rtol=1e-5
    )
    data = recommender.dataset
    seen = set(data.item_ids[data.item[data.indptr[7] : data.indptr[8]]])
    unseen = [(s, i) for s, i in zip(scores[7], items["item"], strict=True) if i not in seen]
    assert best["item"].to_list() == [i for _, i in sorted(unseen, key=lambda pair: -pair[0])[:5]]
    tensors = load_file(finished / "export/student.safetensors")
    assert tensors.keys() == {"user", "item", "bias"}
    np.testing.assert_array_equal(tensors["item"], items["vector"].to_numpy())


def test_the_compared_models_score_as_they_were_trained_with_all_interactions(finished):
    main = load_runtime(finished)
    listed = [one.name for one in compared.described(finished / "export", main.export)]
    assert listed == ["teacher", "student", "control", "distilled"]
    assert compared.load(finished / "export", "distilled", main.export) is None
    with Log(finished / "unused", "ndcg@10", silent=True) as log:
        models = open_workdir(finished, log)
    for name in listed[:-1]:
        role, found = roles.ROLES[name], compared.load(finished / "export", name, main.export)
        opened = models.open(role, 0)
        trained = opened.model
        data = models.experiment.dataset
        indptr, items = data.history(TEST + 1)
        users = np.arange(data.num_users, dtype=np.int32)
        if not role.is_teacher:
            trained.user[...] = with_newest(found, data, np.asarray(trained.user[...]))
        windows = last_items(indptr, items, opened.parts.history)
        scores = trained.scores({"user": users, "history": windows}, trained.items())
        vectors = found.vectors(users.tolist(), [found.seen(user) for user in users])
        known = np.asarray(scores.contexts).any(1)
        # The vectors are stored in float16.
        np.testing.assert_allclose(
            found.scores(vectors)[known], np.asarray(scores.dense())[known], atol=0.02
        )
        assert (found.export.text_map is None) == role.is_teacher


def with_newest(runtime, data, trained):
    """Trained user vectors, moved by what the interactions after training do to the map."""
    train, whole = data.history(1), data.history(TEST + 1)
    rows = [np.split(items, indptr[1:-1]) for indptr, items in (train, whole)]
    before, after = (runtime.contexts(histories) for histories in rows)
    return np.where(trained.any(1)[:, None], trained + after - before, after)


def test_known_users_are_served_with_their_newest_interactions(finished):
    runtime = load_runtime(finished)
    data = kd_jax.load(finished).dataset
    trained = load_file(finished / "export/student.safetensors")["user"]
    wanted = with_newest(runtime, data, trained)
    np.testing.assert_allclose(runtime.export.user_vectors, wanted, rtol=1e-4, atol=1e-5)
    moved = np.flatnonzero(np.abs(wanted - trained).max(1) > 1e-3)
    assert set(moved) >= set(data.user[data.split > 0])
    (row,) = [r for r in metrics_of(finished)["models"] if r["name"] == "distilled"][:1]
    (known,) = row["new_users"].values()
    assert row["served"]["test"]["ndcg@10"] == pytest.approx(known["updated"], abs=1e-6)


def test_a_checkpoint_is_read_as_documented(finished):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.S)
    (code,) = (block for block in blocks if "orbax" in block)
    assert "kd_jax" not in code and code.count("runs/quickstart/") == 1
    names: dict[str, object] = {}
    exec(code.replace("runs/quickstart", str(finished)), names)
    tensors = load_file(finished / "export/student.safetensors")
    assert names["params"].keys() == tensors.keys()
    for name, value in names["params"].items():
        np.testing.assert_array_equal(value, tensors[name])


def test_recommendations_for_a_new_user_follow_the_history(finished, capsys):
    recommender = kd_jax.load(finished)
    titles = recommender.dataset.titles
    one = recommender.recommend(history=titles[0:12:4], k=3)
    other = recommender.recommend(history=titles[1:13:4], k=3)
    assert one["title"].to_list() != other["title"].to_list()
    assert not set(one["title"]) & set(titles[0:12:4])
    assert (
        recommender.recommend(history=[recommender.dataset.item_ids[0]], k=99).height
        == len(titles) - 1
    )
    arguments = ["--workdir", str(finished), "--history", f"{titles[0]}|{titles[4]}", "-k", "2"]
    assert recommend_command.main(arguments) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 2
    assert recommend_command.main(["--workdir", str(finished), "--user", "107"]) == 0


def test_students_are_evaluated_as_if_their_users_were_new(finished):
    rows = {row["name"]: row for row in metrics_of(finished)["models"]}
    for role in roles.students():
        (values,) = rows[role.name]["new_users"].values()
        assert values.keys() == {"1", "3", "10", "all", "known", "updated"}
        assert values["known"] == pytest.approx(rows[role.name]["test"]["ndcg@10"], abs=1e-6)
        assert (finished / role.name / "history_map.safetensors").exists()
    assert "new_users" not in rows["teacher"] and "new_users" not in rows["popularity"]
    assert "served by their history" in (finished / "report/index.html").read_text()


def test_the_exported_students_items_are_evaluated_as_if_they_were_new(finished):
    rows = [row for row in metrics_of(finished)["models"] if "new_items" in row]
    (row,) = rows
    assert (row["name"], row["seed"]) == ("distilled", 0)
    data = kd_jax.load(finished).dataset
    if data.warm.all():
        assert row["new_items"] == {}
    else:
        (values,) = row["new_items"].values()
        assert values["trained"] == row["slices"]["cold_only"]["ndcg@10"]
        assert 0 <= values["text"] <= 1
    assert (finished / "distilled/text_map.safetensors").exists()


def test_the_exported_students_vectors_are_measured_in_smaller_sizes(finished):
    rows = [row for row in metrics_of(finished)["models"] if "smaller" in row]
    assert [(row["name"], row["seed"]) for row in rows] == [("distilled", 0), ("distilled", 3)]
    for row in rows:
        first = row["smaller"]["sizes"][0]
        assert first["ndcg@10"] == row["test"]["ndcg@10"] and first["bytes"] == row["bytes"]
        assert all(size["bytes"] < row["bytes"] for size in row["smaller"]["sizes"][1:])
    assert rows[0]["new_user_seconds"] > 0
    warm = kd_jax.load(finished).dataset.warm.all()  # then no item was evaluated as a new one
    assert warm or rows[0]["new_item_seconds"] > 0
    assert all(row["users_per_core_second"] > 0 for row in rows)
    page = (finished / "report/index.html").read_text()
    assert "Quality and bytes" in page and "nothing is trained for that" in page


def test_a_new_item_is_recommended_from_its_text(finished):
    recommender = kd_jax.load(finished)
    data = recommender.dataset
    (text,) = item_texts(data.items[3:4], data.items.columns)
    new = 10**6 if data.item_ids.dtype.is_integer() else "new item"
    grown = recommender.add_items([new], ["A new title"], [text])
    everything = grown.recommend_all(k=data.num_items + 1)
    mine = everything.filter(pl.col("item") == new)
    assert mine.height == data.num_users and set(mine["title"]) == {"A new title"}
    assert recommender.recommend_all(k=data.num_items + 1).filter(pl.col("item") == new).is_empty()
    export = recommender.runtime.export
    vectors, _ = export.text_map([text])
    fitted = np.corrcoef(vectors[0], export.item_vectors[3])[0, 1]
    others = [np.corrcoef(vectors[0], row)[0, 1] for row in export.item_vectors]
    assert fitted > np.mean(others)


def test_a_known_history_ranks_like_the_trained_user(finished):
    recommender = kd_jax.load(finished)
    data = recommender.dataset
    indptr, items = data.history(1)
    overlaps = []
    for user in range(20):
        trained = recommender.recommend(user=data.user_ids[user], k=8)["item"].to_list()
        history = data.item_ids[items[indptr[user] : indptr[user + 1]]].to_list()
        new = recommender.recommend(history=history, k=8)["item"].to_list()
        overlaps.append(len(set(trained) & set(new)) / 8)
    assert np.mean(overlaps) > 0.7  # by chance: 8 of 14 unseen items each, 0.57


@pytest.mark.parametrize(("ask", "message"), [
    ({"user": 9999}, "user '9999' is not in the data set"),
    ({"user": "abc"}, "user 'abc' is not in the data set"),
    ({"history": ["no such film"]}, "item 'no such film' is not in the data set"),
    ({"history": ["fillm 1 3"]}, "did you mean .*'film 1 3'"),
    ({"history": []}, "history is empty"),
    ({}, "a user, a history or both"),
    ({"user": 100, "k": 0}, "k is 0"),
])  # fmt: skip
def test_bad_questions_are_answered_with_what_is_wrong(finished, ask, message):
    with pytest.raises(InputError, match=message):
        kd_jax.load(finished).recommend(**ask)


def test_a_workdir_that_is_not_one_is_refused(tmp_path, finished):
    with pytest.raises(InputError, match="is not the workdir of a run"):
        kd_jax.load(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["cp", "-r", finished / "dataset", copy], check=True)
    with pytest.raises(InputError, match=r"runtime\.safetensors is missing; .*launch\.py"):
        kd_jax.load(copy)
    subprocess.run(["cp", "-r", finished / "export", copy], check=True)
    weights = copy / "export/runtime.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match=r"runtime\.safetensors is damaged"):
        kd_jax.load(copy)
    items = copy / "dataset/items.parquet"
    items.write_bytes(items.read_bytes()[:200])
    with pytest.raises(InputError, match=r"dataset/items\.parquet can't be read .*delete"):
        kd_jax.load(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "student.name": "mlp",
            "data.split": "temporal",
            "data.min_rating": 3.0,
            "data.min_interactions": 2,
            "distill.teachers": "all",
        },
        {"student.name": "sasrec", "data.split": "strong", "data.ratios": (0.7, 0.15, 0.15)},
        {
            "student.name": "gru4rec",
            "teacher.model.history": 20,  # as the student's
            "distill.debias": 0.5,
            "distill.terms": {
                "clicks": {"loss": "ce", "items": "warm"},
                "soft": {"loss": "kl"},
                "topology": {"loss": "htd", "weight": 0.1, "groups": 3},
            },
        },
        {
            "teacher.model.item_features": "text+id",
            "distill.labels": "online",
            "teacher.lm.backend": "hf_flax",
            "teacher.lm.normalize": True,
            "teacher.lm.template": "{genre}: {title}",
        },
        {
            "teacher.lm.train": "lora",
            "teacher.optimizer.batch_size": 4,
            "teacher.model.softmax": "sampled",
            "teacher.model.negatives": 4,
            "teacher.model.hard_negatives": 1,
            "teacher.optimizer.accumulate": 2,
            "teacher.lm.remat": True,
        },
        {
            "teacher.lm.train": "top_n",
            "teacher.lm.top_n": 1,
            "teacher.model.context": "text",
            "data.split": "ratio",
        },
    ],
    ids=lambda fields: "-".join(str(v) for v in fields.values() if isinstance(v, str)),
)
@pytest.mark.slow
def test_every_part_that_can_be_chosen_runs(world, tmp_path, fields):
    # The other roles differ in what they learn from: ``finished`` has them all.
    stages = ("data", "teacher", "labels", "distilled", "evaluate", "export", "report")
    run(config(world, stages=stages, **fields), tmp_path / "run")
    names = {row["name"] for row in metrics_of(tmp_path / "run")["models"]}
    assert names == {"popularity", "item_knn", "teacher", "distilled"}
    trained = "teacher.lm.train" in fields
    assert (tmp_path / "run/export/teacher/model.safetensors").exists() == trained
    # A teacher with a trained language model is compared by the vectors of its soft labels.
    beside = (tmp_path / "run/export/compare/teacher.safetensors").exists()
    assert beside == (fields.get("teacher.model.context") != "text")
    if trained:
        hf.load_encoder(tmp_path / "run/export/teacher")
        head = tmp_path / "run/export/teacher/head.safetensors"
        described = json.loads(head.with_suffix(".json").read_text())
        assert described["tensors"].keys() == load_file(head).keys()
        assert "text.up.kernel" in described["tensors"]
        assert described["settings"]["lm"]["train"] == fields["teacher.lm.train"]


@pytest.mark.slow
def test_a_teacher_without_text_has_no_language_model_to_train_or_to_save(world, tmp_path, capsys):
    fields = {
        "teacher.model.item_features": "id",
        "teacher.lm.train": "top_n",
        "teacher.optimizer.steps": 2,
        "teacher.optimizer.eval_every": 2,
    }
    run(config(world, stages=("data", "teacher", "evaluate"), **fields), tmp_path / "run")
    assert (
        pipeline.main(
            config(world, stages=("data", "teacher", "export"), **fields), tmp_path / "run"
        )
        == 2
    )
    assert "nothing to export" in capsys.readouterr().err


def test_of_a_flag_given_twice_the_last_counts():
    given = [
        "launch.py",
        "--config=a.py",
        "--config.seeds=(0,1)",
        "--workdir=x",
        "--config.seeds=(2,)",
    ]
    assert launcher._last(given) == [
        "launch.py",
        "--config=a.py",
        "--workdir=x",
        "--config.seeds=(2,)",
    ]


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"eval": {"select": "recall@10"}}, "no field 'eval.select'"),
        (
            {"student": {"mf": {"dropout": "x"}}},
            "tuned.student: student.mf.dropout is 0.5 now; give another float",
        ),
        (
            {"student": {"mf": {"dropuot": 0.1}}},
            "no field 'student.mf.dropuot'; did you mean 'dropout'",
        ),
        ({"student": {"mf": 0.1}}, "student.mf is a section; set its fields: student.mf.bias"),
        ({"task": "rate"}, "no field 'task'"),
        ({"distill": {"labels": "online"}}, "distill.labels is the same for all models"),
    ],
    ids=str,
)
def test_only_what_a_model_has_can_be_tuned(world, tmp_path, capsys, tuned, message):
    assert pipeline.main(config(world, **{"tuned.student": tuned}), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_device_without_memory_and_ctrl_c_are_one_line(tmp_path, capsys):
    def out_of_memory():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 34745853344 bytes."
        )

    def interrupted():
        raise KeyboardInterrupt

    for body, status, message in (
        (out_of_memory, 2, "34745853344 bytes.); lower batch_size"),
        (interrupted, 130, "goes on"),
    ):
        assert process.status(body, tmp_path) == status
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        process.status(lambda: 1 // 0, tmp_path)


@pytest.mark.slow
def test_labels_on_the_host_and_logits_that_were_computed_once_teach_the_same(
    world, tmp_path, monkeypatch
):
    fields = {"stages": ("data", "teacher", "labels", "distilled"), "student.optimizer.steps": 20}
    run(config(world, **fields), tmp_path / "device")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "TABLES_SHARE", 0)
        run(config(world, **fields), tmp_path / "host")
    computed, with_logits = [], teachers.with_logits
    monkeypatch.setattr(teachers, "with_logits", lambda x: computed.append(1) or with_logits(x))
    monkeypatch.setattr(teachers, "MIN_WIDTH", 1)
    run(config(world, **fields), tmp_path / "logits")
    assert computed == [1]
    one, *others = (
        Checkpoints(tmp_path / name / "distilled").plain(20)["params"]
        for name in ("device", "host", "logits")
    )
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.mark.slow
def test_the_rate_task_beats_the_item_average_and_reports_its_metrics(world, tmp_path):
    stages = ("data", "teacher", "labels", "student", "distilled", "evaluate", "report")
    c = config(
        world,
        task="rate",
        stages=stages,
        **{
            "student.optimizer.steps": 150,
            "student.optimizer.learning_rate": 0.03,
            "student.mf.dropout": 0.0,
            "data.split": "ratio",
            "distill.terms": {
                "clicks": {"loss": "ce"},
                "soft": {"loss": "kl", "weight": {"start": 1.0, "end": 0.0}, "temperature": 2.0},
            },
        },
    )
    run(c, tmp_path / "run")
    report = metrics_of(tmp_path / "run")
    rows = {row["name"]: row["test"] for row in report["models"]}
    assert rows["student"]["auc"] > rows["popularity"]["auc"]
    assert rows["distilled"].keys() >= {
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auc",
        "log_loss",
        "rmse",
        "mae",
    }
    for metric in ("log_loss", "accuracy"):  # means over pairs, as in the table
        for model in ("student", "distilled"):
            assert report["gain"][metric][model] == pytest.approx(rows[model][metric], rel=1e-5)
    assert report["dataset"]["judged"]["test"] == {"users": 40, "targets": 40}
    assert (tmp_path / "run/report/index.html").exists()


@pytest.mark.slow
def test_a_language_model_that_was_trained_leaves_without_any_student_a_frozen_one_does_not(
    world, tmp_path, capsys
):
    stages = ("data", "teacher", "export")
    c = config(
        world,
        stages=stages,
        **{
            "teacher.lm.train": "top_n",
            "teacher.lm.top_n": 1,
            "teacher.optimizer.lm_learning_rate": 1e-3,
        },
    )
    run(c, tmp_path / "run")
    step = json.loads((tmp_path / "run/teacher/result.json").read_text())["best_step"]
    params = Checkpoints(tmp_path / "run/teacher").plain(step)["params"]
    layers = params["text"]["encoder"]["model"]["layers"]
    assert list(layers) == ["1"], "only the last layer is trained, and only it is in the checkpoint"
    before = load_file(world / "bert/model.safetensors")["encoder.layer.1.output.dense.weight"].T
    change = np.abs(layers["1"]["down"]["kernel"] - before).max()
    assert 0 < change < 0.1
    hf.load_encoder(tmp_path / "run/export/teacher")
    assert pipeline.main(config(world, stages=stages), tmp_path / "frozen") == 2
    assert "nothing to export" in capsys.readouterr().err


def launch(*arguments, timeout=300, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        **options,
    )


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_parameters(world, tmp_path):
    fields = {
        "stages": ("data", "student"),
        "student.optimizer.steps": 200,
        "student.optimizer.eval_every": 4,
        "student.optimizer.patience": 1000,
    }
    assert launch(*flags(world, tmp_path / "whole", **fields)).returncode == 0
    kills = 0
    for attempt in range(12):
        child = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *flags(world, tmp_path / "cut", **fields)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        )
        steps = tmp_path / "cut/student/checkpoints"
        seen = set(os.listdir(steps)) if steps.exists() else set()
        while (
            kills < 3
            and child.poll() is None
            and not (steps.exists() and set(os.listdir(steps)) - seen)
        ):
            time.sleep(0.02)
        if kills < 3 and child.poll() is None:
            time.sleep(0.05 * attempt)
            child.send_signal(signal.SIGKILL)
            kills += 1
        if child.wait(timeout=300) == 0:
            break
    assert kills >= 2 and child.returncode == 0
    states = []
    for name in ("whole", "cut"):
        checkpoints = Checkpoints(tmp_path / name / "student")
        states.append((checkpoints.best(), checkpoints.plain(200)))
    assert states[0][0] == states[1][0]
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.student.optimizer.stepz=3"],
            r"error: --config.student.optimizer.stepz=3: no such field; did you mean .*steps",
        ),
        (
            ["--config.train.stepz=3"],
            r"error: --config.train.stepz: train is now student.optimizer",
        ),
        (
            ["--config.distill.terms.soft.lss=kl"],
            r"error: --config.distill.terms.soft.lss=kl: no field 'distill.terms.soft.lss'; did"
            r" you mean 'loss'",
        ),
        (
            ["--config.distill.terms.new.loss=kll"],
            r"error: distill.terms.new.loss='kll' is unknown; did you mean 'kl'",
        ),
        (
            ["--config.stages=('data','eval')"],
            r"error: stages: 'eval' is unknown; did you mean 'evaluate'",
        ),
        (["--config.student.name=mff"], r"error: student.name='mff' is unknown; did you mean 'mf'"),
        (
            ["--config.student.name=mff", "--config.stages=('data',)"],
            r"error: student.name='mff' is unknown",
        ),
        (["--config.data.files.path=nowhere.csv"], r"error: .*nowhere.csv"),
        (
            ["--config.teacher.lm.weights=/no/such/folder"],
            r"error: teacher.lm.weights=/no/such/folder not found",
        ),
        (["unexpected"], r"error: unexpected argument 'unexpected'"),
        (
            ["--config=configs/csv.py:twice"],
            r"error: .*config argument 'twice' is unknown; known: sequences, trends, teacher, runl",
        ),
        (
            ["--config=configs/nothing.py"],
            r"error: .*No such file or directory: 'configs/nothing.py' \(there are"
            r" .*configs/csv.py, .*configs/quickstart.py\)",
        ),
        (
            ["--confg.mesh.data=3"],
            r"error: --confg.mesh.data: no such flag; did you mean --config.mesh.data\?",
        ),
        (
            ["--config.student.optimizer.steps=many"],
            r"error: .*--config.student.optimizer.steps=many: invalid literal",
        ),
        (["--config.seeds=('a',)"], r"error: seeds=\('a',\): give one or more different numbers"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line_are_one_line(
    world, tmp_path, monkeypatch, capsys, arguments, message
):
    assert launched(monkeypatch, *flags(world, tmp_path / "run"), *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "run/student").exists()
    if "nowhere.csv" in arguments[0]:
        assert not (tmp_path / "run").exists(), "a run that could not start leaves nothing"


def test_a_workdir_in_use_is_refused(world, tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert pipeline.main(config(world), tmp_path / "run") == 2
    assert re.search(r"in use by another run \(process \d+\)", capsys.readouterr().err)
    (tmp_path / "file").write_text("")
    assert pipeline.main(config(world), tmp_path / "file") == 2
    assert "cannot be used as a folder" in capsys.readouterr().err


def test_another_config_in_the_same_workdir_is_refused_by_field(finished, world, capsys):
    assert pipeline.main(config(world, seeds=(0, 3), **{"student.mf.dim": 4}), finished) == 2
    assert "student.mf.dim: 8 there, 4 here" in capsys.readouterr().err
    assert pipeline.main(config(world, seeds=(0, 3), **{"data.split": "ratio"}), finished) == 2
    assert "data.split: leave_one_out there, ratio here" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_run_resumes(world, tmp_path, monkeypatch, capsys):
    c = config(world, stages=("data", "student"))
    real = checkpoint.Checkpoints.save

    def full(self, state, *rest):
        if int(state.step) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, state, *rest)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", full)
    assert pipeline.main(c, tmp_path / "run") == 2
    assert "disk" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint.Checkpoints, "save", real)
    run(c, tmp_path / "run")
    assert json.loads((tmp_path / "run/student/result.json").read_text())["steps"] == 20


@pytest.mark.parametrize("name", ["mf", "sasrec"])
@pytest.mark.slow
def test_a_table_comes_into_being_in_parts_with_the_bits_it_has_on_one_device(
    name, world, tmp_path, monkeypatch
):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    fields = {"student.name": name, f"student.{name}.dim": 24}
    with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
        experiment, student = Experiment(config(world, **fields), tmp_path, log), ROLES["student"]
        built = build(experiment, student, 7)
        objective, spec = objective_of(experiment, student), spec_of(experiment, student)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(built.params))
    mesh = sharding.make_mesh(1, 4)
    before = {id(array) for array in jax.live_arrays()}
    _, state = compiled_step(
        StepSpec(built.graphdef, objective, Recipe(1, 8, 0.1).tx(), 1),
        built.start,
        mesh=mesh,
        seed=0,
    )
    shape = built.params["item"].shape
    tables = [
        array for array in jax.live_arrays() if id(array) not in before and array.shape == shape
    ]
    assert len(tables) >= 3 and all(
        a.sharding.shard_shape(shape) == (shape[0] // 4, shape[1]) for a in tables
    )
    where = sharding.tree_shardings(built.params, mesh)
    text = (
        jax.jit(lambda start: start(), out_shardings=where).lower(built.start).compile().as_text()
    )
    made = [
        np.prod([int(n) for n in found.split(",")])
        for found in re.findall(r"\w\d+\[([\d,]+)\]", text)
    ]
    assert max(made) < np.prod(shape)
    graphdef, eager, _ = split(build_student(name, spec, {}, rngs=nnx.Rngs(7)))
    assert graphdef == built.graphdef
    jax.tree.map(np.testing.assert_array_equal, eager, state.params)


def test_the_shown_lists_know_nothing_of_the_test_split(finished):
    runtime, data = load_runtime(finished), kd_jax.load(finished).dataset
    trained = load_file(finished / "export/student.safetensors")["user"]
    train, before = (
        np.split(items, indptr[1:-1]) for indptr, items in (data.history(1), data.history(TEST))
    )
    vectors = np.where(
        trained.any(1)[:, None],
        trained + runtime.contexts(before) - runtime.contexts(train),
        runtime.contexts(before),
    )
    scores = runtime.scores(vectors)
    places = {str(user): place for place, user in enumerate(data.user_ids.to_list())}
    shown = json.loads((finished / "report/lists.json").read_text())["users"]
    assert shown
    for user in shown:
        row = scores[places[user["user"]]]
        row[before[places[user["user"]]]] = -np.inf
        found = [data.titles[item] for item in np.argsort(-row, kind="stable")]
        assert user["lists"]["distilled"] == found[: len(user["lists"]["distilled"])]
