r"""Methods of distillation side by side: one student, one budget, from the text or the ID teacher.

    python benchmarks/distillation.py --out=runs/methods [--methods=kl,rrd,…] [FLAGS of launch.py]
    python benchmarks/distillation.py --out=runs/quick --config=configs/quickstart.py:runlocal

trains a whole run in OUT/base with the given flags: its teachers, the plain student and the
baselines. Then the student learns from the clicks, as the plain one does (``student.clicks``), and
from one loss of docs/methods.md, at each of --weights with the first seed; the weight with the best
validation is trained with all seeds. Every method has the same number of trials, all learn from the
first seed's teacher, and no student has the values that a search found (``tuned``) for it. Each run
has a workdir of its own, OUT/<method>.<teacher>.<weight>, so the same command goes on where it was
cut off, and --report prints what there is and what is missing without training.

--teachers are models of OUT/base, or folders of models in other workdirs (runs/wide/student). The
weight is chosen by the metric that selects models (``eval.select``), which the table shows.

The table has the test means ± standard deviations over seeds, the gain over the plain student with
its interval (paired bootstrap over users), and the seconds of training. OUT/results.json has it,
too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from ml_collections import ConfigDict

from benchmarks.measuring import ROOT, table
from kd_jax.experiment.config import selects

TEACHERS = ("teacher", "control_teacher")
METHODS = (
    *("kl", "reverse_kl", "generalised_js", "standardised_kl", "dkd", "topk_kl"),
    *("rd", "rrd", "listmle", "dcd", "rce", "dllm2rec", "on_policy_kl"),
    *("item_matching", "context_matching", "rkd", "ftd", "htd"),
)
TRIED, DONE = (
    f"--config.stages=('data','labels','student','distilled'{end})" for end in ("", ",'evaluate'")
)
UNTUNED = [f"--config.tuned.{role}=None" for role in ("student", "control", "distilled")]


class Trial(NamedTuple):
    """One student. teacher: a model of base, or the folder of one. weight: beside clicks of 1."""

    method: str
    teacher: str
    weight: float

    @property
    def name(self) -> str:
        return f"{self.method}.{Path(self.teacher).name}.{self.weight:g}"

    def flags(self, base: Path) -> list[str]:
        """The fields of launch.py, beside those of base."""
        clicks = json.loads((base / "config.json").read_text())["student"]["clicks"]
        method = {"loss": self.method, "weight": self.weight, "teacher": "base"}
        terms = {"clicks": clicks, "method": method | {"items": clicks["items"]}}
        teacher = Path(self.teacher).absolute() if "/" in self.teacher else base / self.teacher
        return [
            "--config.eval.baselines=()",  # they are in base
            "--config.distill.terms.soft=None",
            f"--config.distill.sources.base.path={teacher}",
            *(
                f"--config.distill.terms.{name}.{field}={value}"
                for name, term in terms.items()
                for field, value in term.items()
            ),
        ]


def launch(workdir: Path, flags: Sequence[str]) -> None:
    """Runs launch.py, whose output goes to WORKDIR.log; raises SystemExit where it fails."""
    log = workdir.with_name(f"{workdir.name}.log")
    command = [sys.executable, "launch.py", f"--workdir={workdir}", *flags]
    with log.open("a") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{workdir.name} failed: {log.read_text().splitlines()[-1]} (see {log})")


def metrics_of(workdir: Path) -> dict[str, Any] | None:
    path = workdir / "report/metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def seeds_of(metrics: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in metrics["models"] if row["name"] == name]


def validation_of(workdir: Path) -> float | None:
    """The first seed's best score on validation; None until it is trained."""
    path = workdir / "distilled/result.json"
    return json.loads(path.read_text())["best_score"] if path.exists() else None


def run(trial: Trial, out: Path, flags: Sequence[str], seeds: Sequence[int], stages: str) -> None:
    """Trains the student of a trial; what base has trained is copied."""
    workdir = out / trial.name
    workdir.mkdir(exist_ok=True)
    for folder in ("dataset", *(path.name for path in (out / "base").glob("student*"))):
        if not (workdir / folder).exists():
            shutil.copytree(out / "base" / folder, workdir / folder)
    chosen = f"--config.seeds=({','.join(map(str, seeds))},)"
    launch(workdir, [*flags, *trial.flags(out / "base"), stages, chosen])


def metric_of(base: Path) -> str:
    """The metric that selects models in this run."""
    return selects(ConfigDict(json.loads((base / "config.json").read_text())))


def best(
    method: str, teacher: str, options: argparse.Namespace, flags: Sequence[str], seeds: list[int]
) -> dict[str, Any]:
    """The row of a method: of its weights, the best on validation, with all seeds."""
    trials = [Trial(method, teacher, weight) for weight in options.weights]
    for trial in trials:
        if not options.report and validation_of(options.out / trial.name) is None:
            run(trial, options.out, flags, seeds[:1], TRIED)
    scores = {trial: validation_of(options.out / trial.name) for trial in trials}
    known = {trial: score for trial, score in scores.items() if score is not None}
    if len(known) < len(trials):
        missing = len(trials) - len(known)
        return {"method": method, "teacher": teacher, "missing": f"{missing} trials"}
    trial, metric = max(known, key=lambda trial: known[trial]), options.metric
    metrics = metrics_of(options.out / trial.name) or {"models": []}
    if not options.report and len(seeds_of(metrics, "distilled")) < len(seeds):
        run(trial, options.out, flags, seeds, DONE)
        metrics = metrics_of(options.out / trial.name) or {"models": []}
    rows = seeds_of(metrics, "distilled")
    if len(rows) < len(seeds):
        return {"method": method, "teacher": teacher, "missing": f"{len(seeds) - len(rows)} seeds"}
    gain = metrics["gain"].get(metric) or {}
    return {
        "method": method,
        "teacher": teacher,
        "weight": trial.weight,
        "valid": [row["valid"][metric] for row in rows],
        "test": [row["test"][metric] for row in rows],
        "gain": gain.get("relative"),
        "ci95": gain.get("ci95") or (None, None),
        "seconds": [row["train_seconds"] for row in rows],
    }


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a method."""
    if "missing" in row:
        return row["method"], row["teacher"], *("",) * 3, f"missing: {row['missing']}", ""
    low, high = map(percent, row["ci95"])
    return (
        row["method"],
        row["teacher"],
        f"{row['weight']:g}",
        spread(row["valid"]),
        spread(row["test"]),
        f"{percent(row['gain'])} % ({low} to {high})",
        f"{statistics.fmean(row['seconds']):.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    parser.add_argument("--teachers", type=lambda text: text.split(","), default=TEACHERS)
    parser.add_argument(
        "--weights", type=lambda text: [float(x) for x in text.split(",")], default=[0.3, 1.0, 3.0]
    )
    parser.add_argument("--report", action="store_true")
    options, flags = parser.parse_known_args()
    flags = [*flags, *UNTUNED]
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / "base"
    if not options.report:
        launch(base, flags)
    metrics = metrics_of(base)
    if metrics is None:
        raise SystemExit(f"{base} holds no finished run; run this without --report first")
    metric = options.metric = metric_of(base)
    alone = seeds_of(metrics, "student")
    seeds = [row["seed"] for row in alone]
    for name in dict.fromkeys(row["name"] for row in metrics["models"]):
        rows = seeds_of(metrics, name)
        print(f"{name}: test {metric} {spread([row['test'][metric] for row in rows])}", flush=True)
    rows = []
    for teacher in options.teachers:
        for method in options.methods:
            rows.append(best(method, teacher, options, flags, seeds))
            print(" | ".join(line(rows[-1])), flush=True)
            (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    head = ("method", "teacher", "weight", "validation", "test", "over the student", "s")
    print(f"\n{table(head, map(line, rows))}")


if __name__ == "__main__":
    main()
