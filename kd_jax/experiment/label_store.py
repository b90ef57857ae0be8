"""The soft labels of a run: their folders, and how they are written and read.

The format of a label is described in ``kd_jax/distillation/label_cache.py``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import fingerprint, read_json, write_json
from kd_jax.data.examples.base import Examples
from kd_jax.data.splits import TRAIN
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.sources import TARGET, members
from kd_jax.distillation.teachers import (
    Teacher,
    cached_teacher,
    debiased,
    online_teacher,
    shared_by_target,
    with_top_items,
)
from kd_jax.distillation.term import OWN
from kd_jax.experiment import roles
from kd_jax.experiment.build_student import example_kind, examples_of, window
from kd_jax.experiment.earlier import EarlierRun
from kd_jax.experiment.identity import identity_of, identity_of_source
from kd_jax.experiment.objectives import objective, reads_impressions, teacher_in_run, teachers_of
from kd_jax.experiment.outside import OutsideTeachers
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import ROLES, Role
from kd_jax.experiment.trained import TrainedModels


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The soft labels of one teacher for the examples of a student.

    identity: a hash of all that determines them. make: creates the labeller and its examples.
    """

    title: str
    folder: Path
    identity: str
    make: Callable[[], tuple[label_cache.Labeller, Examples]]

    @property
    def finished(self) -> dict[str, Any] | None:
        """The record of finished labels; None if they are missing or have another identity."""
        note = self.folder / "done.json"
        if not note.exists():
            return None
        done = read_json(note, f"delete {note} and run the 'labels' stage again")
        return done if done.get("identity") == self.identity else None

    def check_finished(self) -> None:
        """Raises InputError if the labels are not finished."""
        if not self.finished:
            raise InputError(
                f"{self.folder} is missing or was written by another teacher; run the stage"
                " 'labels' first (--config.stages)"
            )


class LabelStore:
    """The labels that the students of a run learn from, by its own teachers and by others."""

    def __init__(self, models: TrainedModels):
        self.models, self.experiment = models, models.experiment
        self.outside = OutsideTeachers(models.experiment)
        self.earlier = EarlierRun(models.experiment)
        self._top: dict[tuple[Any, ...], np.ndarray] = {}

    def write(self) -> None:
        """Writes the labels of all training examples once; every process writes its share."""
        for labels in self.all().values():
            if not agreed(labels.finished is not None):
                self._write(labels)

    def all(self) -> dict[Path, LabelSet]:
        """All cached labels of the run, by folder.

        They are the labels of the students that are among the stages, or that are trained, or have
        a trained teacher. If there are none, they are the labels of teachers from outside, for
        students that read text.
        """
        distilled = [role for role in roles.students() if role.distilled]
        learn = [role for role in distilled if self._learns(role)]
        chosen = learn or [role for role in distilled if role.text]
        seeds = self.experiment.seeds
        found = [labels for role in chosen for labels in self.of(role, seeds, own=bool(learn))]
        return {labels.folder: labels for labels in found}

    def _learns(self, student: Role) -> bool:
        first = self.experiment.seeds[0]
        trained = (self.models.has(role, first) for role in (student, ROLES[student.labels_from]))
        return student.name in self.experiment.config.stages or any(trained)

    def _write(self, labels: LabelSet) -> None:
        began, folder = time.perf_counter(), labels.folder
        labeller, examples = labels.make()
        if leader():
            label_cache.prepare(folder, labels.identity)
        barrier("labels are prepared")
        part = (jax.process_index(), jax.process_count())
        label_cache.write(folder, labeller, examples, part=part)
        barrier("labels")
        used = label_cache.distinct_lists(folder) if "list_items" in labeller.shared else None
        if used == 0:
            raise InputError(
                f"labels: {labels.title}: no training example has the user, or ends with the"
                " history, of any list; histories are the newest training items, oldest first"
            )
        seconds = time.perf_counter() - began
        if leader():
            write_json(folder / "done.json", {"identity": labels.identity, "seconds": seconds})
            size = label_cache.size_of(folder) / 1e6
            note = f"{examples.size:,} contexts, {size:.1f} MB in {seconds:.1f} s"
            if used is not None:
                there = len(labeller.shared["list_items"]) - 1  # the first is the empty one
                note += f"; {used:,} of {there:,} lists are used"
                if used < there:
                    note += ", the others fit no training example (docs/labels.md)"
            self.experiment.log.note(f"labels: {labels.title}: {note}")
        barrier("labels are done")

    def of(self, student: Role, seeds: Sequence[int], own: bool = True) -> list[LabelSet]:
        """All cached labels that ``student`` learns from.

        own: whether to include those of its own teachers, one for each of ``seeds``.
        """
        online = self.experiment.config.distill.labels == "online"
        found: list[LabelSet] = []
        for name in teachers_of(self.experiment, student):
            in_run = teacher_in_run(student, name) is not None
            if not in_run or (own and not (online and name == OWN)):
                found += self._named(student, name, seeds)
        return found

    def _named(self, student: Role, name: str, seeds: Sequence[int]) -> list[LabelSet]:
        """The labels whose mean is those of a term's teacher ``name``."""
        if role := teacher_in_run(student, name):
            return [self._of_role(student, role, seed) for seed in seeds]
        return [self.of_source(student, one) for one in members(name)]

    def teachers(self, student: Role, seed: int, parts: ModelParts) -> dict[str, Teacher]:
        """The teachers of a student, by name; empty for a role that has none."""
        found: dict[str, Teacher] = {}
        top = max(term.num_top for term in objective(self.experiment, student))
        debias = self.experiment.settings(student).distill.debias
        for name in teachers_of(self.experiment, student):
            if name == OWN and self.experiment.config.distill.labels == "online":
                online = self._online(student, seed, parts)
                found[name] = debiased(online, debias) if debias else online
                continue
            several = self._named(student, name, self.experiment.teacher_seeds(seed))
            for labels in several:
                labels.check_finished()
            teacher = cached_teacher(*(labels.folder for labels in several))
            if debias:
                teacher = debiased(teacher, debias)
            if top and "contexts" in teacher.arrays:
                key = (*(labels.identity for labels in several), top, debias)
                if key not in self._top:  # the teacher of all seeds may be the same
                    self._top[key] = with_top_items(teacher, top).arrays["top"]
                arrays = teacher.arrays | {"top": self._top[key]}
                teacher = dataclasses.replace(teacher, arrays=arrays)
            found[name] = teacher
        sources = self.experiment.sources
        by_target = [x for x in found if x in sources and sources[x].confidence == TARGET]
        if by_target:
            found |= shared_by_target({name: found[name] for name in by_target})
        return found

    def _online(self, student: Role, seed: int, parts: ModelParts) -> Teacher:
        teacher = self.models.open(ROLES[student.labels_from], seed, (TRAIN,))
        return online_teacher(
            teacher.parts.graphdef, *teacher.best, example_kind=parts.example_kind
        )

    def _of_role(self, student: Role, role: Role, seed: int) -> LabelSet:
        """The labels of a model of this run for every training example of ``student``."""
        experiment = self.experiment
        history, where = window(experiment, student), example_kind(experiment, student)
        rates = experiment.task.num_classes > 0

        def make() -> tuple[label_cache.Labeller, Examples]:
            teacher = self.models.open(role, seed, (TRAIN,))
            labeller = labellers.of_model(
                teacher.parts.graphdef, *teacher.best, example_kind=where, rates=rates
            )
            return labeller, examples_of(experiment, student, history)

        made = [identity_of(experiment, role, seed), *_positions(where), history]
        made += self._lists(student)
        reader = "" if role.is_teacher else f".{student.name}"
        folder = experiment.workdir / f"labels/{role.name}.seed{seed}{reader}"
        return LabelSet(f"{role.name} (seed {seed})", folder, fingerprint(made), make)

    def _lists(self, student: Role) -> list[str]:
        """The checksum of the impressions, where they are the examples that are labelled."""
        shown = self.experiment.dataset.impressions
        return [shown.checksum] if shown and reads_impressions(self.experiment, student) else []

    def of_source(self, student: Role, name: str) -> LabelSet:
        """The labels of a teacher from outside.

        There is one folder per content, which students of the same kind share.
        """
        experiment, source = self.experiment, self.experiment.sources[name]
        where = example_kind(experiment, student)
        # Otherwise the teacher alone determines how much of a history it reads.
        length = window(experiment, student) if where == "all" else 0
        rates = experiment.task.num_classes > 0

        def make() -> tuple[label_cache.Labeller, Examples]:
            how: dict[str, Any] = {"example_kind": where, "confidence": source.confidence}
            if source.folder is None:
                lists = self.outside.lists(name)
                labeller = labellers.of_lists(lists, experiment.dataset.num_items, **how)
                return labeller, examples_of(experiment, student, length or lists.history)
            models, role, seed = self.outside.model(name)
            teacher = models.open(role, seed, (TRAIN,))
            parts = teacher.parts
            labeller = labellers.of_model(parts.graphdef, *teacher.best, rates=rates, **how)
            return labeller, examples_of(experiment, student, length or parts.history)

        made = [identity_of_source(experiment, name), experiment.dataset.checksum]
        identity = fingerprint([*made, *_positions(where), length, *self._lists(student)])
        folder = experiment.workdir / "labels" / name / identity
        return LabelSet(f"{name} ({source.path})", folder, identity, make)


def _positions(example_kind: str) -> list[str]:
    """The part of the identity of labels about their positions: earlier ones held the padding."""
    return [example_kind, "no padding"] if example_kind == "all" else [example_kind]
