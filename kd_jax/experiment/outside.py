"""Teachers from outside a run: lists of another system, models of another workdir."""

from __future__ import annotations

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.data import lists
from kd_jax.data.lists import Lists
from kd_jax.experiment.build_student import example_kind, window
from kd_jax.experiment.config import student_section
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.roles import Role, role_of
from kd_jax.experiment.trained import TrainedModels, open_workdir
from kd_jax.models.students import student_class


class OutsideTeachers:
    """The teachers that ``distill.sources`` names, each read or opened once."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._lists: dict[str, Lists] = {}
        self._opened: dict[str, TrainedModels] = {}

    def lists(self, name: str) -> Lists:
        """The lists of a file; raises InputError for a file that cannot be read."""
        if name not in self._lists:
            c, path = self.experiment.config.distill, self.experiment.sources[name].path
            found = lists.read(
                path,
                self.experiment.dataset,
                rank_decay=c.rank_decay,
                max_unmatched=c.max_unmatched,
            )
            for note in found.notes:
                self.experiment.log.note(f"labels: {name} ({path}): {note}")
            self._lists[name] = found
        return self._lists[name]

    def model(self, name: str) -> tuple[TrainedModels, Role, int]:
        """The trained models of another workdir, with the role and seed of the teacher.

        Raises InputError if it was trained on other data or for another task.
        """
        source, here = self.experiment.sources[name], self.experiment
        assert source.folder is not None
        where = f"distill.sources: {name!r}: {source.folder}"
        if name not in self._opened:
            found = open_workdir(source.folder.parent, here.log)
            there = found.experiment
            if there.dataset.checksum != here.dataset.checksum:
                raise InputError(
                    f"{where} was trained on other data (checksum {there.dataset.checksum}, here "
                    f"{here.dataset.checksum}); train it with the same values in section data"
                )
            if there.config.task != here.config.task:
                raise InputError(
                    f"{where} was trained for task={there.config.task!r}; use the same task in both"
                )
            self._opened[name] = found
        models = self._opened[name]
        seed = source.folder.name.partition(".seed")[2]
        role = role_of(source.role, f"{where}: its role ")
        return models, role, int(seed) if seed else models.experiment.seeds[0]

    def check(self, student: Role, name: str) -> None:
        """Raises InputError for a model that cannot teach ``student``."""
        models, role, _ = self.model(name)
        folder = self.experiment.sources[name].folder
        self._check(student, models.experiment.settings(role), role, f"{name!r}: {folder}")

    def check_role(self, student: Role, role: Role) -> None:
        """Raises InputError for a model of this run that cannot teach ``student``."""
        self._check(student, self.experiment.settings(role), role, f"{role.name!r}: the model")

    def _check(self, student: Role, c: ConfigDict, role: Role, model: str) -> None:
        """Checks a model, of a role with the settings ``c``."""
        if self.experiment.task.num_classes:
            return
        kind = role.name if role.is_teacher else c.student.name
        if not role.is_teacher and not student_class(kind).factorised:
            raise InputError(
                f"distill: the teacher {model} ({kind!r}) has scores that do not factorise, and"
                " cannot be kept as vectors; use a student whose scores factorise"
            )
        if example_kind(self.experiment, student) != "all":
            return
        if role.is_teacher:
            history = c.teacher.model.history
            follows = not c.teacher.popularity.enabled and c.teacher.model.context == "items"
        else:
            history = student_section(c).get("history", 0)
            follows = student_class(kind).example_kind == "all"
        length = window(self.experiment, student)
        if not follows or history < length:
            mine = self.experiment.settings(student).student.name
            reads = f"reads {history}" if follows else "does not read histories item by item"
            raise InputError(
                f"distill: student.name={mine!r} learns after each of {length} items of a history,"
                f" and the teacher {model} ({kind!r}) {reads}; use a 'sasrec' or 'gru4rec'"
                " whose history is as long as here"
            )
