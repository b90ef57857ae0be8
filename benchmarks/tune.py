"""The search behind ``tuned`` in a config: the same draws for the plain, the control and the distilled student.

    python launch.py                                        # once: the teachers and their labels
    python benchmarks/tune.py --workdir=runs/quickstart --trials=12

Every trial trains the first seed and is scored on validation alone; the test split is never read. Each model gets the
same number of trials from the same random draws. Prints every trial and each model's winner, as a line for the config.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from kd_jax.pipeline import Run
from kd_jax.progress import Log

SPACE = {
    "train.learning_rate": (3e-3, 1e-2, 2e-2),
    "train.schedule": ("constant", "cosine"),
    "train.weight_decay": (0.0, 0.01),
    "student.dropout": (0.1, 0.3, 0.5),
    "student.decay": (0.5, 1.0, 3.0, 10.0),
    "student.user_power": (0.0, 0.5),
}
MODELS = ("student", "control", "distilled")


def draws(trials: int, seed: int = 0) -> list[tuple[tuple[str, object], ...]]:
    """``trials`` different points of the space."""
    rng = random.Random(seed)
    points: dict[tuple[tuple[str, object], ...], None] = {}
    while len(points) < trials:
        points[tuple((field, rng.choice(values)) for field, values in SPACE.items())] = None
    return list(points)


class Trial(Run):
    """A run whose students are trained in ``tune/<n>`` from the labels of the workdir."""

    number = 0

    def folder(self, model: str, seed: int) -> Path:
        folder = super().folder(model, seed)
        return folder if model.endswith("teacher") else self.workdir / f"tune/{self.number}" / folder.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    config = ConfigDict(json.loads((options.workdir / "config.json").read_text()))
    config.seeds = config.seeds[:1]
    fixed = {model: [pair for pair in config.tuned[model] if pair[0] not in SPACE] for model in MODELS}
    scores: dict[str, dict[int, float]] = {model: {} for model in options.models}
    points = draws(options.trials)
    with Log(options.workdir / "tune.jsonl", metric=config.eval.select) as log:
        for number, point in enumerate(points):
            for model in options.models:
                config.tuned[model] = tuple(fixed[model]) + point
                run = Trial(config, options.workdir, log)
                run.number = number
                run.fit(model)
                result = json.loads((run.folder(model, run.seeds[0]) / "result.json").read_text())
                scores[model][number] = result["best_score"]
                print(
                    f"{model:10s} trial {number:2d} valid {result['best_score']:.4f} best step {result['best_step']}"
                    f" of {result['steps']}, {result['seconds']:.0f} s  {dict(point)}",
                    flush=True,
                )
    for model, found in scores.items():
        best = max(found, key=lambda number: found[number])
        print(
            f"c.tuned.{model} = {tuple(tuple(pair) for pair in fixed[model]) + points[best]}  # valid {found[best]:.4f}"
        )


if __name__ == "__main__":
    main()
