"""Students, built from their sections of the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import Array
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.shown import shown_examples
from kd_jax.data.popularity import decayed_counts
from kd_jax.experiment import roles
from kd_jax.experiment.config import student_section
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import objective, reads_impressions, start_of_bias
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.losses import sampled
from kd_jax.models.scorer import Frozen, split
from kd_jax.models.students import build_student, student_class, student_spec
from kd_jax.models.students.base import INPUTS, ITEM_TEXT, StudentSpec

COUNT_BIAS = "count"
BIASES = (COUNT_BIAS, "trend", roles.TEACHER_BIAS)  # the last is filled in when labels are there
WEIGHTING = ("decay", "decay_unit", "user_power")  # fields of a student


def example_kind(experiment: Experiment, role: Role) -> str:
    """The ``Scorer.example_kind`` of a student: 'user', 'last' or 'all'.

    With 'user' it predicts all items of a user at once.
    """
    return student_class(experiment.settings(role).student.name).example_kind


def teacher_of(role: Role) -> Role:
    """The student's own teacher; the main teacher for a student without one."""
    return roles.ROLES[role.labels_from] if role.distilled else roles.main_teacher()


def window(experiment: Experiment, role: Role) -> int:
    """The number of newest interactions in a training example of a student.

    It is the student's own history length where it learns at all positions, else its teacher's.
    Raises InputError for a student that would read more than that.
    """
    section = student_section(experiment.settings(role))
    if example_kind(experiment, role) == "all":
        return section.history
    found = experiment.settings(teacher_of(role)).teacher.model.history
    if section.get("history", 0) > found:
        field = f"student.{experiment.settings(role).student.name}.history"
        raise InputError(
            f"{field}={section.history} is more than the {found} interactions of a training"
            " example; lower it, or raise teacher.model.history"
        )
    return found


def build(experiment: Experiment, role: Role, seed: int) -> ModelParts:
    """The student with its first parameters."""
    c, spec = experiment.settings(role), spec_of(experiment, role)
    negatives = None
    if objective(experiment, role)[0].sampled:
        negatives = sampled.proposal(experiment.dataset.item_counts, c.distill.negatives_power)

    def made(key: Array, *arrays: Any) -> Any:
        bias, warm, proposal, inputs = arrays
        known = dataclasses.replace(spec, item_bias=bias, warm=warm)
        module = build_student(c.student.name, known, inputs, rngs=nnx.Rngs(key))
        if proposal is not None:
            module.proposal = Frozen(jnp.asarray(proposal))
        return module

    inputs = inputs_of(experiment, role)
    given = (jax.random.key(seed), spec.item_bias, spec.warm, negatives, inputs)
    graphdef, params, _ = split(nnx.eval_shape(made, *given))
    constants = jax.jit(lambda *given: split(made(*given))[2])(*given)
    start = jax.tree_util.Partial(lambda *given: split(made(*given))[1], *given)
    where, history = example_kind(experiment, role), window(experiment, role)
    return ModelParts(graphdef, params, constants, where, history, start=start)


def spec_of(experiment: Experiment, role: Role) -> StudentSpec:
    """The spec of a student; raises InputError for invalid settings."""
    c, d = experiment.settings(role), experiment.dataset
    num_classes = experiment.task.num_classes
    return student_spec(
        c.student.name,
        student_section(c),
        num_users=d.num_users,
        num_items=d.num_items,
        item_bias=_first_bias(experiment, c),
        warm=d.warm if num_classes == 0 else None,
        num_classes=num_classes,
    )


def input_names(experiment: Experiment, role: Role) -> tuple[str, ...]:
    """The names of the arrays that a student reads in addition to its batches.

    A role without text gets no array of the language model, and this is the only place that decides
    so. Raises InputError for an unknown name.
    """
    c = experiment.settings(role)
    chosen = c.student.name
    names = student_class(chosen).reads(student_section(c).vectors)
    for name in names:
        if name not in INPUTS:
            raise InputError(
                f"student.name={chosen!r} declares the input {name!r}{nearest(name, INPUTS)}"
            )
    return tuple(name for name in names if role.text or name != ITEM_TEXT)


def inputs_of(
    experiment: Experiment, role: Role, *, trained: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of ``input_names``, by name.

    trained: without those that only the first parameters are made from.
    """
    known = {ITEM_TEXT: lambda: experiment.texts(teacher_of(role)).encoded_items().vectors}
    names = input_names(experiment, role)
    if trained:
        kept = student_class(experiment.settings(role).student.name).inputs
        names = tuple(name for name in names if name in kept)
    return {name: known[name]() for name in names}


def _first_bias(experiment: Experiment, c: ConfigDict) -> np.ndarray:
    """The initial item biases, f32 [I].

    They are log(1 + count) or, for 'trend', the log of the recent count. Raises InputError for an
    unknown kind.
    """
    kind = start_of_bias(c)
    if kind not in BIASES:
        field = f"student.{c.student.name}.bias"
        raise InputError(f"{field}={kind!r} is unknown{nearest(kind, BIASES)}")
    if kind == "trend":
        days = student_section(c).popularity_days
        return np.log(decayed_counts(experiment.dataset, days)[0] + 0.03).astype(np.float32)
    return np.log1p(experiment.dataset.item_counts).astype(np.float32)


def examples_of(experiment: Experiment, role: Role, history: int, packed: bool = False) -> Examples:
    """The training examples of a student.

    history: number of newest interactions in an example. packed: without padding, for a student
    that can be trained so; labels are written for the padded ones.
    """
    kind = example_kind(experiment, role)
    if reads_impressions(experiment, role):
        return shown_examples(experiment.dataset, history=history, example_kind=kind)
    section = student_section(experiment.settings(role))
    weighting = {name: section[name] for name in WEIGHTING if name in section}
    packed &= student_class(experiment.settings(role).student.name).reads_packed
    return experiment.task.examples(kind, history=history, packed=packed, **weighting)
