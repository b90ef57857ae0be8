"""Losses over a sample of the catalogue, against the whole catalogue."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from helpers import catalogue as whole
from helpers import toy
from helpers.terms import term
from kd_jax.core.logging import Log
from kd_jax.core.types import PAD
from kd_jax.distillation.teachers import Teacher, _cached_scores, with_top_items
from kd_jax.experiment import objectives, pipeline
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.roles import ROLES
from kd_jax.losses import candidates, sampled, streamed
from kd_jax.losses.sampled import Draws

N = whole.N
ALL = (*whole.ALL, whole.softmax_term("kl", 1.5))
ONCE = Draws(jnp.asarray(np.random.default_rng(1).permutation(N), jnp.int32), jnp.zeros(N))


def world(top=0, **options):
    student, teacher, rows, warm = whole.world(excluded=False, **options)
    return (
        student,
        teacher._replace(top=candidates.top_items(teacher, top) if top else None),
        rows,
        warm,
    )


def value(draws, student, teacher, rows, warm, losses=ALL, **options):
    """The sum of all losses, differentiable in the student's factors.

    The whole catalogue is used where ``draws`` is None.
    """
    inputs = whole.inputs_of(losses, rows, teacher, warm)
    if draws is None:
        inputs = inputs._replace(teacher=teacher._replace(top=None))
        return streamed.mean_losses(losses, student, inputs)
    return sampled.mean_losses(losses, student, inputs, draws, **options)


def both(draws, world, **options):
    """((sum, means), gradients) of the whole catalogue, and of the sample."""
    student, *others = world

    def run(chosen, **more):
        differentiate = jax.value_and_grad(
            lambda s: value(chosen, s, *others, **more), has_aux=True
        )
        return jax.jit(differentiate)(student)

    return run(None), run(draws, **options)


@pytest.mark.parametrize("top", [0, 5])
@pytest.mark.parametrize("tile", [0, 1000])
def test_every_item_drawn_once_is_the_whole_catalogue(top, tile):
    for full, part in zip(*map(jax.tree.leaves, both(ONCE, world(top), tile=tile)), strict=True):
        np.testing.assert_allclose(part, full, rtol=3e-5, atol=3e-6)


def test_an_item_drawn_twice_as_often_as_the_others_weighs_the_same():
    twice = Draws(jnp.tile(ONCE.items, 2), jnp.full(2 * N, jnp.log(2.0)))
    for full, part in zip(*map(jax.tree.leaves, both(twice, world(3))), strict=True):
        np.testing.assert_allclose(part, full, rtol=3e-5, atol=3e-6)


@pytest.mark.slow
def test_nobody_warm_is_loss_and_gradient_zero():
    student, teacher, rows, _ = world()
    for loss in (whole.softmax_term("ce", warm=True), whole.softmax_term("kl", 2.0, warm=True)):
        run = functools.partial(value, ONCE, losses=(loss,))
        (total, _), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(
            student, teacher, rows, jnp.zeros(N, bool)
        )
        assert total == 0
        assert all(not np.any(g) for g in jax.tree.leaves(gradients))


def test_the_proposal_draws_each_item_at_its_expected_rate():
    counts = np.random.default_rng(0).integers(0, 50, 23)
    starts = jnp.asarray(sampled.proposal(counts, 0.7))
    draws = jax.jit(sampled.draw, static_argnums=1)(starts, 200_000, jax.random.key(0))
    wanted = (counts + 1.0) ** 0.7 / np.sum((counts + 1.0) ** 0.7)
    shares = np.bincount(draws.items, minlength=23) / 200_000
    np.testing.assert_allclose(shares, wanted, atol=4 * np.sqrt(0.1 / 200_000))
    np.testing.assert_allclose(np.exp(draws.log_expected), 200_000 * wanted[draws.items], rtol=1e-4)


def test_the_proposal_of_ten_million_items_gives_each_its_share():
    sizes = np.diff(np.append(sampled.proposal(np.zeros(10**7), 0.0).astype(np.int64), 2**32))
    assert sizes.min() >= 429 and sizes[:-1].max() <= 430 and sizes.sum() == 2**32
    rare = sampled.proposal(np.append(np.full(9, 10**9), np.zeros(10**6)), 1.0).astype(np.int64)
    assert np.diff(rare).min() >= 1


@pytest.mark.slow
def test_many_draws_approach_the_whole_catalogue_and_only_with_the_correction():
    student, teacher, rows, warm = world(8)
    student = student._replace(contexts=0.3 * student.contexts)
    starts = jnp.asarray(
        sampled.proposal(20 * np.exp(student.bias), 1.0)
    )  # popular items have high scores
    losses = (whole.softmax_term("ce"), whole.softmax_term("kl", 2.0))
    run = jax.value_and_grad(functools.partial(value, losses=losses), argnums=1, has_aux=True)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def estimates(key, number, corrected):
        draws = sampled.draw(starts, number, key)
        if not corrected:
            draws = draws._replace(log_expected=jnp.full(number, jnp.log(number / N)))
        return run(draws, student, teacher, rows, warm)

    def bias(number, corrected):
        """Relative error of the mean loss and of the mean gradient over many draws."""
        found = estimates(jax.random.split(jax.random.key(0), 300), number, corrected)
        (total, _), slopes = jax.tree.map(lambda x: x.mean(0), found)
        gap = jax.tree.map(lambda a, b: a - b, slopes[:3], slope[:3])
        return abs(float(total / full) - 1), float(
            optax.tree.norm(gap) / optax.tree.norm(slope[:3])
        )

    (full, _), slope = run(None, student, teacher, rows, warm)
    few, many, uncorrected = bias(25, True), bias(200, True), bias(200, False)
    assert max(many) < 0.04
    for one, more, wrong in zip(few, many, uncorrected, strict=True):
        assert one > 2 * more and wrong > 5 * more


@pytest.mark.parametrize("k", [1, 7, 60])
def test_top_items_are_those_of_a_sort(k, monkeypatch):
    monkeypatch.setattr(candidates, "TOP_CHUNK", 50)
    teacher = whole.world(excluded=False)[1]
    wanted = np.argsort(-teacher.dense(), axis=1)[:, :k]
    np.testing.assert_array_equal(candidates.top_items(teacher, k), wanted)


def test_fewer_items_than_asked_for_are_padded():
    few = whole.world(excluded=False)[1]
    few = few._replace(vectors=few.vectors[:3], bias=few.bias[:3])
    found = candidates.top_items(few, 5)
    assert set(np.unique(found)) == {PAD, 0, 1, 2} and np.all(found[:, 3:] == PAD)


def test_cached_labels_hold_the_top_items_of_every_row():
    teacher = whole.world(excluded=False)[1]
    arrays = {
        "contexts": np.asarray(teacher.contexts)[:, None],
        "items": teacher.vectors,
        "bias": teacher.bias,
    }
    found = with_top_items(Teacher(arrays, _cached_scores, lambda: teacher.bias), 6, batch_size=5)
    scores = found.scores(found.arrays, {"row": jnp.asarray([3, 1])}).scores
    np.testing.assert_array_equal(
        scores.top[:, 0], np.asarray(candidates.top_items(teacher, 6))[[3, 1]]
    )


def test_bad_settings_are_one_line(tmp_path):
    toy.refused(
        lambda: sampled.proposal(np.ones(3), -1.0),
        "distill.negatives_power=-1.0 must be a number from 0",
    )
    toy.write_csv(tmp_path)

    def objective(**fields):
        c = common.get_config()
        c.data.reader = "files"
        c.data.files.path = f"{tmp_path}/interactions.csv"
        c.data.files.items_path = f"{tmp_path}/items.csv"
        c.student.clicks["items"] = "sampled_warm"
        c.update_from_flattened_dict({"distill.negatives": 8, "distill.top": 2} | fields)
        with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
            return objectives.objective(Experiment(c, tmp_path / "run", log), ROLES["student"])

    assert objective() == (term("ce", name="clicks", items="sampled_warm", negatives=8),)
    toy.refused(
        lambda: objective(**{"student.name": "mlp"}),
        "student.clicks.items='sampled_warm' needs a model whose scores factorise",
    )


@pytest.mark.slow
def test_a_run_samples_the_catalogue_from_its_config_alone(tmp_path):
    toy.write_csv(tmp_path / "data")
    c = common.get_config()
    c.data.reader = "files"
    c.data.files.path = str(tmp_path / "data/interactions.csv")
    c.data.files.items_path = str(tmp_path / "data/items.csv")
    c.student.clicks["items"] = "sampled_warm"
    c.distill.terms = {
        "clicks": {"loss": "ce", "items": "sampled_warm"},
        "soft": {"loss": "kl", "temperature": 2.0, "items": "sampled"},
    }
    small = {
        "seeds": (0,),
        "stages": ("data", "control_teacher", "labels", "student", "control"),
        "distill.negatives": 10,
        "distill.top": 3,
        "student.optimizer.sparse": True,
        "student.optimizer.moments": "bfloat16",
        "mesh.data": 1,
        "eval.bootstrap": 50,
        "student.mf.dim": 8,
        "teacher.model.dim": 16,
        "teacher.model.blocks": 1,
        "teacher.model.history": 6,
        "teacher.model.hidden": 16,
    }
    for section in ("teacher.optimizer", "student.optimizer"):
        small |= {f"{section}.steps": 20, f"{section}.eval_every": 10, f"{section}.batch_size": 8}
    c.update_from_flattened_dict(small)
    assert pipeline.main(c, tmp_path / "run") == 0
    identity = json.loads((tmp_path / "run/control/identity.json").read_text())
    assert identity["distill"]["negatives_power"] == 0.5
    soft = identity["distill"]["terms"][1]
    assert (soft["name"], soft["negatives"], soft["top"]) == ("soft", 10, 3)
    events = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    losses = [
        event["loss"] for event in events if event.get("model") == "control" and "loss" in event
    ]
    assert losses and np.all(np.isfinite(losses))
