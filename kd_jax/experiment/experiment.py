"""An experiment: its data, its task, and the settings of each role."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import fingerprint
from kd_jax.core.logging import Log
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples
from kd_jax.data.popularity import Trends, trends
from kd_jax.devices import sharding
from kd_jax.distillation.sources import Source, sources
from kd_jax.evaluation.tasks import Rank, Rate, Task
from kd_jax.experiment import roles
from kd_jax.experiment.config import selects, settings_of
from kd_jax.experiment.prepared import prepared
from kd_jax.experiment.roles import Role
from kd_jax.experiment.texts import TextReader
from kd_jax.models.students import student_class


class Experiment:
    """A configuration with its workdir and devices; its parts are created on first use.

    moved: role -> folder of its models, where that is not the workdir. Raises InputError for
    invalid seeds, or an invalid mesh.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, log: Log, moved: Mapping[str, Path] | None = None
    ):
        self.config, self.workdir, self.log, self.moved = config, workdir, log, moved or {}
        self.seeds = _seeds(config)
        self.cache = workdir / "cache"
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        self._settings: dict[str, ConfigDict] = {}  # by role
        self._readers: dict[str, TextReader] = {}
        self._trends: dict[tuple[int, float], Trends] = {}
        self.last_examples: tuple[Any, Examples] | None = None  # with what they depend on

    @functools.cached_property
    def dataset(self) -> Dataset:
        return prepared(self.config, self.workdir, self.log)

    @functools.cached_property
    def task(self) -> Task:
        c = self.config
        if c.data.split == "strong" and student_class(c.student.name).example_kind == "user":
            raise InputError(
                f"data.split='strong' holds users out, and student.name={c.student.name!r} knows"
                " only the users it was trained on; use student.name='sasrec' or another"
                " data.split"
            )
        if c.task == "rank":
            return Rank(
                self.dataset,
                selects(c),
                tuple(c.eval.metrics),
                tuple(c.eval.ks),
                c.eval.batch_size,
                c.eval.valid_users,
            )
        if c.task == "rate":
            return Rate(self.dataset, tuple(c.rate.boundaries), selects(c))
        raise InputError(f"task={c.task!r} is unknown{nearest(c.task, ('rank', 'rate'))}")

    def settings(self, role: Role) -> ConfigDict:
        """The configuration of one role, with its tuned values and overrides; not to be changed."""
        if role.name not in self._settings:
            self._settings[role.name] = settings_of(self.config, role)
        return self._settings[role.name]

    def folder(self, role: Role, seed: int) -> Path:
        """The folder of a model: ``<role>`` for the first seed, else ``<role>.seed<n>``."""
        name = role.name if seed == self.seeds[0] else f"{role.name}.seed{seed}"
        return self.moved.get(role.name, self.workdir) / name

    def teacher_seeds(self, seed: int) -> tuple[int, ...]:
        """The seeds of the teachers that a student of ``seed`` learns from."""
        return self.seeds if self.config.distill.teachers == "all" else (seed,)

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """The teachers from outside the run, by name."""
        preferred = [role.name for role in roles.by_export() if role.text]
        return sources(self.config.distill.sources, reserved=roles.ROLES, preferred=preferred)

    def texts(self, role: Role) -> TextReader:
        """The ``TextReader`` of a teacher's language model; teachers of one kind share it."""
        c = self.settings(role).teacher
        written = c.model.history if c.model.context == "text" else 0
        key = fingerprint([c.lm.to_dict(), written])
        if key not in self._readers:
            self._readers[key] = TextReader(c.lm, self.dataset, self.cache, self.log)
        return self._readers[key]

    def trends(self, role: Role) -> Trends:
        """The popularity of the items at the times on which a teacher is trained."""
        c = self.settings(role).teacher.popularity
        key = c.snapshots, c.snapshot_days
        if key not in self._trends:
            self._trends[key] = trends(self.dataset, snapshots=key[0], days=key[1])
        return self._trends[key]


def _seeds(config: ConfigDict) -> tuple[int, ...]:
    seeds = tuple(config.seeds)
    whole = all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise InputError(
            f"seeds={seeds}: give one or more different numbers from 0, as --config.seeds='(0, 1)'"
        )
    return seeds
