"""The stages of a run, in order.

Each stage reads and writes named artifacts in the workdir, and is skipped if it is up to date.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from kd_jax.core import trackers
from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import locked, write_json
from kd_jax.core.logging import Log
from kd_jax.core.process import keep_compiled, status
from kd_jax.core.trackers import TRACKERS
from kd_jax.devices.processes import barrier, leader, leader_first, preempted
from kd_jax.experiment import examples, manifest, roles
from kd_jax.experiment.checks import check
from kd_jax.experiment.config import selects
from kd_jax.experiment.describe import describe_data
from kd_jax.experiment.evaluate import evaluate
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.export import export
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.renamed import check_names
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import TrainedModels, written
from kd_jax.experiment.trainer import fit
from kd_jax.report import page
from kd_jax.report.console import console_table
from kd_jax.report.headline import headline
from kd_jax.report.plain import plain
from kd_jax.training.preemption import Preempted

Stage = Callable[[LabelStore], None]


def report(experiment: Experiment) -> None:
    """Writes report/index.html, and prints the table and the headline."""
    if not leader():
        return
    legend, log = roles.legend(), experiment.log
    examples.write(experiment)
    path = page.write(experiment.workdir, legend)
    metrics = json.loads((experiment.workdir / "report/metrics.json").read_text())
    log.console.print(console_table(metrics, legend))
    log.note(headline(metrics, legend))
    if words := plain(metrics, legend):
        log.note(words)
    log.note(f"report: {path}")


def stages() -> dict[str, Stage]:
    """The stages by name, in order; each role is one."""

    def training(chosen: tuple[Role, ...]) -> dict[str, Stage]:
        return {role.name: functools.partial(fit, role=role) for role in chosen}

    return {
        "data": lambda store: describe_data(store.experiment),
        **training(roles.teachers()),
        **training((roles.plain_student(),)),
        "labels": LabelStore.write,
        **training(tuple(role for role in roles.students() if role.distilled)),
        "evaluate": evaluate,
        "export": lambda store: export(store.models),
        "report": lambda store: report(store.experiment),
    }


def main(config: ConfigDict, workdir: Path) -> int:
    """Runs the configured stages in order; returns the exit status.

    User errors are printed as one line on stderr.
    """
    return status(functools.partial(run, config, workdir), workdir)


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages as ``main`` does, but raises errors."""
    check_names(config)
    known = stages()
    for stage in config.stages:
        if stage not in known:
            raise InputError(f"stages: {stage!r} is unknown{nearest(stage, known)}")
    trackers.check(config.trackers)
    # The first collective waits half a minute for the others, later ones much longer.
    barrier("started")
    with contextlib.ExitStack() as held:
        leader_first(lambda: held.enter_context(locked(workdir)) if leader() else None)
        keep_compiled(workdir)
        log_to = [TRACKERS[name](workdir, config.to_dict()) for name in config.trackers if leader()]
        path, metric = workdir / "metrics.jsonl", selects(config)
        with Log(path, metric, silent=not leader(), trackers=log_to) as log:
            if (workdir / "config.json").exists():
                written(workdir)  # raises for a workdir of an earlier version
            experiment = Experiment(config, workdir, log)
            leader_first(lambda: experiment.dataset)  # it writes what the others load
            store = LabelStore(TrainedModels(experiment))
            check(store)
            barrier("checked")
            if leader():
                write_json(workdir / "config.json", config.to_dict())
                manifest.write(workdir, experiment.dataset.checksum, experiment.seeds)
            for name, stage in known.items():
                if preempted():
                    raise Preempted
                if name in config.stages:
                    stage(store)
            barrier("done")
