"""Compares fine-tuned with frozen language models as teachers, by NDCG@10 over seeds.

    python benchmarks/fine_tuning.py [--workdir=runs/fine_tuning] [--seeds=0,1,2] [--name=top_n] \\
        [--set teacher.lm.train=top_n] [--config=… and other arguments of launch.py]

For every seed it trains a teacher with the frozen language model, one that also has item embeddings
(``item_features='text+id'``), the language model adapted to the latter (``kd_jax/adapt.py``, with
``--set``), and the same two teachers with the adapted model, frozen. A Markdown table of NDCG@10 on
validation and test is printed, and ``<workdir>/fine_tuning.json`` is written; another ``--name``
with another ``--set`` adds rows. The same command again resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
METRIC = "ndcg@10"
IDS = "--config.teacher.model.item_features=text+id"


def call(*command: str) -> None:
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def row(name: str, folders: list[Path], seconds: list[float]) -> dict[str, Any]:
    """The row of the teachers in these workdirs.

    seconds: spent on each before its own training.
    """
    models = [
        model
        for folder in folders
        for model in json.loads((folder / "report/metrics.json").read_text())["models"]
        if model["name"] == "teacher"
    ]
    spent = [model["train_seconds"] for model in models]
    return {
        "name": name,
        **{split: [model[split][METRIC] for model in models] for split in ("valid", "test")},
        "seconds": [a + b for a, b in zip(seconds or [0.0] * len(spent), spent, strict=True)],
    }


def mean_and_spread(values: list[float]) -> str:
    """'mean ± standard deviation' over seeds."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.4f} ± {spread:.4f}".replace("0.", ".")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--name", default="top_n", help="of this way to adapt, in the table")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="of kd_jax.adapt, for example teacher.lm.train=lora",
    )
    parser.add_argument("--mix", help="of kd_jax.adapt: how far to go towards the trained weights")
    options, launch = parser.parse_known_args()
    workdir = options.workdir.absolute()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    config = [arg for arg in launch if arg.startswith("--config=")]
    rest = [arg for arg in launch if arg not in config]

    def teacher(folder: Path, seeds: list[int], *fields: str) -> None:
        given = f"--config.seeds=({','.join(map(str, seeds))},)"
        stages = "--config.stages=('data','teacher','evaluate')"
        call("launch.py", *config, f"--workdir={folder}", stages, given, *rest, *fields)

    teacher(workdir / "frozen", seeds)
    teacher(workdir / "ids", seeds, IDS)
    way = workdir / options.name
    changes = [part for change in options.set for part in ("--set", change)]
    changes += [f"--mix={options.mix}"] if options.mix else []
    how = way / "how.json"
    settings = {"arguments": changes}
    if how.exists() and json.loads(how.read_text()) != settings:
        parser.error(f"{way} was made with {how.read_text()}; choose another --name")
    way.mkdir(parents=True, exist_ok=True)
    how.write_text(json.dumps(settings))
    for seed in seeds:
        if not (way / f"lm{seed}/adapted.json").exists():
            folders = f"--workdir={workdir / 'ids'}", f"--out={way / f'lm{seed}'}"
            call("-m", "kd_jax.adapt", *folders, f"--seed={seed}", *changes)
        for name, fields in (("seed", ()), ("ids", (IDS,))):
            teacher(
                way / f"{name}{seed}",
                [seed],
                f"--config.teacher.lm.weights={way / f'lm{seed}'}",
                *fields,
            )
    adapted = [
        json.loads((way / f"lm{seed}/adapted.json").read_text())["train_seconds"] for seed in seeds
    ]
    ids = row("frozen, and item IDs", [workdir / "ids"], [])
    before = [a + b for a, b in zip(adapted, ids["seconds"], strict=True)]
    new = [
        row(f"adapted: {options.name}{also}", [way / f"{name}{seed}" for seed in seeds], before)
        for name, also in (("seed", ""), ("ids", ", and item IDs"))
    ]
    out = workdir / "fine_tuning.json"
    there: dict[str, Any] = {"seeds": seeds, "rows": []}
    if out.exists():
        there = json.loads(out.read_text())
    names = {one["name"] for one in new}
    old = [one for one in there["rows"][2:] if one["name"] not in names and there["seeds"] == seeds]
    rows = [row("frozen", [workdir / "frozen"], []), ids, *old, *new]
    out.write_text(json.dumps({"seeds": seeds, "rows": rows}, indent=2) + "\n")
    print(
        f"| language model | {METRIC}, validation | {METRIC}, test | validation over frozen, by"
        " seed | training, s |"
    )
    print("|---|---|---|---|---|")
    for found in rows:
        over = [a / b - 1 for a, b in zip(found["valid"], rows[0]["valid"], strict=True)]
        gain = "–" if found is rows[0] else ", ".join(f"{x:+.1%}" for x in over)
        seconds = f"{np.mean(found['seconds']):.0f}"
        valid = mean_and_spread(found["valid"])
        test = mean_and_spread(found["test"])
        print(f"| {found['name']} | {valid} | {test} | {gain} | {seconds} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
