"""Methods of distillation on one data set: one student, one budget, from one teacher or another.

A whole run in FOLDER/base trains teachers, the plain student and all baselines. Then the student
learns from the clicks, as the plain one does (``student.clicks``), and from one loss of
docs/methods.md, at each weight with the first seed; the weight with the best validation is trained
with all seeds. Every method has the same number of trials, all learn from the first seed's teacher,
and no student has the values that a search found (``tuned``) for it. FOLDER/start holds the plain
student whose item vectors start from the language model's, or at random where those of the plain
one start from text. Each run has a workdir of its own, FOLDER/<method>.<teacher>.<weight>, and
FOLDER/study.json what is compared: other flags are refused.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from ml_collections import ConfigDict

from benchmarks.measuring import ROOT
from kd_jax.core.files import fingerprint
from kd_jax.evaluation.baselines import BASELINES, PACKAGED
from kd_jax.experiment.config import selects
from kd_jax.losses import LOSSES
from kd_jax.losses.named import TopKL

# soft_ce has the gradient of kl
METHODS = tuple(name for name in LOSSES if name not in ("ce", "soft_ce"))
TRIED, DONE = (
    f"--config.stages=('data','labels','student','distilled'{end})" for end in ("", ",'evaluate'")
)
PLAIN = "--config.stages=('data','student','evaluate','report')"
UNTUNED = [f"--config.tuned.{role}=None" for role in ("student", "control", "distilled")]


class Trial(NamedTuple):
    """One student. teacher: a model of base, or the folder of one. weight: beside clicks of 1."""

    method: str
    teacher: str
    weight: float

    @property
    def name(self) -> str:
        teacher = Path(self.teacher).name
        if "/" in self.teacher:  # two workdirs may have models of one name
            teacher += f"-{fingerprint(str(Path(self.teacher).absolute()))}"
        return f"{self.method}.{teacher}.{self.weight:g}"

    def flags(self, base: Path) -> list[str]:
        """The fields of launch.py, beside those of base."""
        config = json.loads((base / "config.json").read_text())
        clicks = config["student"]["clicks"]
        method = {"loss": self.method, "weight": self.weight, "teacher": "base"}
        method["items"] = clicks["items"]
        if clicks["items"].startswith("sampled"):
            method |= for_a_sample(self.method, config["distill"]["top"])
        terms = {"clicks": clicks, "method": method}
        teacher = Path(self.teacher).absolute() if "/" in self.teacher else base / self.teacher
        return [
            "--config.eval.baselines=()",  # they are in base
            "--config.distill.terms=None",
            f"--config.distill.sources.base.path={teacher}",
            *(
                f"--config.distill.terms.{name}.{field}={value}"
                for name, term in terms.items()
                for field, value in term.items()
            ),
        ]


def for_a_sample(method: str, top: int) -> dict[str, int]:
    """The hyper-parameters of a loss that can read no sample with its default ones.

    top: the number of the teacher's best items in the sample.
    """
    return {"topk_kl": {"k": min(TopKL.k, top)}, "item_matching": {"drawn": 256}}.get(method, {})


def all_baselines(flags: Sequence[str]) -> list[str]:
    """The flag that adds all baselines whose packages are there; none if ``flags`` chooses them.

    It is no part of a study's record: a base without them is resumed with them.
    """
    if any(flag.startswith("--config.eval.baselines=") for flag in flags):
        return []
    installed = importlib.util.find_spec("implicit") is not None
    names = [name for name in BASELINES if installed or name not in PACKAGED]
    return [f"--config.eval.baselines={tuple(names)}"]


def launch(workdir: Path, flags: Sequence[str]) -> None:
    """Runs launch.py, whose output goes to WORKDIR.log; raises SystemExit where it fails."""
    log = workdir.with_name(f"{workdir.name}.log")
    print(f"{workdir.name}: {log}", flush=True)
    command = [sys.executable, "launch.py", f"--workdir={workdir}", *flags]
    with log.open("a") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = [*log.read_text().splitlines(), ""][-2:][0]
        raise SystemExit(f"{workdir.name} failed: {last} (see {log})")


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
            part = workdir / f"{folder}.part"  # a copy that was cut off counts as none
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(out / "base" / folder, part)
            part.rename(workdir / folder)
    chosen = f"--config.seeds=({','.join(map(str, seeds))},)"
    launch(workdir, [*flags, *trial.flags(out / "base"), stages, chosen])


def metric_of(base: Path) -> str:
    """The metric that selects models in this run."""
    return selects(ConfigDict(json.loads((base / "config.json").read_text())))


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared on a data set.

    out: its folder. teachers: models of base, or folders of models in other workdirs. texts: items
    have texts. report: read what there is, and train nothing.
    """

    out: Path
    flags: tuple[str, ...]
    methods: Sequence[str]
    teachers: Sequence[str]
    weights: Sequence[float]
    texts: bool = True
    report: bool = False

    @property
    def base(self) -> Path:
        return self.out / "base"

    @property
    def record(self) -> Path:
        return self.out / "study.json"

    def check(self) -> None:
        """Raises SystemExit if the folder was made with other flags."""
        known = json.loads(self.record.read_text()) if self.record.exists() else None
        if known and not self.report and known["flags"] != list(self.flags):
            raise SystemExit(f"{self.out} was made with other flags; use another --out")

    def begin(self) -> dict[str, Any]:
        """Trains base, unless ``report``; returns its metrics.

        Raises SystemExit where it fails or is not there.
        """
        if not self.report:
            self.out.mkdir(parents=True, exist_ok=True)
            fields = ("flags", "methods", "teachers", "weights")
            self.record.write_text(json.dumps({name: list(getattr(self, name)) for name in fields}))
            launch(self.base, [*self.flags, *all_baselines(self.flags)])
        metrics = metrics_of(self.base)
        if metrics is None:
            raise SystemExit(f"{self.base} holds no finished run")
        return metrics

    def row(self, method: str, teacher: str, metric: str, seeds: list[int]) -> dict[str, Any]:
        """The row of a method, or what it lacks."""
        row = {"method": method, "teacher": Path(teacher).name}
        try:
            return row | self._best(method, teacher, metric, seeds)
        except SystemExit as error:  # the other methods go on
            return row | {"missing": str(error)}

    def _best(self, method: str, teacher: str, metric: str, seeds: list[int]) -> dict[str, Any]:
        """Of the weights of a method, the best on validation, with all seeds."""
        trials = [Trial(method, teacher, weight) for weight in self.weights]
        for trial in trials:
            if not self.report and validation_of(self.out / trial.name) is None:
                run(trial, self.out, self.flags, seeds[:1], TRIED)
        scores = {trial: validation_of(self.out / trial.name) for trial in trials}
        known = {trial: score for trial, score in scores.items() if score is not None}
        if len(known) < len(trials):
            return {"missing": f"{len(trials) - len(known)} trials"}
        trial = max(known, key=lambda trial: known[trial])
        metrics = metrics_of(self.out / trial.name) or {"models": []}
        if not self.report and len(seeds_of(metrics, "distilled")) < len(seeds):
            run(trial, self.out, self.flags, seeds, DONE)
            metrics = metrics_of(self.out / trial.name) or {"models": []}
        rows = seeds_of(metrics, "distilled")
        if len(rows) < len(seeds):
            return {"missing": f"{len(seeds) - len(rows)} seeds"}
        gain = metrics["gain"].get(metric) or {}
        return {
            "weight": trial.weight,
            "valid": [row["valid"][metric] for row in rows],
            "test": [row["test"][metric] for row in rows],
            "gain": gain.get("relative"),
            "ci95": gain.get("ci95") or (None, None),
            "seconds": [row["train_seconds"] for row in rows],
        }

    def other_start(self) -> list[dict[str, Any]]:
        """The plain student with its item vectors started the other way, from text or at random."""
        workdir = self.out / "start"
        config = json.loads((self.base / "config.json").read_text())["student"]
        name = config["name"]
        if not self.texts or "vectors" not in config[name]:
            return []
        start = "random" if config[name]["vectors"] == "text" else "text"
        if not self.report and metrics_of(workdir) is None:
            vectors = f"--config.student.{name}.vectors={start}"
            try:
                launch(workdir, [*self.flags, "--config.eval.baselines=()", PLAIN, vectors])
            except SystemExit as error:  # the methods go on
                print(error, flush=True)
        rows = seeds_of(metrics_of(workdir) or {"models": []}, "student")
        return [row | {"name": f"student, vectors from {start}"} for row in rows]
