"""Whole runs on the toy data."""

from __future__ import annotations

import json
from pathlib import Path

from configs import csv
from kd_jax.experiment import pipeline

ROOT = Path(__file__).parents[2]


def config(world, **fields):
    c = csv.get_config()
    c.update_from_flattened_dict(
        {
            "seeds": (0,),
            "data.path": str(world / "interactions.csv"),
            "data.items_path": str(world / "items.csv"),
            "teacher.weights": str(world / "bert"),
            "teacher.components": 8,
            "teacher.dim": 16,
            "teacher.blocks": 1,
            "teacher.history": 6,
            "teacher.hidden": 16,
            "teacher.steps": 12,
            "teacher.batch_size": 8,
            "teacher.eval_every": 6,
            "student.dim": 8,
            "student.history": 6,
            "student.blocks": 1,
            "train.steps": 20,
            "train.batch_size": 8,
            "train.eval_every": 10,
            "eval.ks": (5, 10),
            "eval.bootstrap": 100,
            "mesh.data": 1,
        }
        | fields
    )
    return c


def run(c, workdir):
    assert pipeline.main(c, workdir) == 0


def metrics_of(workdir):
    return json.loads((workdir / "report/metrics.json").read_text())


def flags(world, workdir, **fields):
    c = config(world, **fields)
    wanted = (
        {"seeds", "stages", *fields}
        | {"data.path", "data.items_path", "teacher.weights"}
        | {f"{s}.{n}" for s in ("teacher", "student", "train") for n in c[s]}
    )
    plain = csv.get_config()
    found = [f"--config={ROOT / 'configs/csv.py'}", f"--workdir={workdir}"]
    for name in sorted(wanted):
        value, default = c, plain
        for part in name.split("."):
            value, default = value[part], default[part]
        if value != default:
            found.append(f"--config.{name}={value}")
    return found
