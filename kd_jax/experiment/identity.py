"""The identity of a model: all that determines its parameters, stored with checkpoints."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.files import fingerprint
from kd_jax.distillation.sources import members
from kd_jax.distillation.term import OWN
from kd_jax.experiment.build_student import input_names, teacher_of, window
from kd_jax.experiment.config import reads_text, selects, student_section
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import objective, reads_impressions, teacher_in_run, teachers_of
from kd_jax.experiment.origin import origin_of
from kd_jax.experiment.roles import Role
from kd_jax.models.students.base import ITEM_TEXT

# Fields that only a teacher with a language model reads.
OF_TEXT = {
    "model": (
        *("form", "softmax", "negatives", "hard_negatives"),
        *("components", "whitening", "hidden"),
    ),
    "optimizer": ("lm_learning_rate",),
}

# Fields of students that came later: at the value of before, they are not part of an identity.
LATER = {"block": "plain", "item_dropout": 0.0, "vector_norm": 0.0, "offset": False}


def identity_of(experiment: Experiment, role: Role, seed: int) -> dict[str, Any]:
    """The identity of a role's model of one seed."""
    c = experiment.settings(role)
    common = {
        "data": experiment.dataset.checksum,
        "task": c.task,
        "select": selects(c),
        "seed": seed,
    }
    if c.eval.valid_users:
        common["valid_users"] = c.eval.valid_users
    if c.task == "rate":
        common["boundaries"] = tuple(c.rate.boundaries)
    if start := origin_of(experiment, role, seed):
        common["start"] = start
    if reads_impressions(experiment, role):
        assert experiment.dataset.impressions is not None
        common["impressions"] = experiment.dataset.impressions.checksum
    own = _teacher if role.is_teacher else _student
    return common | own(experiment, role, c, seed)


def _teacher(experiment: Experiment, role: Role, c: ConfigDict, seed: int) -> dict[str, Any]:
    fields = c.teacher.to_dict()
    del fields["clicks"]
    found = {"terms": [term.identity() for term in objective(experiment, role)]}
    if not role.text:
        del fields["lm"]
        for section, names in OF_TEXT.items():
            for name in names:
                fields[section].pop(name, None)
        return dict(found, teacher=fields)
    reads = reads_text(c.teacher)
    weights = experiment.texts(role).language_model.checksum if reads else None
    return dict(found, teacher=fields, weights=weights)


def _student(experiment: Experiment, role: Role, c: ConfigDict, seed: int) -> dict[str, Any]:
    terms = objective(experiment, role)
    distill: dict[str, Any] = {"terms": [term.identity() for term in terms]}
    if terms[0].sampled:
        distill["negatives_power"] = c.distill.negatives_power
    if role.distilled and (debias := c.distill.get("debias", 0.0)):
        distill["debias"] = debias
    for name in teachers_of(experiment, role):
        if teacher := teacher_in_run(role, name):
            made = [identity_of(experiment, teacher, one) for one in experiment.teacher_seeds(seed)]
            if name == OWN:
                distill |= dict(labels=c.distill.labels, teacher=fingerprint(made))
            else:
                distill[name] = fingerprint(made)
        else:
            read = {one: identity_of_source(experiment, one) for one in members(name)}
            distill.setdefault("sources", {}).update(read)
    # Of the students' sections, those that the chosen one reads.
    chosen = c.student.name
    sections = {chosen: student_section(c), "optimizer": c.student.optimizer}
    sections = {
        key: {k: v for k, v in section.to_dict().items() if k not in LATER or v != LATER[k]}
        for key, section in sections.items()
    }
    found = dict(
        student={"name": chosen} | sections, distill=distill, window=window(experiment, role)
    )
    if inputs := _inputs(experiment, role):
        found["inputs"] = inputs
    return found


def _inputs(experiment: Experiment, role: Role) -> dict[str, Any]:
    """The identity of the arrays that a student reads in addition to its batches."""
    if ITEM_TEXT not in input_names(experiment, role):
        return {}
    teacher = teacher_of(role)
    lm = experiment.settings(teacher).teacher.lm
    weights = experiment.texts(teacher).language_model.checksum
    return {ITEM_TEXT: {"weights": weights, "template": lm.template, "max_tokens": lm.max_tokens}}


def identity_of_source(experiment: Experiment, name: str) -> dict[str, Any]:
    """The identity of a teacher from outside."""
    source = experiment.sources[name]
    if source.folder is None:  # a list's ranks become scores here
        return source.identity | {"rank_decay": experiment.config.distill.rank_decay}
    return source.identity
