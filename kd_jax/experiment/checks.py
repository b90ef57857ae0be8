"""Checks of a configuration, made before anything is trained or a workdir is changed."""

from __future__ import annotations

from kd_jax.core.errors import InputError
from kd_jax.data import text
from kd_jax.data.prepared.folder import PreparedDataset
from kd_jax.distillation.sources import members
from kd_jax.distillation.term import OWN
from kd_jax.evaluation import baselines
from kd_jax.experiment import other_lists, roles
from kd_jax.experiment.build_student import (
    example_kind,
    input_names,
    spec_of,
    teacher_of,
    window,
)
from kd_jax.experiment.build_teacher import check_form
from kd_jax.experiment.builders import recipe_of
from kd_jax.experiment.config import reads_text
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.new_items import lost_share
from kd_jax.experiment.objectives import objective, teacher_in_run, teachers_of, term_sections
from kd_jax.experiment.roles import ROLES, Role
from kd_jax.models.students import student_class
from kd_jax.models.students.base import ITEM_TEXT
from kd_jax.serving.exporters import exporter_section
from kd_jax.training.checkpoint import check_identity
from kd_jax.training.sphere import TABLES


def check(store: LabelStore) -> None:
    """Raises InputError for an invalid configuration, or for the workdir of another one."""
    experiment = store.experiment
    _check_fields(experiment)
    _check_prepared(experiment)
    store.earlier.check()
    for role in roles.teachers():
        if role.text:
            _check_text(experiment, role)
    chosen = [role for role in ROLES.values() if role.name in experiment.config.stages]
    for role in chosen:
        _check_role(store, role)
    _note_sources(experiment, [role for role in chosen if role.distilled])
    _check_workdir(experiment)


def _check_fields(experiment: Experiment) -> None:
    student_class(experiment.config.student.name)  # even where no stage trains a student
    labels, teachers = experiment.config.distill.labels, experiment.config.distill.teachers
    if labels not in ("cached", "online"):
        raise InputError(f"distill.labels={labels!r} is unknown; known: cached, online")
    if teachers not in ("own", "all"):
        raise InputError(f"distill.teachers={teachers!r} is unknown; known: own, all")
    if teachers == "all" and labels == "online":
        raise InputError(
            "distill.teachers='all' reads labels from disk; use distill.labels='cached', or 'own'"
        )
    export = experiment.config.export
    for name in export.formats:
        exporter_section(name, export.to_dict().get(name, {}))
    if not 0 <= lost_share(experiment.config) < 1:
        raise InputError(
            f"export.new_items={export.new_items} must be at least 0 and below 1, a share of the"
            " metric that selects"
        )
    baselines.check(experiment.config.eval.baselines)
    other_lists.check(experiment)
    if experiment.config.eval.bootstrap < 1:
        raise InputError(f"eval.bootstrap={experiment.config.eval.bootstrap} must be at least 1")


def _check_prepared(experiment: Experiment) -> None:
    """Raises InputError for what prepared data do not support, or not with a part of the users."""
    c, d = experiment.config, experiment.dataset
    if not isinstance(d, PreparedDataset):
        return
    if c.task != "rank":
        raise InputError(
            f"task={c.task!r} reads ratings from memory; use data.reader='files', or task='rank'"
        )
    if d.whole:
        return
    wanted = {"stages with 'export'": "export" in c.stages, "init_from": bool(c.init_from)}
    for role in roles.teachers():
        if role.name in c.stages:
            model, popular = (experiment.settings(role).teacher[x] for x in ("model", "popularity"))
            wanted["teacher.popularity.enabled=True"] = popular.enabled
            wanted["teacher.model.context='text'"] = model.context == "text"
    for what, asked in wanted.items():
        if asked:
            raise InputError(
                f"{what} needs the interactions of all users, and data.prepared.eval_users="
                f"{d.held} keeps those of a part in memory; change one of the two (0: all users)"
            )


def _check_text(experiment: Experiment, role: Role) -> None:
    check_form(experiment, role)
    teacher = experiment.settings(role).teacher
    text.check_template(teacher.lm.template, experiment.dataset.items.columns)
    chosen = experiment.config.stages
    students = any(student.name in chosen for student in roles.students())
    new_items = experiment.config.task == "rank" and students  # which are known by their text
    if new_items or (role.name in chosen and reads_text(teacher)):
        _ = experiment.texts(role).items  # all have one


def _check_role(store: LabelStore, role: Role) -> None:
    experiment = store.experiment
    recipe_of(experiment, role)
    terms = objective(experiment, role)
    if not role.distilled and any(term.reads_teacher for term in terms):
        (field,) = term_sections(role, experiment.settings(role))
        raise InputError(
            f"{field} reads a teacher, and {role.name} learns from clicks alone; use loss='ce'"
        )
    if not role.is_teacher:
        spec_of(experiment, role)
        _check_vector_norm(experiment, role)
        if ITEM_TEXT in input_names(experiment, role):
            _ = experiment.texts(teacher_of(role)).items  # all have one
    if role.distilled:
        _check_labels(store, role)


def _check_vector_norm(experiment: Experiment, role: Role) -> None:
    """Raises InputError where a length is set and scores are no products of two tables."""
    c = experiment.settings(role)
    student = student_class(c.student.name)
    products = student.factorised and student.tables.keys() >= set(TABLES) and c.task == "rank"
    if c.student.optimizer.vector_norm and not products:
        raise InputError(
            f"student.optimizer.vector_norm={c.student.optimizer.vector_norm} keeps the vectors of"
            " users and items at one length, and the scores of"
            f" student.name={c.student.name!r} with task={c.task!r} are no products of the two; set"
            " it to 0, or use student.name='mf' and task='rank'"
        )


def _check_labels(store: LabelStore, student: Role) -> None:
    """Raises InputError for an unsuitable teacher of ``student``, or for missing labels."""
    experiment = store.experiment
    if debias := experiment.settings(student).distill.debias:
        _check_debias(experiment, student, debias)
    for name in teachers_of(experiment, student):
        teacher = teacher_in_run(student, name)
        if name == OWN:
            _check_history(experiment, student)
        elif teacher is not None:
            store.outside.check_role(student, teacher)
        else:
            for one in members(name):
                _check_source(store, student, one)
    untrained = [seed for seed in experiment.seeds if not store.models.has(student, seed)]
    if "labels" not in experiment.config.stages and untrained:
        seeds = {one for seed in untrained for one in experiment.teacher_seeds(seed)}
        for labels in store.of(student, sorted(seeds)):
            labels.check_finished()


def _check_debias(experiment: Experiment, student: Role, debias: float) -> None:
    """Raises InputError unless all teachers of ``student`` have item biases."""
    if not 0 <= debias <= 1:
        raise InputError(f"distill.debias={debias} must be from 0 to 1, a share of the item biases")
    if experiment.task.num_classes:
        raise InputError(
            f"distill.debias={debias}: a teacher of task='rate' has no item biases; use 0"
        )
    named = [one for name in teachers_of(experiment, student) for one in members(name)]
    for name in named:
        if name in experiment.sources and experiment.sources[name].folder is None:
            raise InputError(
                f"distill.debias={debias}: the teacher {name!r} lists items and has no item biases;"
                " use 0, or take it out of distill.terms"
            )


def _check_source(store: LabelStore, student: Role, name: str) -> None:
    """Checks a teacher from outside; a file of lists is read completely."""
    if store.experiment.sources[name].folder is not None:
        store.outside.check(student, name)
        return
    if store.experiment.task.num_classes:
        raise InputError(
            f"distill.sources: {name!r}: lists rank items; use a workdir as source, or task='rank'"
        )
    if not store.of_source(student, name).finished:
        store.outside.lists(name)


def _check_history(experiment: Experiment, student: Role) -> None:
    """Checks that the teacher labels every position at which the student learns.

    A student that learns after every item of a history needs a teacher that labels as many of them.
    Raises InputError otherwise.
    """
    if experiment.config.task != "rank" or example_kind(experiment, student) != "all":
        return
    name = experiment.settings(student).student.name
    teacher = experiment.settings(ROLES[student.labels_from]).teacher
    trend, length = teacher.popularity.enabled, window(experiment, student)
    context, history = teacher.model.context, teacher.model.history
    wrong = {
        f"teacher.popularity.enabled=False (now {trend})": trend,
        f"teacher.model.context='items' (now {context!r})": context != "items",
        f"teacher.model.history >= student.{name}.history (now {history} and {length})": (
            length > history
        ),
    }
    if any(wrong.values()):
        raise InputError(
            f"student.name={name!r} learns after every item of a history, and its teacher must"
            " label as much: use " + " and ".join(fix for fix, needed in wrong.items() if needed)
        )


def _note_sources(experiment: Experiment, students: list[Role]) -> None:
    """Logs the sources that no term reads, and those that a role without text leaves out."""
    read = {
        role.name: [
            one
            for name in teachers_of(experiment, role)
            if teacher_in_run(role, name) is None
            for one in members(name)
        ]
        for role in students
    }
    unread = experiment.sources.keys() - {name for names in read.values() for name in names}
    if students and unread:
        experiment.log.note(
            f"warning: distill.sources: no term of distill.terms reads {', '.join(sorted(unread))}"
        )
    with_text = {name for role in students if role.text for name in read[role.name]}
    for role in students:
        left_out = [] if role.text else sorted(with_text - {*read[role.name]})
        if left_out:
            rest = [name or "its own teacher" for name in teachers_of(experiment, role)]
            experiment.log.note(
                f"{role.name}: without {', '.join(left_out)}, which may hold a language model; it"
                f" learns from {', '.join(rest) or 'clicks alone'}"
            )


def _check_workdir(experiment: Experiment) -> None:
    """Raises InputError for models that were trained with another configuration."""
    stale: dict[str, InputError] = {}
    for role in ROLES.values():
        for seed in experiment.seeds:
            folder = experiment.folder(role, seed)
            try:
                if folder.exists():
                    check_identity(folder, identity_of(experiment, role, seed))
            except InputError as error:
                stale[folder.name] = error
    if stale:
        first, *others = stale
        rest = f", and {', '.join(others)} too" if others else ""
        raise InputError(f"{stale[first]}{rest}")
