"""Measures a run that starts from a week-old run against a full run, in time and in NDCG@10.

    python benchmarks/update.py [--workdir=runs/update] [--rounds=1] [arguments of launch.py]

MovieTweetings is cut at two times ``--days`` apart: 'old' is what was known at the first, 'new' is
all of it. A run on 'old' is trained once. Then a full run on 'new' and one with ``init_from`` are
made in turns, ``--rounds`` of each, with the stages that serving needs. The seconds are wall clock
and CPU time of the whole command, from its start to its report. The interval of the relative
NDCG@10 of ``distilled`` is that of the paired bootstrap over the users of the test split. Written
to ``<workdir>/update.json``, with the output of every run and when it came. What is finished is not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measuring import ROOT, table, write

STAGES = ("data", "teacher", "labels", "distilled", "evaluate", "export", "report")
MODEL, METRIC = "distilled", "ndcg@10"
DAY = 86400


def cut(folder: Path, days: float) -> None:
    """Writes the data set without its last ``days``, and without items that nobody rated yet."""
    from kd_jax.data.readers.embedded import movietweetings

    raw = movietweetings()
    time = pl.col("timestamp")
    rows = raw.interactions.filter(time <= time.max() - int(days * DAY))
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(folder / "interactions.parquet")
    raw.items.join(rows, on="item", how="semi").write_parquet(folder / "items.parquet")


def run(workdir: Path, data: Path, rest: list[str]) -> dict[str, Any]:
    """A run of launch.py: its seconds, and its output with the seconds at which it came."""
    record = workdir.with_suffix(".json")
    if record.exists():
        return json.loads(record.read_text())
    shutil.rmtree(workdir, ignore_errors=True)
    command = [
        *(sys.executable, "launch.py", "--config=configs/quickstart.py", f"--workdir={workdir}"),
        *(f"--config.stages={STAGES}", "--config.data.reader=files"),
        f"--config.data.files.path={data / 'interactions.parquet'}",
        f"--config.data.files.items_path={data / 'items.parquet'}",
        *rest,
    ]
    began, cpu = time.perf_counter(), _children()
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((round(time.perf_counter() - began, 2), line.rstrip()))
    if process.returncode:
        raise SystemExit(process.returncode)
    found = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": _children() - cpu,
        "output": lines,
    }
    write(record, found)
    return found


def _children() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def per_user(workdir: Path) -> np.ndarray:
    """The metric of every user and seed on test, [S, U]."""
    from kd_jax.core.logging import Log
    from kd_jax.experiment.roles import ROLES
    from kd_jax.experiment.trained import open_workdir

    found = []
    with Log(workdir.with_suffix(".log"), METRIC) as log:
        models = open_workdir(workdir, log)
        experiment, role = models.experiment, ROLES[MODEL]
        for seed in experiment.seeds:
            found.append(models.open(role, seed).evaluate("test").per_user[METRIC])
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/update"))
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, default=1)
    options, rest = parser.parse_known_args()
    workdir = options.workdir.absolute()
    for name, days in (("old", options.days), ("new", 0.0)):
        cut(workdir / "data" / name, days)
    data = {name: workdir / "data" / name for name in ("old", "new")}
    run(workdir / "old", data["old"], rest)
    measured: dict[str, list[dict[str, Any]]] = {"full": [], "update": []}
    for number in range(options.rounds):
        for name, runs in measured.items():
            start = [f"--config.init_from={workdir / 'old'}"] if name == "update" else []
            runs.append(run(workdir / f"{name}{number}", data["new"], rest + start))
    report(workdir, measured)


def report(workdir: Path, measured: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table and writes update.json."""
    from kd_jax.evaluation.significance import paired_bootstrap

    values = {name: per_user(workdir / f"{name}0") for name in measured}
    gain = paired_bootstrap(values["full"], values["update"])
    kinds = ("seconds", "cpu_seconds")
    spent = {
        name: [float(np.median([one[kind] for one in runs])) for kind in kinds]
        for name, runs in measured.items()
    }
    rows = [
        [name, *(f"{value:.0f}" for value in spent[name]), f"{np.nanmean(values[name]):.4f}"]
        for name in measured
    ]
    print(table(["run", "seconds", "CPU seconds", f"{METRIC} of {MODEL}"], rows))
    shares = [b / a for a, b in zip(spent["full"], spent["update"], strict=True)]
    print(f"time of the update: {shares[0]:.1%} of the full run (CPU {shares[1]:.1%})")
    low, high = gain.ci95
    print(f"{METRIC}: {gain.relative:+.2%} [{low:+.2%}, {high:+.2%}]")
    found = {"shares": dict(zip(kinds, shares, strict=True)), "runs": measured}
    quality = {"relative": gain.relative, "ci95": gain.ci95, "p_value": gain.p_value}
    write(workdir / "update.json", found | {METRIC: quality})


if __name__ == "__main__":
    main()
