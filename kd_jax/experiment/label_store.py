"""The soft labels of a run: whose they are, that they are there, and which examples they are of.

What a label is, and how one is written and read: ``labels.py``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from kd_jax.core.errors import InputError
from kd_jax.core.files import fingerprint, read_json, write_json
from kd_jax.core.logging import Log
from kd_jax.data import lists
from kd_jax.data.examples.base import Examples
from kd_jax.data.lists import Lists
from kd_jax.data.splits import TRAIN
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.teachers import Teacher, cached_teacher, online_teacher, with_top_items
from kd_jax.distillation.term import OWN
from kd_jax.experiment.config import student_section
from kd_jax.experiment.run import Run
from kd_jax.experiment.setup import TEACHER_OF, ModelParts
from kd_jax.models.students import student_class


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Soft labels of one teacher that somebody learns from: where they are, what must have made
    them, and how.
    """

    title: str
    folder: Path
    identity: str
    make: Callable[[], tuple[label_cache.Labeller, Examples]]

    @property
    def finished(self) -> dict[str, Any] | None:
        """What was noted when all of them were there; None where they are not, or others are."""
        note = self.folder / "done.json"
        done = (
            read_json(note, f"delete {note} and run the 'labels' stage again")
            if note.exists()
            else {}
        )
        return done if done.get("identity") == self.identity else None

    def check_finished(self) -> None:
        if not self.finished:
            raise InputError(
                f"{self.folder} is missing or was written by another teacher; run the stage"
                " 'labels' first (--config.stages)"
            )


class LabelStore:
    """What the students of ``run`` learn from its own teachers and from those outside."""

    def __init__(self, run: Run):
        self.run = run
        self._read: dict[str, Lists] = {}  # by source
        self._opened: dict[str, Run] = {}

    def check(self, student: str) -> None:
        """Refuse, before anything is trained, teachers that cannot teach ``student``, and labels
        that are not there.
        """
        run = self.run
        for name in run.reads(student):
            if name == OWN:
                self._check_history(student)
            else:
                self._check_source(student, name)
        untrained = [seed for seed in run.seeds if not run.is_trained(student, seed)]
        if "labels" not in run.config.stages and untrained:
            for wanted in self.of(
                student, sorted({s for seed in untrained for s in run.teacher_seeds(seed)})
            ):
                wanted.check_finished()

    def write(self) -> None:
        """Write what each teacher says about every training example, once; every process its
        share.
        """
        for wanted in self.all().values():
            if not agreed(wanted.finished is not None):
                self._write(wanted)

    def all(self) -> dict[Path, LabelSet]:
        """By folder, the labels of the students that this run trains, or whose teacher it has
        trained; without any, what a distilled student would read of teachers from outside.
        """
        run = self.run
        learn = [
            student
            for student, teacher in TEACHER_OF.items()
            if student in run.config.stages
            or any(run.is_trained(model, run.seeds[0]) for model in (student, teacher))
        ]
        found = [
            wanted
            for student in learn or ("distilled",)
            for wanted in self.of(student, run.seeds, bool(learn))
        ]
        return {wanted.folder: wanted for wanted in found}

    def _write(self, wanted: LabelSet) -> None:
        began, folder = time.perf_counter(), wanted.folder
        labeller, examples = wanted.make()
        if leader():
            label_cache.prepare(folder, wanted.identity)
        barrier("labels are prepared")
        label_cache.write(
            folder, labeller, examples, part=(jax.process_index(), jax.process_count())
        )
        barrier("labels")
        used = label_cache.distinct_lists(folder) if "list_items" in labeller.shared else None
        if used == 0:
            raise InputError(
                f"labels: {wanted.title}: no training example has the user, or ends with the"
                " history, of any list; histories are the newest training items, oldest first"
            )
        seconds = time.perf_counter() - began
        if leader():
            size = label_cache.size_of(folder) / 1e6
            write_json(folder / "done.json", {"identity": wanted.identity, "seconds": seconds})
            said = (
                f"labels: {wanted.title}: {examples.size:,} contexts, {size:.1f} MB in"
                f" {seconds:.1f} s"
            )
            if used is not None:
                there = len(labeller.shared["list_items"]) - 1  # the first is the empty one
                said += f"; {used:,} of {there:,} lists are used"
                said += (
                    "" if used == there else ", the others fit no training example (docs/labels.md)"
                )
            self.run.log.note(said)
        barrier("labels are done")

    def of(self, student: str, seeds: Sequence[int], own: bool = True) -> list[LabelSet]:
        """All cached labels that ``student`` learns from, those of its own teacher for each of
        ``seeds``. own: whether to have those, too.
        """
        own = own and self.run.config.distill.labels == "cached"
        found = [
            (
                [self._own(student, seed) for seed in seeds if own]
                if name == OWN
                else [self._source(student, name)]
            )
            for name in self.run.reads(student)
        ]
        return [one for several in found for one in several]

    def teachers(self, model: str, seed: int, built: ModelParts) -> dict[str, Teacher]:
        """The teachers of ``model``, by name."""
        found: dict[str, Teacher] = {}
        top = max(term.num_top for term in self.run.objective(model))
        for name in self.run.reads(model):
            if name == OWN and self.run.config.distill.labels == "online":
                teacher = self.run.build(TEACHER_OF[model], seed)
                params, constants = self.run.best(TEACHER_OF[model], seed, teacher, (TRAIN,))
                found[name] = online_teacher(
                    teacher.graphdef, params, constants, positions=built.positions
                )
                continue
            wanted = [self._own(model, one) for one in self.run.teacher_seeds(seed)]
            if name != OWN:
                wanted = [self._source(model, name)]
            for one in wanted:
                one.check_finished()
            cached = cached_teacher(*(one.folder for one in wanted))
            found[name] = (
                with_top_items(cached, top) if top and "contexts" in cached.arrays else cached
            )
        return found

    def _own(self, student: str, seed: int) -> LabelSet:
        """What the run's own teacher says about every training example of ``student``."""
        teacher = TEACHER_OF[student]
        history, positions = self.run.window(student), self.run.positions(student)

        def make() -> tuple[label_cache.Labeller, Examples]:
            built = self.run.build(teacher, seed)
            params, constants = self.run.best(teacher, seed, built, (TRAIN,))
            labeller = labellers.of_model(
                built.graphdef, params, constants, positions=positions, rates=self._rates
            )
            return labeller, self._examples(student, history)

        identity = fingerprint([self.run.identity(teacher, seed), positions, history])
        return LabelSet(
            f"{teacher} (seed {seed})",
            self.run.workdir / f"labels/{teacher}.seed{seed}",
            identity,
            make,
        )

    def _source(self, student: str, name: str) -> LabelSet:
        """What a teacher from outside says about them. One folder per content: students of one kind
        share it.
        """
        source, positions = self.run.sources[name], self.run.positions(student)
        window = (
            self.run.window(student) if positions == "all" else 0
        )  # of others only the teacher knows what it reads

        def make() -> tuple[label_cache.Labeller, Examples]:
            how: dict[str, Any] = {"positions": positions, "confidence": source.confidence}
            if source.folder is None:
                found = self._lists(name)
                labeller = labellers.of_lists(found, self.run.dataset.num_items, **how)
                return labeller, self._examples(student, window or found.history)
            run, seed = self._other(name)
            built = run.build(source.model, seed)
            best = run.best(source.model, seed, built, (TRAIN,))
            labeller = labellers.of_model(built.graphdef, *best, rates=self._rates, **how)
            return labeller, self._examples(student, window or built.history)

        identity = fingerprint(
            [self.run.source_identity(name), self.run.dataset.checksum, positions, window]
        )
        return LabelSet(
            f"{name} ({source.path})", self.run.workdir / "labels" / name / identity, identity, make
        )

    def _examples(self, student: str, history: int) -> Examples:
        weighting = self.run.weighting(self.run.settings(student))
        return self.run.task.examples(self.run.positions(student), history=history, **weighting)

    def _lists(self, name: str) -> Lists:
        if name not in self._read:
            c, path = self.run.config.distill, self.run.sources[name].path
            found = lists.read(
                path, self.run.dataset, rank_decay=c.rank_decay, max_unmatched=c.max_unmatched
            )
            for note in found.notes:
                self.run.log.note(f"labels: {name} ({path}): {note}")
            self._read[name] = found
        return self._read[name]

    def _other(self, name: str) -> tuple[Run, int]:
        """The run whose model is the source ``name``, and the seed of that model. Raises InputError
        if it is of other data, or another task.
        """
        folder = self.run.sources[name].folder
        assert folder is not None
        if name not in self._opened:
            found = Run.opened(folder.parent, self.run.log)
            where = f"distill.sources.{name}: {folder}"
            if found.dataset.checksum != self.run.dataset.checksum:
                raise InputError(
                    f"{where} was trained on other data (checksum {found.dataset.checksum}, here "
                    f"{self.run.dataset.checksum}); train it with the same values in section data"
                )
            if found.config.task != self.run.config.task:
                raise InputError(
                    f"{where} was trained for task={found.config.task!r}; use the same task in both"
                )
            self._opened[name] = found
        run = self._opened[name]
        seed = folder.name.partition(".seed")[2]
        return run, int(seed) if seed else run.seeds[0]

    @property
    def _rates(self) -> bool:
        return self.run.task.num_classes > 0

    def _check_source(self, student: str, name: str) -> None:
        """Refuse, before anything is trained, a source that cannot teach ``student``; a list is
        read to the end.
        """
        source, positions = self.run.sources[name], self.run.positions(student)
        if source.folder is None:
            if self._rates:
                raise InputError(
                    f"distill.sources.{name}: lists rank items; use a workdir as source, or"
                    " task='rank'"
                )
            if not self._source(student, name).finished:
                self._lists(name)
            return
        run, _ = self._other(name)
        if self._rates:
            return
        c, teaches = run.settings(source.model), source.model.endswith("teacher")
        kind = "teacher" if teaches else c.student.name
        if not teaches and not student_class(kind).factorised:
            raise InputError(
                f"distill.sources.{name}: the scores of {source.folder} ({kind!r}) do not"
                " factorise, and cannot be kept as vectors; use an 'mf' or 'sasrec' as source"
            )
        if positions != "all":
            return
        if teaches:
            history = c.teacher.model.history
            follows = not c.teacher.popularity.enabled and c.teacher.model.context == "items"
        else:
            history = student_section(c).get("history", 0)
            follows = student_class(kind).positions == "all"
        if not follows or history < self.run.window(student):
            mine = self.run.settings(student).student.name
            raise InputError(
                f"distill.sources.{name}: student.name={mine!r} learns after each of "
                f"{self.run.window(student)} items of a history, and {source.folder} ({kind!r}) "
                + (f"reads {history}" if follows else "does not read histories item by item")
                + "; use a 'sasrec' with student.sasrec.history as long as here"
            )

    def _check_history(self, model: str) -> None:
        """A student that learns after every item of a history needs a teacher that labels as many
        of them.
        """
        name, teacher = (
            self.run.settings(model).student.name,
            self.run.settings(TEACHER_OF[model]).teacher,
        )
        if self.run.config.task != "rank" or self.run.positions(model) != "all":
            return
        window = self.run.window(model)
        trend = teacher.popularity.enabled
        context, history = teacher.model.context, teacher.model.history
        wrong = {
            f"teacher.popularity.enabled=False (now {trend})": trend,
            f"teacher.model.context='items' (now {context!r})": context != "items",
            f"teacher.model.history >= student.{name}.history (now {history} and {window})": (
                window > history
            ),
        }
        if any(wrong.values()):
            raise InputError(
                f"student.name={name!r} learns after every item of a history, and its teacher must"
                " label as much: use "
                + " and ".join(cure for cure, needed in wrong.items() if needed)
            )


def verify(workdir: Path, rows: int) -> Iterator[label_cache.Checked]:
    """``rows`` labels of every folder in ``workdir``, computed again by the teacher that wrote
    them.
    """
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        run = Run.opened(workdir, log)
        written = [
            found
            for found in LabelStore(run).all().values()
            if (found.folder / "done.json").exists()
        ]
        if not written:
            raise InputError(f"{workdir} holds no finished labels; run its stage 'labels' first")
        for wanted in written:
            if not wanted.finished:
                raise InputError(
                    f"{wanted.folder} was written for another config or teacher; run the stage"
                    " 'labels' again"
                )
            yield label_cache.verify(wanted.folder, *wanted.make(), rows)
