"""Whole runs on the toy data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from absl import flags as absl_flags

import launch
from configs import csv
from kd_jax.core import process
from kd_jax.experiment import pipeline
from kd_jax.experiment.sections import leaves

ROOT = Path(__file__).parents[2]


def config(world, **fields):
    c = csv.get_config("teacher")
    c.update_from_flattened_dict(
        {
            "seeds": (0,),
            "data.files.path": str(world / "interactions.csv"),
            "data.files.items_path": str(world / "items.csv"),
            "teacher.lm.weights": str(world / "bert"),
            "teacher.model.components": 8,
            "teacher.model.dim": 16,
            "teacher.model.blocks": 1,
            "teacher.model.history": 6,
            "teacher.model.hidden": 16,
            "teacher.optimizer.steps": 12,
            "teacher.optimizer.batch_size": 8,
            "teacher.optimizer.eval_every": 6,
            **{f"student.{name}.dim": 8 for name in ("mf", "mlp", "sasrec")},
            "student.sasrec.history": 6,
            "student.sasrec.blocks": 1,
            "student.optimizer.steps": 20,
            "student.optimizer.batch_size": 8,
            "student.optimizer.eval_every": 10,
            "eval.ks": (5, 10),
            "eval.bootstrap": 100,
            "mesh.data": 1,
        }
        | fields
    )
    return c


def run(c, workdir):
    assert pipeline.main(c, workdir) == 0


def launched(monkeypatch, *arguments):
    """The exit status of ``launch.py`` with these arguments, in this process."""
    monkeypatch.setattr(process, "start", lambda: None)
    known = set(absl_flags.FLAGS)
    try:
        with warnings.catch_warnings():  # ml_collections loads a configuration with load_module
            warnings.simplefilter("ignore", DeprecationWarning)
            launch.main(launch.parse(["launch.py", *arguments]))
    except SystemExit as end:
        return end.code
    finally:
        for name in set(absl_flags.FLAGS) - known:
            delattr(absl_flags.FLAGS, name)
        absl_flags.FLAGS.unparse_flags()


def metrics_of(workdir):
    return json.loads((workdir / "report/metrics.json").read_text())


def flags(world, workdir, **fields):
    c = config(world, **fields)
    wanted = (
        {"seeds", "stages", *fields}
        | {"data.files.path", "data.files.items_path", "teacher.lm.weights"}
        | {f"{s}.{n}" for s in ("teacher", "student") for n, _ in leaves(c[s])}
    )
    plain = csv.get_config("teacher")
    found = [f"--config={ROOT / 'configs/csv.py'}:teacher", f"--workdir={workdir}"]
    for name in sorted(wanted):
        value, default = c, plain
        for part in name.split("."):
            value, default = value[part], default[part]
        if value != default:
            found.append(f"--config.{name}={value}")
    return found
