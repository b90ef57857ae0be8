"""Interpretation of single sections of a configuration, and changes by a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.experiment.renamed import new_name
from kd_jax.experiment.roles import Role
from kd_jax.experiment.sections import merged, put
from kd_jax.models.language.model import LanguageModel, LanguageModelSpec
from kd_jax.models.students import student_class
from kd_jax.training.recipe import Recipe

PASSES = 1.5
FEWEST = 50  # steps: quality often falls at first, and patience has to outlast that
EVALUATIONS = 10


def settings_of(config: ConfigDict, role: Role) -> ConfigDict:
    """The configuration of ``role``: with its tuned values, then with its overrides."""
    tuned = config.tuned.get(role.name, {})
    return merged(
        config, {f"tuned.{role.name}": tuned, f"overrides of {role.name}": role.overrides}
    )


def selects(config: ConfigDict) -> str:
    """The name of the validation metric that selects models."""
    return config.eval.select or {"rate": "auc"}.get(config.task, "ndcg@10")


def changed(config: ConfigDict, changes: Sequence[str], allowed: Sequence[str] = ()) -> ConfigDict:
    """A copy of the configuration with changes such as 'teacher.optimizer.steps=200'.

    Values are Python literals. allowed: the fields of section ``teacher`` that may be changed, such
    as 'optimizer.steps'; () = all. Raises InputError for any other change.
    """
    config = ConfigDict(config.to_dict())
    for change in changes:
        field, _, value = change.partition("=")
        if new := new_name(field):
            raise InputError(f"--set {change}: {new}")
        known = [f"teacher.{name}" for name in allowed]
        if not field.startswith("teacher.") or (allowed and field not in known) or not value:
            raise InputError(
                f"--set {change}: give teacher.<section>.<field>=<value>"
                + (nearest(field, known) if known else "")
            )
        put(config, field, value, f"--set {change}", text=True)
    return config


def student_section(config: ConfigDict) -> ConfigDict:
    """The section of the chosen student, completed with the defaults of its spec.

    The student is ``student.name``. Raises InputError for an unknown student or field.
    """
    name = config.student.name
    spec, section = student_class(name).spec, config.student.to_dict().get(name, {})
    return ConfigDict(fields.complete(section, spec, f"student.{name}"))


def reads_text(teacher: ConfigDict) -> bool:
    """Whether a teacher with these settings (section ``teacher``) has a language model."""
    c = teacher.model
    return c.form == "cross" or "text" in (*c.item_features.split("+"), c.context)


def trains_text(teacher: ConfigDict) -> bool:
    """Whether that language model is trained, in part or in full."""
    return reads_text(teacher) and teacher.lm.train != "head"


def recipe(section: ConfigDict, num_users: int) -> Recipe:
    """The recipe of a section ``teacher.optimizer`` or ``student.optimizer``.

    num_users: of the data; with eval_every=0 an evaluation is due after about PASSES over them, in
    tens of steps, at least FEWEST, and at least EVALUATIONS times in all steps.
    """
    values = {f.name: section[f.name] for f in dataclasses.fields(Recipe) if f.name in section}
    if values["eval_every"] == 0:
        steps = max(FEWEST, PASSES * num_users / max(1, section.batch_size))
        tens = min(round(steps / 10), section.steps // EVALUATIONS // 10)
        values["eval_every"] = 10 * max(1, tens)
    return Recipe(**values)


def language_model(section: ConfigDict, cache: Path) -> LanguageModel:
    """The language model of the section ``teacher.lm``."""
    values = {field.name: section[field.name] for field in dataclasses.fields(LanguageModelSpec)}
    values["lora_targets"] = tuple(values["lora_targets"])
    return LanguageModel(LanguageModelSpec(**values), cache)
