"""A few steps of training on the toy data."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from helpers import toy
from helpers.terms import term
from kd_jax.core import fields
from kd_jax.core.logging import Log
from kd_jax.data.examples.base import batches
from kd_jax.devices import sharding
from kd_jax.distillation.term import OWN
from kd_jax.evaluation.tasks import Rank, Rate
from kd_jax.models.scorer import split
from kd_jax.models.students import build_student, student_class, student_spec
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.compiled import compiled_step, first_auxiliary
from kd_jax.training.job import TrainingJob
from kd_jax.training.loop import train
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec

HISTORY = 8


OBJECTIVE = (term("ce", items="warm"), term("kl", 2.0, 1.5), term("soft_ce", 0.1))


ODD = {"users": 39, "items": 23}  # nothing divides them


def task_of(ratings, **sizes):
    data = toy.dataset(ratings=ratings, **sizes)
    return Rate(data, (3.0,), "auc") if ratings else Rank(data, "ndcg@10", ("ndcg",), (10,), 16)


def student_of(task, name, seed=0, dropout=0.3, inputs=None, **section):
    data = task.dataset
    spec = spec_of(data, name, task.num_classes, dim=16, dropout=dropout, **section)
    return build_student(name, spec, inputs or {}, rngs=nnx.Rngs(seed))


SMALL = {"history": HISTORY, "hidden": 8}  # where a student has such a field


def spec_of(data, name, num_classes=0, **section):
    """The spec of a small student."""
    known = fields.defaults(student_class(name).spec)
    small = {field: value for field, value in SMALL.items() if field in known}
    return student_spec(
        name,
        small | section,
        num_users=data.num_users,
        num_items=data.num_items,
        num_classes=num_classes,
        item_bias=np.zeros(data.num_items, np.float32),
        warm=None if num_classes else data.warm,
    )


def teacher_of(task, seed=5):
    data = task.dataset
    spec = TeacherSpec(
        data.num_items,
        np.zeros(data.num_items, np.float32),
        None if task.num_classes else data.warm,
        item_features="id",
        dim=16,
        history=HISTORY,
        num_classes=task.num_classes,
    )
    return split(BiEncoder(spec, rngs=nnx.Rngs(seed)))


def examples_of(task, example_kind):
    return task.examples(example_kind, history=HISTORY, decay=3.0, user_power=0.5)


def losses(
    task, student, mesh, teacher, steps=4, batch_size=16, examples=None, objective=OBJECTIVE
):
    """Loss terms of the first steps, and the final state."""
    graphdef, params, constants = split(student)
    recipe = Recipe(steps, batch_size, 1e-2)
    spec = StepSpec(graphdef, objective, recipe.tx(), steps, {OWN: teacher.scores})
    examples = examples or examples_of(task, student.example_kind)
    auxiliary = first_auxiliary(
        objective, graphdef, params, constants, {OWN: teacher}, examples, seed=0
    )
    step, state = compiled_step(spec, params, mesh=mesh, seed=0, auxiliary=auxiliary)
    constants, arrays = (
        sharding.put(constants, mesh),
        sharding.put_labels({OWN: teacher.arrays}, mesh),
    )
    found = []
    for batch in batches(examples, batch_size=batch_size, num_batches=steps, seed=0):
        before = state
        state, metrics = step(state, batch, None, constants, arrays)
        found.append(flat(metrics))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), (
        "the old state's memory must be given back"
    )
    assert step._cache_size() == 1
    return found, state


class Fit:
    """One training run of a small MF in ``folder``.

    ``watch(count)`` is called at every evaluation, with the number of evaluations so far.
    """

    student = "mf"

    def __init__(self, folder, mesh=(1, 1), sizes=None, **recipe):
        self.folder, self.task, self.watch = (
            folder,
            task_of(False, **(sizes or {})),
            lambda step: None,
        )
        self.mesh = sharding.make_mesh(*mesh)
        self.recipe = Recipe(
            **{
                "steps": 30,
                "batch_size": 16,
                "learning_rate": 1e-2,
                "eval_every": 5,
                "patience": 99,
            }
            | recipe
        )
        self.evaluations, self.traces = 0, None

    def examples(self):
        return self.task.examples("user", history=HISTORY, decay=3.0, user_power=0.5)

    def __call__(self, identity=None):
        graphdef, params, constants = split(student_of(self.task, self.student))
        judge = self.task.evaluation_function(graphdef, "valid", HISTORY, full=False)

        def evaluate(params, constants):
            self.evaluations += 1
            self.watch(self.evaluations)
            return self.task.score(judge(params, constants))

        self.folder.mkdir(parents=True, exist_ok=True)
        with Log(self.folder / "metrics.jsonl", "ndcg@10") as log:
            job = TrainingJob(
                "student",
                0,
                graphdef,
                params,
                constants,
                self.examples(),
                (term("ce"),),
                self.recipe,
                evaluate,
                Checkpoints(self.folder / "student", identity or {"seed": 0}),
                self.mesh,
                log,
                traces=self.traces,
            )
            return train(job)


def flat(metrics):
    """The metrics of a step as numbers, those of terms beside the others."""
    values = jax.tree.map(float, metrics)
    return values.pop("terms") | values


def final_state(folder):
    """The newest checkpoint as a plain tree."""
    checkpoints = Checkpoints(folder / "student")
    return checkpoints.plain(checkpoints.latest())
