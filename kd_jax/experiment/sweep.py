"""The search behind ``tuned`` in a configuration: the same draws for all roles of a kind.

Every trial trains the first seed; the best few then train the others too, and the best mean wins.
All scores are of validation; the test split is never read. A trial reads the data and the labels of
the workdir, and trains in ``tune/<number>``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from kd_jax.core import fields
from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.experiment.config import selects
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.roles import Kind, Role, role_of
from kd_jax.experiment.sections import leaves
from kd_jax.experiment.trained import TrainedModels, written
from kd_jax.experiment.trainer import fit
from kd_jax.models.students import student_class

SPACES: dict[Kind, dict[str, tuple[Any, ...]]] = {
    Kind.TEACHER: {
        "teacher.optimizer.learning_rate": (1e-3, 3e-3, 6e-3),
        "teacher.optimizer.weight_decay": (0.0, 0.01, 0.1),
        "teacher.model.dropout": (0.1, 0.2, 0.4),
        "teacher.optimizer.batch_size": (256, 512),
        "teacher.popularity.horizon_days": (7.0, 14.0, 28.0),
        "teacher.popularity.window_days": (30.0, 60.0, 120.0),
        "teacher.model.init_scale": (0.03, 0.1),  # of the control's ID table
        "teacher.model.hidden": (128, 256),  # of the language model's item tower
        "teacher.model.whitening": (0.5, 0.75),
    },
    Kind.STUDENT: {
        "student.optimizer.learning_rate": (3e-3, 1e-2, 2e-2),
        "student.optimizer.schedule": ("constant", "cosine"),
        "student.optimizer.weight_decay": (0.0, 0.01),
    },
}
# Fields of a student's own section, for the students that have them.
STUDENT_SPACE: dict[str, tuple[Any, ...]] = {
    "dropout": (0.1, 0.3, 0.5),
    "decay": (0.5, 1.0, 3.0, 10.0),
    "user_power": (0.0, 0.5),
}
# Of a student's term "soft"; a plain student has none, and as many trials.
TEMPERATURE = "distill.terms.soft.temperature"
TEMPERATURES = (1.0, 2.0, 4.0)

Point = tuple[tuple[str, Any], ...]  # (config field, value) pairs


def space(kind: Kind, student: str) -> dict[str, tuple[Any, ...]]:
    """The values of each field to search; student: its name, of which section to search fields."""
    if kind is Kind.TEACHER:
        return SPACES[kind]
    known = fields.defaults(student_class(student).spec)
    own = {name: values for name, values in STUDENT_SPACE.items() if name in known}
    return SPACES[kind] | {f"student.{student}.{name}": values for name, values in own.items()}


def draws(kind: Kind, student: str, trials: int, seed: int = 0) -> list[Point]:
    """``trials`` different points of ``space``, or all; a student's each with a temperature."""
    rng = random.Random(seed)
    values = space(kind, student)
    trials = min(trials, math.prod(map(len, values.values())))
    points: dict[Point, None] = {}
    while len(points) < trials:
        point = tuple((field, rng.choice(choices)) for field, choices in values.items())
        points[point] = None
    if kind is Kind.TEACHER:
        return list(points)
    temperatures = [rng.choice(TEMPERATURES) for _ in points]
    return [(*point, (TEMPERATURE, t)) for point, t in zip(points, temperatures, strict=True)]


def tree(point: Point) -> dict[str, Any]:
    """A point as nested sections of a config, the form of ``tuned``."""
    return unflatten_dict({tuple(field.split(".")): value for field, value in point})


class Sweep:
    """The trials of some roles of a run; the winners are kept in ``config.tuned``.

    roles: that are searched for one after another, each with those before it as they won.
    """

    def __init__(self, workdir: Path, roles: Sequence[Role], log: Log, config: ConfigDict):
        self.workdir, self.roles, self.log, self.config = workdir, roles, log, config

    def best(self, role: Role, trials: int, finalists: int) -> tuple[Point, float]:
        """The point with the best mean validation score over all seeds, and that score."""
        points = draws(role.kind, self.config.student.name, trials)
        searched = {field for field, _ in points[0]}
        tuned = leaves(self.config.tuned.get(role.name, {}))
        fixed = tuple((field, value) for field, value in tuned if field not in searched)
        points = [fixed + point for point in points]
        seeds = tuple(self.config.seeds)
        first = [self.score(role, n, point, seeds[:1]) for n, point in enumerate(points)]
        chosen = sorted(range(len(points)), key=lambda n: -first[n])[:finalists]
        final = {n: self.score(role, n, points[n], seeds) for n in chosen}
        best = max(final, key=lambda n: final[n])
        self.config.tuned[role.name] = tree(points[best])
        return points[best], final[best]

    def score(self, role: Role, number: int, point: Point, seeds: Sequence[int]) -> float:
        """Mean over ``seeds`` of the best validation score."""
        config = ConfigDict(self.config.to_dict())
        config.tuned[role.name] = tree(point)
        moved = {searched.name: self.workdir / f"tune/{number}" for searched in self.roles}
        store = LabelStore(TrainedModels(Experiment(config, self.workdir, self.log, moved)))
        fit(store, role, seeds)
        results = [store.models.result(role, seed) for seed in seeds]
        mean = sum(result["best_score"] for result in results) / len(seeds)
        last = results[-1]
        print(
            f"{role.name:10s} trial {number:2d} valid {mean:.4f} ({len(seeds)} seeds), best step"
            f" {last['best_step']} of {last['steps']}, {last['seconds']:.0f} s  {dict(point)}",
            flush=True,
        )
        return mean


def sweep(workdir: Path, names: Sequence[str], trials: int, finalists: int) -> None:
    """Searches the best hyper-parameters of each role; prints every trial and each winner.

    A winner is printed as a line for the config. Raises InputError for a workdir without a run, an
    unknown role, and counts below 1.
    """
    config = written(workdir)
    if config.get("init_from", ""):
        raise InputError(
            f"{workdir} starts from init_from={config.init_from}, so its models have the sizes of"
            " that run; search in the workdir of a run without init_from"
        )
    roles = [role_of(name, "sweep: --models: ") for name in names]
    for name, count in (("trials", trials), ("finalists", finalists)):
        if count < 1:
            raise InputError(f"sweep: --{name}={count} must be at least 1")
    with Log(workdir / f"tune-{'-'.join(names)}.jsonl", metric=selects(config)) as log:
        search = Sweep(workdir, roles, log, config)
        for role in roles:
            point, score = search.best(role, trials, finalists)
            print(f"c.tuned.{role.name} = {tree(point)}  # valid {score:.4f}", flush=True)
