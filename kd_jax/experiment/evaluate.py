"""Evaluation of all trained models, and report/metrics.json."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.files import content_hash, write_json
from kd_jax.core.logging import Bar
from kd_jax.data import summary
from kd_jax.data.prepared.folder import PreparedDataset
from kd_jax.data.splits import NAMES
from kd_jax.data.statistics import dated
from kd_jax.devices.processes import barrier, leader
from kd_jax.distillation.term import OWN
from kd_jax.evaluation import latency
from kd_jax.evaluation.baselines import BASELINES
from kd_jax.evaluation.baselines.base import TooLarge
from kd_jax.evaluation.baselines.chosen import chosen
from kd_jax.evaluation.significance import Comparison, PerUser, gains
from kd_jax.evaluation.tasks import SPLITS, Rank
from kd_jax.experiment import ensemble, new_costs, other_lists, roles, served, smaller
from kd_jax.experiment.config import reads_text, selects
from kd_jax.experiment.evaluations import Evaluations, Found, Row
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.new_items import SLICE, NewItems
from kd_jax.experiment.new_users import NewUsers
from kd_jax.experiment.objectives import description, teachers_of
from kd_jax.experiment.roles import Role


@dataclasses.dataclass
class Measured:
    """The evaluated models, with each user's value of the compared metrics."""

    compared: tuple[str, ...]
    kept: Evaluations
    rows: list[Row] = dataclasses.field(default_factory=list)
    per_user: dict[str, list[PerUser]] = dataclasses.field(default_factory=dict)

    def add(self, key: Any, evaluate: Callable[[], Found]) -> Found:
        """Adds a model. evaluate: its name, seed and costs, and evaluations by split.

        key: what they depend on (``Evaluations``).
        """
        row, evaluations = self.kept.kept(key, evaluate)
        test = evaluations["test"]
        metrics: Row = {split: found.metrics for split, found in evaluations.items()}
        shown = {split: found.impressions for split, found in evaluations.items()}
        if any(shown.values()):
            metrics["impressions"] = shown
        self.rows.append(row | metrics | {"slices": test.slices})
        kept = {name: test.per_user[name] for name in self.compared if name in test.per_user}
        self.per_user.setdefault(row["name"], []).append(kept)
        return row, evaluations


def evaluate(store: LabelStore) -> None:
    """Evaluate every trained model on valid and test, compare, and write report/metrics.json."""
    experiment = store.experiment
    first = experiment.seeds[0]
    trained = [role for role in roles.in_tables() if store.models.has(role, first)]
    compared = compared_metrics(experiment)
    measured = Measured(compared, Evaluations(experiment, compared))
    total = len(trained) * len(experiment.seeds)
    with experiment.log.stage("evaluate", total=total) as bar:
        counts = _add_baselines(experiment, measured)
        _add_models(store, trained, measured, bar)
        if any(ensemble.learns_from_it(store, role) for role in trained):
            key = [_key(store, roles.plain_student(), seed) for seed in experiment.seeds]
            measured.add(["ensemble", key], lambda: ensemble.evaluated(store))
    if kept := measured.kept.found:
        experiment.log.note(f"evaluate: {kept} of {measured.kept.asked} are kept from before")
    barrier("evaluated")
    if not leader():
        return
    # A control without any teacher equals the plain student.
    alike = {
        role.name
        for role in trained
        if role.distilled and not role.text and not teachers_of(experiment, role)
    }
    per_user = {name: seeds for name, seeds in measured.per_user.items() if name not in alike}
    resamples = experiment.config.eval.bootstrap
    page = {
        "schema": 1,
        "task": experiment.config.task,
        "select": selects(experiment.config),
        "dataset": _dataset(experiment, counts),
        "models": measured.rows,
        "lists": list(other_lists.paths(experiment)),
        "descriptions": {role.name: description(experiment, role) for role in trained},
        "gain": gains(per_user, measured.compared, _comparisons(store), resamples),
        "serving": _serving(experiment, measured.rows),
    }
    write_json(experiment.workdir / "report/metrics.json", page)
    measured.kept.prune()


def _comparisons(store: LabelStore) -> list[Comparison]:
    """Those of the roles, with a transfer ratio where a student learns from a model of the run."""
    found = []
    for comparison in roles.comparisons():
        student = roles.ROLES[comparison.candidate]
        if OWN not in teachers_of(store.experiment, student):
            teacher = roles.ENSEMBLE if ensemble.learns_from_it(store, student) else ""
            comparison = dataclasses.replace(comparison, teacher=teacher)
        found.append(comparison.with_lists(other_lists.paths(store.experiment)))
    return found


def _add_baselines(experiment: Experiment, measured: Measured) -> dict[str, dict[str, int]]:
    """Evaluates baselines and lists of other systems; returns what popularity has, by split."""
    task, timed = experiment.task, experiment.config.teacher.popularity.enabled
    row = {"seed": None} | _size(experiment.dataset.num_items, 0.0)

    def popularity() -> Found:
        return {"name": "popularity"} | row, {split: task.baseline(split) for split in SPLITS}

    _, base = measured.add("popularity", popularity)
    if isinstance(task, Rank) and (timed or dated(experiment.dataset)):

        def trending() -> Found:
            days, found = task.trending()
            return {"name": "trending"} | row | {"days": days}, found

        measured.add("trending", trending)
    if isinstance(task, Rank) and leader():
        for name in experiment.config.eval.baselines:
            _add_personal(experiment, task, name, measured)
        for name, path in other_lists.paths(experiment).items():
            _add_lists(experiment, name, path, measured)
    return {split: found.counts for split, found in base.items()}


def _add_lists(experiment: Experiment, name: str, path: Path, measured: Measured) -> None:
    """Evaluates the lists of another system."""

    def evaluated() -> Found:
        test, notes = other_lists.evaluated(experiment, path)
        return {"name": name, "seed": None, "notes": notes}, {"test": test}

    unmatched = experiment.config.distill.max_unmatched
    row, _ = measured.add(["lists", name, content_hash(path), unmatched], evaluated)
    for line in row["notes"]:
        experiment.log.note(f"{path}: {line}")


def _add_personal(experiment: Experiment, task: Rank, name: str, measured: Measured) -> None:
    """Evaluates a baseline that is fitted to clicks, or notes why it is left out."""
    data, note = experiment.dataset, experiment.log.note
    if isinstance(data, PreparedDataset) and not data.whole:
        note(f"{name}: left out: it reads the interactions of all users, and a part is in memory")
        return

    def evaluated() -> Found:
        best = chosen(task, BASELINES[name])
        row = {"name": name, "seed": None, "setting": dict(best.setting)}
        return row | _size(best.params, best.seconds), best.found

    try:
        row, _ = measured.add(["baseline", name], evaluated)
    except TooLarge as error:
        note(f"{name}: left out: {error}")
        return
    setting = ", ".join(f"{field} {value:g}" for field, value in row["setting"].items())
    note(f"{name}: {setting}, the best of {len(BASELINES[name].settings)} on valid")


def _size(params: int, seconds: float) -> Row:
    return {"params": params, "bytes": 4 * params, "train_seconds": seconds}


def _add_models(store: LabelStore, trained: list[Role], measured: Measured, bar: Bar) -> None:
    models = itertools.product(trained, store.experiment.seeds)
    for done, (role, seed) in enumerate(models):
        bar.update(done)
        evaluated = functools.partial(_evaluated, store, role, seed)
        measured.add(_key(store, role, seed), evaluated)


def _key(store: LabelStore, role: Role, seed: int) -> list[Any]:
    """What the evaluation of a trained model depends on."""
    experiment, models = store.experiment, store.models
    key: list[Any] = [role.name, identity_of(experiment, role, seed), models.result(role, seed)]
    if role.distilled:
        key.append(_label_seconds(store, role, seed))
    if role == models.exported():  # its items are new ones, too, by a map of their texts
        template = experiment.settings(roles.main_teacher()).teacher.lm.template
        key.append([experiment.config.export.new_items, template])
    return key


def _label_seconds(store: LabelStore, role: Role, seed: int) -> float:
    labels = store.of(role, store.experiment.teacher_seeds(seed))
    return sum(one.finished["seconds"] for one in labels if one.finished)


def _evaluated(store: LabelStore, role: Role, seed: int) -> Found:
    experiment, models = store.experiment, store.models
    result, trained = models.result(role, seed), models.open(role, seed)
    parts, found = trained.parts, {split: trained.evaluate(split) for split in SPLITS}
    row = {"name": role.name, "seed": seed} | _size(parts.num_params, result["seconds"])
    row |= {name: result[name] for name in ("steps", "best_step")}
    if isinstance(experiment.task, Rank):
        row |= latency.rates(experiment.dataset, parts.graphdef, *trained.on_devices, parts.history)
    if not role.is_teacher:
        select, test = selects(experiment.config), found["test"]
        known = test.metrics[select]
        users = NewUsers(trained)
        row["new_users"] = users.metrics(known)
        if role == models.exported():
            row["smaller"] = smaller.sizes(trained, known)
            items = NewItems(trained)
            row["served"] = served.metrics(trained, users, items)
            if seed == experiment.seeds[0]:
                row["new_items"] = items.metrics(test.slices.get(SLICE, {}).get(select))
                row |= new_costs.seconds(trained, items)
    if role.distilled:
        row["label_seconds"] = _label_seconds(store, role, seed)
    return row, found


def _dataset(experiment: Experiment, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    d = experiment.dataset
    return {
        "name": d.name,
        "users": d.num_users,
        "items": d.num_items,
        "interactions": d.counts.get("interactions", len(d.item)),
        "beyond_max_users": d.counts.get("beyond_max_users", 0),
        "cold_items": int(np.sum(~d.warm)),
        "items_without_text": summary.without_text(d),
        "split": d.split_name,
        "judged": counts,
        "not_judged": {
            NAMES[split]: {"users": users, "targets": targets}
            for split, (users, targets) in summary.unjudged(d).items()
        },
    }


def _serving(experiment: Experiment, rows: list[Row]) -> list[dict[str, Any]]:
    teacher = roles.main_teacher()
    c = experiment.settings(teacher).teacher
    trained = {row["name"] for row in rows}
    if experiment.config.task != "rank" or not reads_text(c) or teacher.name not in trained:
        return []
    reader = experiment.texts(teacher)
    per_user, per_item = latency.text_seconds(
        reader.language_model.encode, experiment.dataset, reader.items, c.model.history
    )
    students = {role.name: role.distilled for role in roles.by_export() if role.text}
    return latency.costs(rows, per_user, per_item, teacher=teacher.name, students=students)


def compared_metrics(experiment: Experiment) -> tuple[str, ...]:
    """The metrics of ``gain``, the one that selects first."""
    select = selects(experiment.config)
    if experiment.config.task == "rank":
        return select, f"{select}/warm", f"{select}/cold"
    return ("accuracy", "log_loss") if select == "accuracy" else ("log_loss", "accuracy")
