"""Builds the model of a role, its recipe and its examples from the configuration."""

from __future__ import annotations

from kd_jax.data.examples.base import Examples
from kd_jax.experiment import build_student, build_teacher
from kd_jax.experiment.config import recipe, trains_text
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.origin import with_kept_constants
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.training.recipe import Recipe


def build(experiment: Experiment, role: Role, seed: int) -> ModelParts:
    """The model with its initial parameters."""
    kind = build_teacher if role.is_teacher else build_student
    return with_kept_constants(experiment, role, seed, kind.build(experiment, role, seed))


def recipe_of(experiment: Experiment, role: Role) -> Recipe:
    """The recipe by which the model is optimised."""
    c = experiment.settings(role)
    section = c.teacher.optimizer if role.is_teacher else c.student.optimizer
    return recipe(section, experiment.dataset.num_users)


def examples_of(
    experiment: Experiment, role: Role, parts: ModelParts, seed: int, rows: int
) -> Examples:
    """The training examples of the model, the same object for all seeds where they are equal.

    rows: number of examples of a batch that this process looks up.
    """
    if trains_language_model(experiment, role):  # its batches depend on the seed
        return build_teacher.examples_of(experiment, role, parts, seed, rows)
    key = role.name, parts.history, parts.example_kind
    if experiment.last_examples is None or experiment.last_examples[0] != key:
        if role.is_teacher:
            found = build_teacher.examples_of(experiment, role, parts, seed, rows)
        else:
            found = build_student.examples_of(experiment, role, parts.history, packed=True)
        experiment.last_examples = key, found
    return experiment.last_examples[1]


def trains_language_model(experiment: Experiment, role: Role) -> bool:
    """Whether the model has a language model that is trained, in part or in full."""
    return role.is_teacher and trains_text(experiment.settings(role).teacher)
