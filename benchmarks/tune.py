"""The search behind ``tuned`` in a config: the same draws for both teachers, and the same for the
three students.

    python launch.py                                                                          # once: data and labels
    python benchmarks/tune.py --workdir=runs/quickstart --models teacher control_teacher --trials=12
    python benchmarks/tune.py --workdir=runs/quickstart --models student control distilled   # once labels are final

Every trial trains the first seed; the best ``--finalists`` then train the others too, and the best
mean wins. All scores are of validation; the test split is never read. Each model gets the same
number of trials from the same random draws. Prints every trial and each model's winner, as a line
for the config.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from kd_jax.core.logging import Log
from kd_jax.experiment.config import selects
from kd_jax.experiment.pipeline import Pipeline
from kd_jax.experiment.run import written
from kd_jax.experiment.sections import leaves

TEACHERS, STUDENTS = ("teacher", "control_teacher"), ("student", "control", "distilled")
SPACES = {
    TEACHERS: {
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
    STUDENTS: {
        "student.optimizer.learning_rate": (3e-3, 1e-2, 2e-2),
        "student.optimizer.schedule": ("constant", "cosine"),
        "student.optimizer.weight_decay": (0.0, 0.01),
        "student.mf.dropout": (0.1, 0.3, 0.5),
        "student.mf.decay": (0.5, 1.0, 3.0, 10.0),
        "student.mf.user_power": (0.0, 0.5),
    },
}

# of a student's term "soft"; a plain student has none, and as many trials
TEMPERATURE = "distill.terms.soft.temperature"
TEMPERATURES = (1.0, 2.0, 4.0)

Point = tuple[tuple[str, object], ...]


def space(model: str) -> dict[str, tuple[object, ...]]:
    return next(fields for models, fields in SPACES.items() if model in models)


def draws(model: str, trials: int, seed: int = 0) -> list[Point]:
    """``trials`` different points of the model's space; a student's each with a temperature."""
    fields = space(model)
    rng = random.Random(seed)
    points: dict[Point, None] = {}
    while len(points) < trials:
        points[tuple((field, rng.choice(values)) for field, values in fields.items())] = None
    if model in TEACHERS:
        return list(points)
    temperatures = [rng.choice(TEMPERATURES) for _ in points]
    return [(*point, (TEMPERATURE, t)) for point, t in zip(points, temperatures, strict=True)]


def tree(point: Point) -> dict[str, Any]:
    """A point as a part of a config's sections, which is what ``tuned`` holds."""
    return unflatten_dict({tuple(field.split(".")): value for field, value in point})


class Trial(Pipeline):
    """A run whose models are trained in ``tune/<n>`` from the data and the labels of the
    workdir.
    """

    def __init__(self, config: ConfigDict, workdir: Path, log: Log, number: int):
        super().__init__(config, workdir, log)
        self.number = number

    def teacher_seeds(self, seed: int) -> tuple[int, ...]:
        """Of the run that is tuned for, however few seeds a trial has."""
        every = tuple(self.config.every_seed)
        return every if self.config.distill.teachers == "all" else (seed,)

    def folder(self, model: str, seed: int) -> Path:
        folder = super().folder(model, seed)
        searched = self.config.searched
        return self.workdir / f"tune/{self.number}" / folder.name if model in searched else folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=STUDENTS, choices=TEACHERS + STUDENTS)
    options = parser.parse_args()
    config = written(options.workdir)
    config.searched = tuple(options.models)
    config.every_seed = all_seeds = tuple(config.seeds)
    with Log(
        options.workdir / f"tune-{'-'.join(options.models)}.jsonl", metric=selects(config)
    ) as log:

        def score(model: str, number: int, point: Point, seeds: tuple[int, ...]) -> float:
            """Mean over ``seeds`` of the best validation score."""
            config.seeds = seeds
            config.tuned[model] = tree(point)
            run = Trial(config, options.workdir, log, number)
            run.fit(model)
            results = [
                json.loads((run.folder(model, seed) / "result.json").read_text()) for seed in seeds
            ]
            mean = sum(result["best_score"] for result in results) / len(seeds)
            print(
                f"{model:10s} trial {number:2d} valid {mean:.4f} ({len(seeds)} seeds), best step"
                f" {results[-1]['best_step']} of {results[-1]['steps']},"
                f" {results[-1]['seconds']:.0f} s  {dict(point)}",
                flush=True,
            )
            return mean

        for model in options.models:
            points = draws(model, options.trials)
            searched = dict(points[0])
            fixed = tuple(
                (field, value)
                for field, value in leaves(config.tuned[model])
                if field not in searched
            )
            points = [fixed + point for point in points]
            first = {
                number: score(model, number, point, all_seeds[:1])
                for number, point in enumerate(points)
            }
            finalists = sorted(first, key=lambda number: -first[number])[: options.finalists]
            final = {
                number: score(model, number, points[number], all_seeds) for number in finalists
            }
            best = max(final, key=lambda number: final[number])
            config.tuned[model] = tree(points[best])
            print(f"c.tuned.{model} = {tree(points[best])}  # valid {final[best]:.4f}", flush=True)


if __name__ == "__main__":
    main()
