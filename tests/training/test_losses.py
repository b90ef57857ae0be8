"""Every entry of ``LOSSES`` trains a student in the compiled step."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers.terms import term
from helpers.training import losses, student_of, task_of, teacher_of
from kd_jax.devices import sharding
from kd_jax.distillation.teachers import online_teacher
from kd_jax.distillation.term import Limits, check
from kd_jax.losses import LOSSES

SIZES = {"top": 9, "own": 9, "drawn": 9, "interesting": 5, "picked": 5, "k": 5}
# Drawn items are refused, or the loss of a new draw at each step would hide what is learned.
ALL_ITEMS = {"listmle": 0, "dllm2rec": 0, "item_matching": 0, "rkd": 60, "ftd": 60}
ALL_ITEMS |= {"squared_distance": 0, "context_matching": 0}
# What these count changes with the student's ranks: a term of weight 0 shows what is learned.
MOVING = ("rd", "dcd", "rce")


def objective_of(name):
    fields = {field.name for field in dataclasses.fields(LOSSES[name])}
    hyper = {field: size for field, size in SIZES.items() if field in fields}
    if name in ALL_ITEMS:
        hyper["drawn"] = ALL_ITEMS[name]
    if name == "rkd":
        hyper["angle"] = 0.0  # triplets of 60 items take seconds to compile
    return (term(name, hyper=hyper),)


def train(objective, mesh=(1, 1), steps=12):
    task = task_of(False)
    teacher = online_teacher(*teacher_of(task), example_kind="user")
    check(objective, Limits(True, True, task.dataset.num_items), "distill.terms")
    student = student_of(task, "mf", dropout=0.0)
    mesh = sharding.make_mesh(*mesh)
    return losses(task, student, mesh, teacher, steps, batch_size=40, objective=objective)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_learns_from_each_loss_alone(name):
    objective, watched = objective_of(name), name
    if name in MOVING:
        objective = (*objective, term("listmle", 0.0, hyper={"top": 20}))
        watched = "listmle"
    found, state = train(objective, steps=60 if name in MOVING else 12)
    values = [step[watched] for step in found]
    assert np.all(np.isfinite([step[name] for step in found])) and found[0][name] > 0
    assert np.mean(values[-2:]) < np.mean(values[:2])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_mesh_trains_with_all_losses_alike():
    objective = tuple(objective_of(name)[0] for name in LOSSES)
    (one, _), (many, _) = (train(objective, mesh, steps=3) for mesh in ((1, 1), (2, 2)))
    for here, there in zip(one, many, strict=True):
        for name in LOSSES:
            assert there[name] == pytest.approx(here[name], rel=1e-4), name
