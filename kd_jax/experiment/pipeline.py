"""The stages, in order. Each reads and writes named artifacts in the workdir and is skipped where
it is up to date.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import locked, write_json
from kd_jax.core.logging import Log
from kd_jax.core.process import keep_compiled, status
from kd_jax.core.types import Params, PyTree
from kd_jax.data import text
from kd_jax.data.splits import TEST, VALID
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed, barrier, leader, leader_first, preempted
from kd_jax.distillation.teachers import fit_to_device
from kd_jax.distillation.term import OWN
from kd_jax.evaluation import latency
from kd_jax.evaluation.significance import gains
from kd_jax.evaluation.tasks import SPLITS, Evaluation, Rank
from kd_jax.experiment import manifest, roles
from kd_jax.experiment.config import reads_text, selects, trains_text
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.renamed import check_names
from kd_jax.experiment.run import Run, written
from kd_jax.experiment.setup import MODELS, TEACHER_OF
from kd_jax.models.scorer import table_rows
from kd_jax.report import page
from kd_jax.report.console import console_table
from kd_jax.report.headline import headline
from kd_jax.serving import exporters
from kd_jax.serving.exporters import Bundle
from kd_jax.training.checkpoint import Checkpoints, check_identity
from kd_jax.training.job import Trained, TrainingJob
from kd_jax.training.loop import TABLES_SHARE, train
from kd_jax.training.preemption import Preempted


class Pipeline(Run):
    """The stages of one run, each a method; ``main`` calls them in order."""

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        super().__init__(config, workdir, log)
        self.labelling = LabelStore(self)

    def data(self) -> None:
        """Read, clean, filter, index and split, once."""
        d = self.dataset
        sizes = np.bincount(d.split, minlength=3)
        self.log.note(
            f"data: {d.name}: {d.num_users:,} users, {d.num_items:,} items, {len(d.item):,}"
            f" interactions ({sizes[0]:,} train, {sizes[1]:,} valid, {sizes[2]:,} test; split"
            f" {d.split_name}); {int(np.sum(~d.warm)):,} items have no train interaction"
        )
        for what, count in d.counts.items():
            if count and what not in ("users", "items", "interactions"):
                self.log.note(f"data: {what.replace('_', ' ')}: {count:,}")
        if len(np.unique(d.user[d.split == TEST])) == 1:
            self.log.note(
                "warning: the test split has one user: what is measured says nothing about others"
            )

    # learning

    def fit(self, model: str) -> None:
        """Train ``model`` once per seed, from soft labels where it has a teacher."""
        for seed in self.seeds:
            folder = self.folder(model, seed)
            with Checkpoints(folder, self.identity(model, seed)) as checkpoints:
                if agreed(self.is_trained(model, seed)):
                    checkpoints.check_there(self.result(model, seed)["best_step"])
                    self.log.note(f"{model} (seed {seed}): up to date")
                    continue
                trained = self._train(model, seed, checkpoints)
            score = self.task.told(trained.best_score)
            self.log.note(
                f"{model} (seed {seed}): best on validation: {score} at step {trained.best_step} of"
                f" {trained.steps}"
            )
            result = {
                f.name: getattr(trained, f.name)
                for f in dataclasses.fields(trained)
                if f.name != "params"
            }
            if leader():
                write_json(folder / "result.json", result)
            barrier("result")

    def _train(self, model: str, seed: int, checkpoints: Checkpoints) -> Trained:
        built, recipe = self.build(model, seed), self.recipe(model)
        objective = self.objective(model)
        teachers, start = self.labelling.teachers(model, seed, built), built.start
        if self.bias(model) == "teacher" and OWN in teachers and "bias" in built.params:
            bias = np.asarray(teachers[OWN].bias())
            start = jax.tree_util.Partial(lambda start, bias: start() | {"bias": bias}, start, bias)
        teachers = {
            term.teacher: teachers[term.teacher] for term in objective if term.reads_teacher
        }
        judge = self.task.scorer(built.graphdef, "valid", built.history, full=False)
        live = model.endswith("teacher") and trains_text(self.settings(model).teacher)
        mine = sharding.local_rows(self.mesh, recipe.batch_size)
        examples = self.examples(
            model, built, seed, recipe.batch_size if mine is None else len(mine)
        )
        teachers, examples = fit_to_device(
            teachers, examples, int(TABLES_SHARE * sharding.device_memory())
        )
        return train(
            TrainingJob(
                model,
                seed,
                built.graphdef,
                start or built.params,
                built.constants,
                examples,
                objective,
                recipe,
                functools.partial(self._validate, judge),
                checkpoints,
                self.mesh,
                self.log,
                teachers=teachers,
                refresh=self.refresh(built, (VALID,)) if live else None,
                traces=self._traces(model, seed) if self.config.trace else None,
            )
        )

    def _traces(self, model: str, seed: int) -> Path:
        """Of this process alone."""
        process = (f"process{jax.process_index()}",) if jax.process_count() > 1 else ()
        return self.workdir.joinpath("trace", self.folder(model, seed).name, *process)

    def check(self) -> None:
        """Refuse what cannot run, or another config, before anything in the workdir is changed or
        anything trained.
        """
        source, teachers = self.config.distill.labels, self.config.distill.teachers
        if source not in ("cached", "online"):
            raise InputError(f"distill.labels={source!r} is unknown; known: cached, online")
        if teachers not in ("own", "all"):
            raise InputError(f"distill.teachers={teachers!r} is unknown; known: own, all")
        if teachers == "all" and source == "online":
            raise InputError(
                "distill.teachers='all' reads labels from disk; use distill.labels='cached', or"
                " 'own'"
            )
        for name in self.config.export.formats:
            exporters.exporter_section(name, self.config.export.to_dict().get(name, {}))
        if self.config.eval.bootstrap < 1:
            raise InputError(f"eval.bootstrap={self.config.eval.bootstrap} must be at least 1")
        self.check_form()
        teacher = self.settings("teacher").teacher
        text.check_template(teacher.lm.template, self.dataset.items.columns)
        if "teacher" in self.config.stages and reads_text(teacher):
            _ = self.item_texts  # all have one
        for model in MODELS:
            if model not in self.config.stages:
                continue
            self.recipe(model)
            objective = self.objective(model)
            if model not in TEACHER_OF and any(term.reads_teacher for term in objective):
                (field,) = self._term_sections(model, self.settings(model))
                raise InputError(
                    f"{field} reads a teacher, and {model} learns from clicks alone; use loss='ce'"
                )
            if not model.endswith("teacher"):
                self.student_spec(model)
            if model in TEACHER_OF:
                self.labelling.check(model)
        self._note_terms()
        stale: dict[str, InputError] = {}
        for model in MODELS:
            for seed in self.seeds:
                folder = self.folder(model, seed)
                try:
                    if folder.exists():
                        check_identity(folder, self.identity(model, seed))
                except InputError as error:
                    stale[folder.name] = error
        if stale:
            first, *others = stale
            raise InputError(
                str(stale[first]) + (f", and {', '.join(others)} too" if others else "")
            )

    def _note_terms(self) -> None:
        """Say which sources nobody reads, and which the control does without."""
        students = [model for model in TEACHER_OF if model in self.config.stages]
        read = {
            model: [term.teacher for term in self.objective(model) if term.reads_teacher]
            for model in students
        }
        if unread := (
            self.sources.keys() - {name for names in read.values() for name in names}
            if students
            else ()
        ):
            self.log.note(
                "warning: distill.sources: no term of distill.terms reads"
                f" {', '.join(sorted(unread))}"
            )
        if left := [
            name
            for name in read.get("distilled", ())
            if name not in read.get("control", read["distilled"])
        ]:
            rest = ", ".join(read["control"]) or "clicks alone"
            self.log.note(
                f"control: without {', '.join(left)}, which may hold a language model; it learns"
                f" from {rest}"
            )

    def _validate(
        self, judge: Callable[[Params, PyTree], Evaluation], params: Params, constants: PyTree
    ) -> float:
        return self.task.score(judge(params, constants))

    # judging

    def evaluate(self) -> None:
        """Judge every trained model on valid and test, compare, and write report/metrics.json."""
        c, d = self.config, self.dataset
        models = [m for m in MODELS if self.is_trained(m, self.seeds[0])]
        rows: list[dict[str, Any]] = []
        per_user: dict[str, list[dict[str, np.ndarray]]] = {}
        judged_counts: dict[str, dict[str, int]] = {}

        def add(
            name: str,
            seed: int | None,
            params: int,
            seconds: float,
            judged: dict[str, Evaluation],
            **more: Any,
        ) -> None:
            valid, test = judged["valid"], judged["test"]
            size = {"params": params, "bytes": 4 * params, "train_seconds": seconds}
            row = {
                "name": name,
                "seed": seed,
                **size,
                **more,
                "valid": valid.metrics,
                "test": test.metrics,
            }
            rows.append(row | {"slices": test.slices})
            kept = {key: test.per_user[key] for key in self._compared() if key in test.per_user}
            per_user.setdefault(name, []).append(kept)

        with self.log.stage("evaluate", total=1 + len(models) * len(self.seeds)) as bar:
            base = {split: self.task.baseline(split) for split in SPLITS}
            judged_counts |= {split: judged.counts for split, judged in base.items()}
            add("popularity", None, d.num_items, 0.0, base)
            if c.teacher.popularity.enabled and isinstance(self.task, Rank):
                days, judged = self.task.trending()
                add("trending", None, d.num_items, 0.0, judged, days=days)
            for model in models:
                for seed in self.seeds:
                    bar.update(len(rows))
                    result = self.result(model, seed)
                    built = self.build(model, seed)
                    params, constants = self.best(model, seed, built)
                    params = sharding.put_params(
                        params, table_rows(built.graphdef, params), self.mesh
                    )
                    best = params, sharding.put(constants, self.mesh)
                    judged = {
                        split: self.task.scorer(built.graphdef, split, built.history)(*best)
                        for split in SPLITS
                    }
                    more = {"steps": result["steps"], "best_step": result["best_step"]}
                    if isinstance(self.task, Rank):
                        more["users_per_second"] = latency.users_per_second(
                            d, built.graphdef, *best, built.history
                        )
                    if model in TEACHER_OF:
                        made = [
                            found.finished
                            for found in self.labelling.of(model, self.teacher_seeds(seed))
                        ]
                        more["label_seconds"] = sum(done["seconds"] for done in made if done)
                    add(model, seed, built.num_params, result["seconds"], judged, **more)
        dataset = {
            "name": d.name, "users": d.num_users, "items": d.num_items, "interactions": len(d.item),
            "cold_items": int(np.sum(~d.warm)), "split": d.split_name, "judged": judged_counts,
        }  # fmt: skip
        barrier("evaluated")
        if not leader():
            return
        taught = "control" in models and bool(
            self.reads("control")
        )  # else it is but another plain student
        measured = {name: seeds for name, seeds in per_user.items() if taught or name != "control"}
        page = {
            "schema": 1, "task": c.task, "dataset": dataset, "models": rows,
            "gain": gains(measured, self._compared(), roles.comparisons(), c.eval.bootstrap), "serving": self._serving(rows),
        }  # fmt: skip
        write_json(self.workdir / "report/metrics.json", page)

    def _serving(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        c = self.settings("teacher").teacher
        if (
            self.config.task != "rank"
            or not reads_text(c)
            or "teacher" not in {row["name"] for row in rows}
        ):
            return []
        seconds = latency.text_seconds(
            self.language_model.encode, self.dataset, self.item_texts, c.model.history
        )
        students = {
            role.name: role.distilled
            for role in roles.by_export()
            if role.text or not role.distilled
        }
        return latency.costs(rows, *seconds, teacher=roles.main_teacher().name, students=students)

    def _compared(self) -> tuple[str, ...]:
        select = selects(self.config)
        if self.config.task == "rank":
            return select, f"{select}/warm", f"{select}/cold"
        return ("accuracy", "log_loss") if select == "accuracy" else ("log_loss", "accuracy")

    # leaving

    def export(self) -> None:
        """Vectors and weights of the first seed's distilled student (or of the plain one where
        there is no other).
        """
        students = ("distilled", "control", "student")
        model = next((name for name in students if self.is_trained(name, self.seeds[0])), None)
        left = self._export_language_model()
        if model is None:
            if left:
                return
            raise InputError(
                "nothing to export: no student is trained; run the stage 'student' or 'distilled'"
                " first"
            )
        built = self._build_student(model, self.seeds[0])
        # Orbax reads in all processes together.
        params, constants = self.best(model, self.seeds[0], built)
        if not leader():
            return
        description = {
            "model": model,
            "student": self.settings(model).student.name,
            "task": self.config.task,
            "history": built.history,
            "spec": self.student_spec(model).plain(),
        }
        bundle = Bundle(
            self.dataset,
            nnx.merge(built.graphdef, params, constants),
            description,
            self.student_inputs(model),
        )
        folder = self.workdir / "export"
        c = self.config.export
        written = exporters.write(bundle, folder, tuple(c.formats), c.to_dict())
        for name, files in written.items():
            if not files:
                self.log.note(f"export: nothing as {name}: the student's scores do not factorise")
        self.log.note(f"export: {model} (seed {self.seeds[0]}) in {folder}")

    def _export_language_model(self) -> bool:
        """A fine-tuned language model of the first seed, as a Hugging Face folder; whether there is
        one.
        """
        seed, c = self.seeds[0], self.settings("teacher").teacher
        if not trains_text(c) or not self.is_trained("teacher", seed):
            return False
        built = self.build("teacher", seed)
        params = self.best_params(
            "teacher", seed, built
        )  # its constants, vectors of all texts, do not leave
        if leader():
            folder = self.workdir / "export/teacher"
            shutil.rmtree(folder, ignore_errors=True)
            self.language_model.save(
                folder, built.graphdef, params, built.constants, self.dataset.checksum
            )
            self.log.note(f"export: the fine-tuned language model (seed {seed}) in {folder}")
        return True

    def report(self) -> None:
        if not leader():
            return
        legend = roles.legend()
        path = page.write(self.workdir, legend)
        metrics = json.loads((self.workdir / "report/metrics.json").read_text())
        self.log.console.print(console_table(metrics, legend))
        self.log.note(headline(metrics, legend))
        self.log.note(f"report: {path}")


STAGES: dict[str, Callable[[Pipeline], None]] = {
    "data": Pipeline.data,
    "teacher": lambda run: run.fit("teacher"),
    "control_teacher": lambda run: run.fit("control_teacher"),
    "labels": lambda run: run.labelling.write(),
    "student": lambda run: run.fit("student"),
    "control": lambda run: run.fit("control"),
    "distilled": lambda run: run.fit("distilled"),
    "evaluate": Pipeline.evaluate,
    "export": Pipeline.export,
    "report": Pipeline.report,
}


def main(config: ConfigDict, workdir: Path) -> int:
    """Run the configured stages in their order; returns the exit status. User errors are one line
    on stderr.
    """
    return status(functools.partial(_run, config, workdir), workdir)


def _run(config: ConfigDict, workdir: Path) -> None:
    check_names(config)
    for stage in config.stages:
        if stage not in STAGES:
            raise InputError(f"stages: {stage!r} is unknown{nearest(stage, STAGES)}")
    barrier(
        "started"
    )  # the first collective waits half a minute for the others, later ones much longer
    with contextlib.ExitStack() as held:
        leader_first(lambda: held.enter_context(locked(workdir)) if leader() else None)
        keep_compiled(workdir)
        with Log(workdir / "metrics.jsonl", metric=selects(config), silent=not leader()) as log:
            if (workdir / "config.json").exists():
                written(workdir)  # raises for a workdir of an earlier version
            run = Pipeline(config, workdir, log)
            leader_first(lambda: run.dataset)  # it writes what the others load
            run.check()
            barrier("checked")
            if leader():
                write_json(workdir / "config.json", config.to_dict())
                manifest.write(workdir, run.dataset.checksum, run.seeds)
            for name, stage in STAGES.items():
                if preempted():
                    raise Preempted
                if name in config.stages:
                    stage(run)
            barrier("done")
