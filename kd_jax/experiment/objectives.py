"""The objective of each role, and the teachers that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import read_json
from kd_jax.distillation.sources import Source, members
from kd_jax.distillation.term import OWN, Limits, Objective, Term, check, of_section
from kd_jax.experiment import roles
from kd_jax.experiment.config import settings_of, student_section, trains_text
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.roles import Role
from kd_jax.models.students import student_class
from kd_jax.models.students.base import ITEM_TEXT


def term_sections(role: Role, c: ConfigDict) -> dict[str, ConfigDict]:
    """Config field -> section of each term that a role with the settings ``c`` learns from."""
    if role.is_teacher:
        return {"teacher.clicks": c.teacher.clicks}
    if not role.distilled:
        return {"student.clicks": c.student.clicks}
    if not c.distill.terms:
        raise InputError(
            "distill.terms is empty; give a term, as --config.distill.terms.soft.loss=kl"
        )
    return {f"distill.terms.{name}": c.distill.terms[name] for name in sorted(c.distill.terms)}


def objective(experiment: Experiment, role: Role) -> Objective:
    """The terms that a role learns from; raises InputError for terms that it cannot learn from."""
    c = experiment.settings(role)
    sections = term_sections(role, c)
    terms = []
    for field, section in sections.items():
        sample = {"negatives": c.distill.negatives, "top": c.distill.top}
        term = of_section(field, section, **sample)
        if term.teacher != OWN and teacher_in_run(role, term.teacher) is None:
            _check_teacher(f"{field}.teacher={term.teacher!r}", term.teacher, experiment.sources)
        terms.append(term)
    if role.distilled and not role.text:
        terms = _without_text(terms, experiment, role)
    if c.task == "rate":  # the softmax is over classes, and there is no warm class
        terms = [
            dataclasses.replace(term, items="all") if term.items == "warm" else term
            for term in terms
        ]
    # Of all items there is no sample; the same for students with and without a teacher.
    if c.distill.negatives + c.distill.top >= experiment.dataset.num_items:
        terms = [_exact(term) for term in terms]
    where = "distill.terms" if role.distilled else next(iter(sections))
    check(tuple(terms), _limits(experiment, role, c), where)
    return tuple(terms)


def _exact(term: Term) -> Term:
    """The term over all or all warm items where it would read a sample of them."""
    if not term.sampled:
        return term
    items = "warm" if term.items == "sampled_warm" else "all"
    return dataclasses.replace(term, items=items, negatives=0, top=0)


def _check_teacher(where: str, teacher: str, sources: Mapping[str, Source]) -> None:
    """Raises InputError for a teacher that is no source, nor the mean of models."""
    names = members(teacher)
    for name in names:
        if name not in sources:
            raise InputError(
                f"{where}: {name!r} is not in distill.sources{nearest(name, sources)}; 'a+b' is the"
                f" mean of the logits of two sources, {roles.plain_student().name!r} the run's own"
            )
        if len(names) > 1 and (sources[name].folder is None or sources[name].confidence):
            raise InputError(
                f"{where} is a mean of logits, which {name!r} cannot be part of: only models"
                " without confidence can; give it a term of its own"
            )


def _without_text(terms: list[Term], experiment: Experiment, role: Role) -> list[Term]:
    """The terms without those that may depend on a language model."""
    plain = roles.plain_student()

    def may(teacher: str) -> bool:
        if teacher == plain.name:
            return _has_text(experiment.settings(plain))
        return any(may_hold_text(experiment.sources[name]) for name in members(teacher))

    kept = [term for term in terms if term.teacher == OWN or not may(term.teacher)]
    if not kept:
        raise InputError(
            "distill.terms: all read sources that may hold a language model, and none is left for"
            f" the {role.name}; add a term that reads clicks or the {role.name}'s own teacher, or"
            f" take {role.name!r} out of stages"
        )
    return kept


def _limits(experiment: Experiment, role: Role, c: ConfigDict) -> Limits:
    """The ``Limits`` of a role's model; a teacher has no item table to gather rows from."""
    factorised, owns_item_table = True, False
    if not role.is_teacher:
        student = student_class(c.student.name)
        factorised, owns_item_table = student.factorised, student.owns_item_table
    return Limits(
        factorised,
        owns_item_table,
        num_items=experiment.dataset.num_items,
        ranks=c.task == "rank",
        lists=[name for name, source in experiment.sources.items() if source.folder is None],
        no_lists_shown=_no_lists_shown(experiment, role, c),
    )


def _no_lists_shown(experiment: Experiment, role: Role, c: ConfigDict) -> str:
    """Why a role cannot learn from impressions; '' where it can."""
    if experiment.dataset.impressions is None:
        return "the data set has no impressions (data.reader='mind' reads some)"
    if c.teacher.model.context == "text" and (role.is_teacher or role.distilled):
        return "teacher.model.context='text' has no text of the history before each impression"
    if role.is_teacher and c.teacher.popularity.enabled:
        return "teacher.popularity.enabled=True learns from past days"
    if role.is_teacher and role.text and trains_text(c.teacher):
        return f"teacher.lm.train={c.teacher.lm.train!r} encodes the items of its own softmax"
    return ""


def reads_impressions(experiment: Experiment, role: Role) -> bool:
    """Whether the training examples of a role are impressions (``items='shown'``)."""
    return any(term.shown for term in objective(experiment, role))


def may_hold_text(source: Source) -> bool:
    """Whether the labels of a teacher from outside may depend on a language model."""
    if source.folder is None or source.role not in roles.ROLES:
        return True
    role = roles.ROLES[source.role]
    if not role.text:
        return False
    return role.is_teacher or role.distilled or _reads_text(source.folder.parent, role)


def _reads_text(workdir: Path, role: Role) -> bool:
    """Whether a student of another workdir reads the language model's vectors."""
    config = ConfigDict(read_json(workdir / "config.json", "take it out of distill.sources"))
    return _has_text(settings_of(config, role))


def _has_text(config: ConfigDict) -> bool:
    return ITEM_TEXT in student_class(config.student.name).reads(student_section(config).vectors)


def start_of_bias(c: ConfigDict) -> str:
    """How the item biases of a student with the settings ``c`` are initialised."""
    return student_section(c).bias


def starts_from_teacher(c: ConfigDict) -> bool:
    """Whether the item biases start at the teacher's."""
    return start_of_bias(c) == roles.TEACHER_BIAS


def teacher_in_run(student: Role, teacher: str) -> Role | None:
    """The role of the run that a term's ``teacher`` names; None if it is a source."""
    if teacher == OWN:
        return roles.ROLES[student.labels_from] if student.distilled else None
    plain = roles.plain_student()
    return plain if teacher == plain.name and student.distilled else None


def description(experiment: Experiment, role: Role) -> str:
    """What a role learns from, as the rest of a sentence that starts with its name."""
    teachers = teachers_of(experiment, role)
    if not role.distilled or teachers == (OWN,):
        return role.appearance.description
    if not teachers:
        return roles.plain_student().appearance.description
    plain = "plain student"
    if experiment.config.distill.teachers == "all" and len(experiment.seeds) > 1:
        plain = f"mean of the {plain}s of all seeds"
    known = {OWN: role.labels_from.replace("_", " "), roles.plain_student().name: plain}
    found = [f"the {known.get(name, f'source {name}')}" for name in teachers]
    return f"learns from the soft labels of {' and '.join(found)}"


def teachers_of(experiment: Experiment, role: Role) -> tuple[str, ...]:
    """Names of the teachers that a role learns from, its own first."""
    if not role.distilled:
        return ()
    terms = objective(experiment, role)
    named: dict[str, Any] = dict.fromkeys(term.teacher for term in terms if term.reads_teacher)
    if OWN in named or starts_from_teacher(experiment.settings(role)):
        named = {OWN: None} | named
    return tuple(named)
