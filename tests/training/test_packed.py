"""Training without padding: the losses and gradients of the padded form, on any mesh."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx

from helpers import toy
from helpers.marks import first_fast
from helpers.terms import term
from helpers.training import HISTORY, Fit, final_state, losses, student_of, teacher_of
from kd_jax.data import dataset as datasets
from kd_jax.data.lists import Lists
from kd_jax.devices import sharding
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.objective import StepInputs, chosen_items, mean_loss
from kd_jax.distillation.teachers import cached_teacher, fit_to_device, online_teacher
from kd_jax.distillation.term import OWN
from kd_jax.evaluation.tasks import Rank
from kd_jax.models.scorer import split
from kd_jax.models.students import STUDENTS
from kd_jax.training.preemption import Preempted

OBJECTIVE = (
    term("ce", items="warm"),
    term("kl", 2.0, 1.5),
    term("squared_distance", 0.3),
    term("rrd", 0.5, hyper={"top": 5, "drawn": 3, "interesting": 5, "rank_scale": 1e6}),
)


def task_of():
    """Users with 1 to 10 train items, and weights of the interactions."""
    world = toy.raw(users=40)
    found = world.interactions.filter(pl.col("timestamp") // 40 < 3 + pl.col("user") % 10)
    world = dataclasses.replace(world, interactions=found)
    data = datasets.build(world, split="leave_one_out", min_user_interactions=3)
    drawn = np.random.default_rng(1).random(len(data.user)).astype(np.float32)
    return Rank(dataclasses.replace(data, weight=drawn), "ndcg@10", ("ndcg",), (10,), 16)


def both_forms(task):
    """The padded examples and the packed ones, and a batch of all users of each."""
    found = []
    for packed in (False, True):
        examples = task.examples("all", history=HISTORY, packed=packed)
        found.append((examples, examples.gather(examples.epoch(np.random.default_rng(4)))))
    return found


def value_and_gradient(module, objective, teacher, batch):
    graphdef, params, constants = split(module)
    soft = {OWN: teacher.scores(teacher.arrays, batch)}
    key, warm = jax.random.key(0), module.warm[...]
    items = chosen_items(objective, soft, len(warm), key)

    @jax.jit
    def loss(params, soft, batch):
        scores = nnx.merge(graphdef, params, constants).training_scores(batch)
        inputs = StepInputs(batch, soft, warm, items=items, key=key)
        return mean_loss(objective, scores, inputs)

    return jax.value_and_grad(loss, has_aux=True)(params, soft, batch)


def labels(task, folder, kind):
    """A teacher of this kind, written for the padded examples."""
    examples = task.examples("all", history=HISTORY)
    if kind == "online":
        return online_teacher(*teacher_of(task), example_kind="all")
    labeller = labellers.of_model(*teacher_of(task), example_kind="all", confidence="entropy")
    if kind == "lists":
        rng, users = np.random.default_rng(0), task.dataset.num_users
        items = np.argsort(rng.random((3, task.dataset.num_items)))[:, :4].astype(np.int32)
        batch = examples.gather(np.arange(examples.size))
        pairs = [
            row[n - 1 : n + 1] for row in batch["history"] for n in (3, 6, 7) if row[n - 1] >= 0
        ]
        keys = {pair.tobytes(): 1 + n % 2 for n, pair in enumerate(pairs)}
        weights = np.array([0, 1, 0.5], np.float32)
        logits = rng.normal(size=items.shape).astype(np.float32)
        known = Lists(items, logits, weights, np.zeros(users, np.int32), keys)
        labeller = labellers.of_lists(known, task.dataset.num_items, example_kind="all")
    label_cache.write(folder, labeller, examples, batch_size=16)
    return cached_teacher(folder)


@pytest.mark.parametrize("kind", first_fast(["cached", "online", "host", "lists"]))
def test_loss_and_gradient_are_those_of_the_padded_form(kind, tmp_path):
    task = task_of()
    teacher = labels(task, tmp_path / "labels", kind)
    objective = OBJECTIVE[:2] if kind == "lists" else OBJECTIVE
    found = []
    for examples, batch in both_forms(task):
        here = teacher
        if kind == "host":
            fit, examples = fit_to_device({OWN: teacher}, examples, 0)
            here, batch = fit[OWN], examples.gather(examples.epoch(np.random.default_rng(4)))
            assert "contexts" not in here.arrays
        student = student_of(task, "sasrec", dropout=0.0)
        found.append(value_and_gradient(student, objective, here, batch))
    ((one, terms), slopes), ((other, packed_terms), packed_slopes) = found
    assert terms.keys() == packed_terms.keys() and np.abs(one) > 1e-3
    near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(near, (one, terms, slopes), (other, packed_terms, packed_slopes))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(slopes["item"]))


def test_labels_of_windows_are_those_of_their_items_alone(tmp_path):
    task = task_of()
    labels(task, tmp_path / "labels", "cached")
    examples = task.examples("all", history=HISTORY)
    batch = examples.gather(np.arange(examples.size))
    there = batch["history"] >= 0
    found = label_cache.read(tmp_path / "labels")
    assert len(found["contexts"]) == len(found["weights"]) == there.sum() < there.size
    assert len(np.unique(found["position"][batch["row"]][there])) == there.sum()
    labeller = labellers.of_model(*teacher_of(task), example_kind="all", confidence="entropy")
    checked = label_cache.verify(tmp_path / "labels", labeller, examples, 9)
    assert checked.error <= label_cache.TOLERANCE and checked.contexts == there.sum()
    other = labellers.of_model(*teacher_of(task), example_kind="all")
    wrong = dataclasses.replace(
        other, label=lambda batch: {k: x + 0.01 for k, x in labeller.label(batch).items()}
    )
    assert label_cache.verify(tmp_path / "labels", wrong, examples, 9).error > 1e-3


def test_a_teacher_learns_the_same_from_both_forms():
    task, found = task_of(), []
    none = online_teacher(*teacher_of(task), example_kind="all")
    for _, batch in both_forms(task):
        model = nnx.merge(*teacher_of(task, seed=3))
        model.dropout = model.transformer.dropout = 0.0
        for block in model.transformer.blocks:
            block.dropout = 0.0
        found.append(value_and_gradient(model, (term("ce", items="warm"),), none, batch))
    near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(near, *found)


def test_a_window_reads_nothing_of_the_others_in_its_bin():
    task = task_of()
    examples, batch = both_forms(task)[1]
    student = student_of(task, "sasrec", dropout=0.0)
    contexts = student.contexts(batch, student.item[...])
    bin = int(np.argmax((batch["segment"] == 1).any(1)))
    first = batch["segment"][bin] == 0
    other = np.where(first, 0, batch["history"][bin])
    changed = batch | {"history": batch["history"].copy()}
    changed["history"][bin] = other
    again = student.contexts(changed, student.item[...])
    np.testing.assert_array_equal(contexts[bin][~first], again[bin][~first])
    assert np.abs(contexts[bin][first] - again[bin][first]).max() > 1e-3


@pytest.mark.parametrize("shape", first_fast([((2, 2),), ((8, 1),), ((1, 4),)]))
def test_losses_do_not_depend_on_the_mesh(shape, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    task = task_of()
    examples = task.examples("all", history=HISTORY, packed=True)
    rows = examples.rows_of(16, 8)
    teacher = online_teacher(*teacher_of(task), example_kind="all")
    alone, many = (
        losses(
            task, student_of(task, "sasrec"), sharding.make_mesh(*on), teacher,
            batch_size=rows, examples=examples,
        )[0]
        for on in ((1, 1), shape)
    )  # fmt: skip
    for one, other in zip(alone, many, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


class Packed(Fit):
    """A run of a SASRec that is trained without padding."""

    student = "sasrec"

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.task = task_of()

    def examples(self):
        return self.task.examples("all", history=HISTORY, packed=True)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1)])
@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(shape, tmp_path):
    whole, cut = (Packed(tmp_path / name, shape, steps=15) for name in ("whole", "cut"))
    expected = whole()
    cut.watch = lambda evaluation: os.kill(os.getpid(), signal.SIGTERM) if evaluation == 2 else None
    with pytest.raises(Preempted):
        cut()
    assert_same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_same(Packed(tmp_path / "cut", shape, steps=15)().params, expected.params)
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


def test_a_student_that_does_not_know_of_bins_is_not_given_them():
    reading = {name for name, cls in STUDENTS.items() if cls.reads_packed}
    assert reading == {"sasrec", "gru4rec"}
