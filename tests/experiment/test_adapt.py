"""Training a language model to predict the item vectors of a trained recommender."""

import contextlib
import json

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from helpers import toy
from helpers.runs import config
from kd_jax import adapt as adapt_command
from kd_jax.core.logging import Log
from kd_jax.data import text
from kd_jax.experiment import adapt, pipeline
from kd_jax.experiment import adaptation as adaptation_module
from kd_jax.experiment.config import changed
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import open_workdir
from kd_jax.models.language import hf

pytestmark = pytest.mark.slow

SHORT = (
    "optimizer.steps=40",
    "optimizer.eval_every=10",
    "optimizer.batch_size=32",
    "lm.top_n=1",
    "optimizer.warmup_steps=2",
)
KINDS = ("held_out", "learned")
FEW = [f"--set=teacher.{field}" for field in SHORT]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A toy data set of 80 items, and an untrained BERT.

    Users choose items by genre, which the item texts name.
    """
    folder = tmp_path_factory.mktemp("world")
    toy.write_csv(folder, users=150, items=80, per_user=12)
    toy.tiny_bert(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A workdir with a teacher that has item IDs, and a student."""
    workdir = tmp_path_factory.mktemp("run") / "ids"
    fields = {
        "teacher.model.item_features": "text+id",
        "teacher.optimizer.steps": 60,
        "teacher.optimizer.eval_every": 20,
        "seeds": (0, 1),
    }
    assert (
        pipeline.main(config(world, stages=("data", "teacher", "student"), **fields), workdir) == 0
    )
    return workdir


@contextlib.contextmanager
def adaptation(run, *changes):
    with Log(run / "unused.jsonl", "explained", silent=True) as log:
        opened = open_workdir(run, log)
        settings = ConfigDict(opened.experiment.settings(ROLES["teacher"]).to_dict())
        settings.teacher.update(adapt.RECIPE)
        yield adaptation_module.Adaptation(
            opened,
            changed(settings, [f"teacher.{change}" for change in changes]),
            ROLES["teacher"],
            0,
        )


def test_the_vectors_come_closer_and_others_of_the_same_kind_do_so_too(run, monkeypatch):
    """The target vectors are one-hot genres, which the texts name; the text tower is untrained."""
    genre = np.eye(4, 8, dtype=np.float32)[np.arange(80) % 4]
    monkeypatch.setattr(adaptation_module, "item_vectors", lambda *_: (genre, None))
    with adaptation(
        run,
        *SHORT,
        "optimizer.steps=200",
        "model.dropout=0.0",
        "optimizer.lm_learning_rate=2e-3",
        "optimizer.learning_rate=1e-2",
        "optimizer.patience=20",
    ) as found:
        params = found.fit().params
        before, after = found.shares(found.params), found.shares(params)
    assert max(before.values()) < 0 and after["held_out"] > 0.4 and after["learned"] > 0.4
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), params["encoder"], found.params["encoder"]
    )
    assert min(jax.tree.leaves(moved)) > 0


def test_a_language_model_leaves_and_what_was_frozen_stays(world, run, tmp_path, capsys):
    out = tmp_path / "adapted"
    assert adapt_command.main([f"--workdir={run}", f"--out={out}", *FEW]) == 0
    report = json.loads((out / "adapted.json").read_text())
    assert all(
        0 < report[when][kind] < 1 for when in ("explained", "explained_before") for kind in KINDS
    )
    assert (report["items"], report["held_out"]) == (76, 4)
    assert f"--config.teacher.lm.weights={out}" in capsys.readouterr().out
    encoders = [hf.load_encoder(folder)[0].model for folder in (world / "bert", out)]
    first, last = (
        [np.asarray(nnx.to_flat_state(nnx.state(model.layers[n]))[0][1][...]) for model in encoders]
        for n in (0, 1)
    )
    np.testing.assert_array_equal(*first)
    assert np.abs(last[0] - last[1]).max() > 1e-4
    # The saved folder is a language model like any other.
    stages, fields = (
        ("data", "teacher"),
        {
            "teacher.lm.weights": str(out),
            "teacher.optimizer.steps": 4,
            "teacher.optimizer.eval_every": 4,
        },
    )
    assert pipeline.main(config(world, stages=stages, **fields), tmp_path / "run") == 0


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_learned_has_moved_and_nothing_else(world, run, tmp_path, train):
    out = tmp_path / train
    assert (
        adapt_command.main(
            [f"--workdir={run}", f"--out={out}", *FEW, f"--set=teacher.lm.train={train}"]
        )
        == 0
    )
    first, last = (
        dict(nnx.to_flat_state(nnx.state(hf.load_encoder(folder)[0].model)))
        for folder in (world / "bert", out)
    )
    moved = {
        path
        for path in first
        if np.abs(np.asarray(first[path][...] - last[path][...])).max() > 1e-5
    }
    if train == "full":
        assert {("words", "embedding"), ("layers", 0, "up", "kernel")} <= moved
    else:
        assert moved == {
            ("layers", n, name, "kernel") for n in (0, 1) for name in ("query", "value")
        }


def test_weights_are_mixed_on_the_line_and_adapters_by_what_they_add(run):
    first, last = {"a": {"kernel": np.zeros(3)}}, {"a": {"kernel": np.arange(3.0)}}
    np.testing.assert_allclose(
        adaptation_module.mixed(first, last, 0.25)["a"]["kernel"], [0, 0.25, 0.5]
    )
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
    found = adaptation_module.mixed(
        {"lora_a": rng.normal(size=(4, 2)), "lora_b": 0 * b}, {"lora_a": a, "lora_b": b}, 0.25
    )
    np.testing.assert_allclose(found["lora_a"] @ found["lora_b"], 0.25 * a @ b)


def test_the_same_command_again_finds_what_was_learned(run, tmp_path):
    options = [f"--workdir={run}", "--seed=1", *FEW]
    log, lines = run / "adapted/metrics.jsonl", []
    for name in ("first", "second"):
        assert adapt_command.main([*options, f"--out={tmp_path / name}"]) == 0
        lines.append(log.read_text().count('"loss"'))
    assert lines[0] == lines[1] > 0, "nothing was trained twice"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_training_that_explains_less_is_reported(run, tmp_path, capsys):
    options = [
        f"--workdir={run}",
        f"--out={tmp_path / 'out'}",
        *FEW,
        "--set=teacher.optimizer.learning_rate=0.5",
    ]
    assert adapt_command.main(options) == 0
    assert "items' vectors the texts explain less than before" in capsys.readouterr().out


def test_an_adapted_model_on_other_data_is_reported(world, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert adapt_command.main([f"--workdir={run}", f"--out={out}", *FEW]) == 0
    fields = {
        "teacher.lm.weights": str(out),
        "teacher.optimizer.steps": 2,
        "teacher.optimizer.eval_every": 2,
    }
    for name, split, warned in (("same", {}, False), ("other", {"data.split": "ratio"}, True)):
        assert (
            pipeline.main(
                config(world, stages=("data", "teacher"), **fields, **split), tmp_path / name
            )
            == 0
        )
        assert ("was trained on other data" in capsys.readouterr().out) == warned


def test_a_student_is_learned_from_too(run, tmp_path, capsys):
    assert (
        adapt_command.main(
            [f"--workdir={run}", f"--out={tmp_path / 'out'}", "--model=student", *FEW]
        )
        == 0
    )
    assert json.loads((tmp_path / "out/adapted.json").read_text())["explained_before"] is None
    line = next(line for line in capsys.readouterr().out.splitlines() if "learned from" in line)
    assert "before" not in line


def test_batches_hold_texts_of_about_the_same_length(run):
    with adaptation(run, "lm.top_n=1") as found:
        examples, rng = found.examples(), np.random.default_rng(0)
    table = text.tokenize(found.lm.tokenizer, found.texts, found.lm.encoder.max_length)
    assert set(found.items) | set(found.held) == set(range(80)) and not set(found.items) & set(
        found.held
    )
    for _ in range(5):
        batch = examples.gather(examples.draw(rng, 16))
        width = batch["ids"].shape[1]
        ids, mask = table.padded(batch["row"], width)
        np.testing.assert_array_equal(batch["ids"], ids)
        np.testing.assert_array_equal(batch["mask"], mask)
        np.testing.assert_allclose(batch["weights"][:, 0], found.weights[batch["row"]])
        encoder = found.lm.encoder
        np.testing.assert_allclose(
            encoder(ids, mask, states=batch["states"]), encoder(ids, mask), atol=1e-5
        )
        assert not set(batch["row"]) & set(found.held)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=teachr"], "did you mean 'teacher'"),
        (["--model=control"], "run the stage 'control' first"),
        (["--seed=7"], "--seed=7 is none of the run's seeds (0, 1)"),
        (
            ["--set=teacher.model.dim=8"],
            "--set teacher.model.dim=8: give teacher.<section>.<field>=<value>",
        ),
        (["--mix=0"], "--mix=0.0 must be more than 0 and at most 1"),
        (
            ["--set=teacher.optimizer.steps=abc"],
            "teacher.optimizer.steps is 400 now; give another int",
        ),
        (["--set=teacher.optimizer.steps=None"], "give another int"),
        (
            ["--set=teacher.lm.lora_targets=quer", "--set=teacher.lm.train=lora"],
            "did you mean 'query'",
        ),
        (["--set=teacher.lm.train=head"], "teacher.lm.train='head' trains no language model"),
        (["--set=teacher.lm.top_n=9"], "teacher.lm.top_n=9"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, tmp_path, capsys, options, message):
    assert adapt_command.main([f"--workdir={run}", f"--out={tmp_path / 'out'}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_workdirs_that_have_nothing_to_teach_are_refused(world, tmp_path, capsys):
    def refused(*options):
        assert adapt_command.main(list(options)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "is not the workdir of a run" in refused(
        f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"
    )
    run, small = tmp_path / "text", tmp_path / "small"
    assert pipeline.main(config(world, stages=("data", "teacher")), run) == 0
    assert "has no item embeddings beyond the text" in refused(
        f"--workdir={run}", f"--out={tmp_path / 'out'}"
    )
    assert "exists and is not empty" in refused(f"--workdir={run}", f"--out={world}")
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        assert "cannot be a folder" in refused(f"--workdir={run}", f"--out={tmp_path / out}")
    toy.write_csv(tmp_path / "few")
    toy.tiny_bert(tmp_path / "few/bert")
    stages, fields = ("data", "teacher"), {"teacher.model.item_features": "text+id"}
    assert pipeline.main(config(tmp_path / "few", stages=stages, **fields), small) == 0
    assert "24 of 24 items have interactions in training; 40 are needed" in refused(
        f"--workdir={small}", f"--out={tmp_path / 'out'}"
    )
