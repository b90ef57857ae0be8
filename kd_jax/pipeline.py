"""The stages, in order. Each reads and writes named artifacts in the workdir and is skipped where it is up to date."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax import export, labels, manifest, report, serving, sharding
from kd_jax.checkpoint import Checkpoints, check_identity
from kd_jax.compare import gains
from kd_jax.distributed import barrier, leader, leader_first, preempted
from kd_jax.errors import InputError, nearest
from kd_jax.files import disk_is_full, fingerprint, locked, read_json, write_json
from kd_jax.models.layers import table_rows
from kd_jax.progress import Log
from kd_jax.setup import MODELS, TEACHER_OF, Built, Setup, selects
from kd_jax.tasks import SPLITS, Judged, Rank
from kd_jax.train import Preempted, Trained, train
from kd_jax.types import Params, PyTree


class Run(Setup):
    """The stages of one run, each a method; ``main`` calls them in order."""

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        super().__init__(config, workdir, log)
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)

    def data(self) -> None:
        """Read, clean, filter, index and split, once."""
        d = self.dataset
        sizes = np.bincount(d.split, minlength=3)
        self.log.note(
            f"data: {d.name}: {d.num_users:,} users, {d.num_items:,} items, {len(d.item):,} interactions "
            f"({sizes[0]:,} train, {sizes[1]:,} valid, {sizes[2]:,} test; split {d.split_name}); "
            f"{int(np.sum(~d.warm)):,} items have no train interaction"
        )
        for what, count in d.counts.items():
            if count and what not in ("users", "items", "interactions"):
                self.log.note(f"data: {what.replace('_', ' ')}: {count:,}")

    # learning

    def fit(self, model: str) -> None:
        """Train ``model`` once per seed, from soft labels where it has a teacher."""
        for seed in self.seeds:
            folder = self.folder(model, seed)
            with Checkpoints(folder, self.identity(model, seed)) as checkpoints:
                if (folder / "result.json").exists():
                    self.log.note(f"{model} (seed {seed}): up to date")
                    continue
                trained = self._train(model, seed, checkpoints)
            result = {f.name: getattr(trained, f.name) for f in dataclasses.fields(trained) if f.name != "params"}
            if leader():
                write_json(folder / "result.json", result)
            barrier("result")

    def _train(self, model: str, seed: int, checkpoints: Checkpoints) -> Trained:
        built, recipe = self.build(model, seed), self.recipe(model)
        teacher = self.soft_labels(model, seed, built) if model in TEACHER_OF else None
        start = built.start
        if self.settings(model).student.bias == "teacher" and teacher is not None and "bias" in built.params:
            bias = np.asarray(teacher.bias())
            start = jax.tree_util.Partial(lambda start, bias: start() | {"bias": bias}, start, bias)
        judge = self.task.scorer(built.graphdef, "valid", built.history, full=False)
        live = model.endswith("teacher") and self.settings(model).teacher.train != "head"
        mine = sharding.local_rows(self.mesh, recipe.batch_size)
        return train(
            built.graphdef,
            start or built.params,
            built.constants,
            name=model,
            seed=seed,
            examples=self.examples(model, built, seed, recipe.batch_size if mine is None else len(mine)),
            objective=self.objective(model),
            recipe=recipe,
            evaluate=functools.partial(self._validate, judge),
            checkpoints=checkpoints,
            mesh=self.mesh,
            log=self.log,
            teacher=teacher.arrays if teacher else None,
            teacher_scores=teacher.scores if teacher else None,
            refresh=functools.partial(self.language_model.refresh, built.graphdef) if live else None,
            traces=self.workdir / "trace" / self.folder(model, seed).name if self.config.trace else None,
        )

    def check(self) -> None:
        """Refuse what cannot run, or another config, before anything in the workdir is changed or anything trained."""
        source, teachers = self.config.distill.labels, self.config.distill.teachers
        if source not in ("cached", "online"):
            raise InputError(f"distill.labels={source!r} is unknown; known: cached, online")
        if teachers not in ("own", "all"):
            raise InputError(f"distill.teachers={teachers!r} is unknown; known: own, all")
        if teachers == "all" and source == "online":
            raise InputError("distill.teachers='all' reads labels from disk; use distill.labels='cached', or 'own'")
        if self.config.eval.bootstrap < 1:
            raise InputError(f"eval.bootstrap={self.config.eval.bootstrap} must be at least 1")
        for model in MODELS:
            if model not in self.config.stages:
                continue
            self.recipe(model)
            objective = self.objective(model)
            if model not in TEACHER_OF and any(term.needs_teacher for term in objective):
                raise InputError(
                    f"distill.clicks={self.config.distill.clicks}: {model} learns from clicks alone; use a 'ce' term"
                )
            if not model.endswith("teacher"):
                self.student_spec(model)
            if model in TEACHER_OF:
                self._check_label_history(model)
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
            raise InputError(str(stale[first]) + (f", and {', '.join(others)} too" if others else ""))

    def result(self, model: str, seed: int) -> dict[str, Any]:
        folder = self.folder(model, seed)
        return read_json(folder / "result.json", f"delete {folder} to train it anew")

    def best(self, model: str, seed: int, built: Built) -> tuple[Params, PyTree]:
        """The best parameters of a trained model, and the constants that belong to them."""
        folder = self.folder(model, seed)
        if not (folder / "result.json").exists():
            raise InputError(f"{folder} holds no trained {model}; run the stage {model!r} first (--config.stages)")
        step = self.result(model, seed)["best_step"]
        params = Checkpoints(folder).params(step, built.params)
        if model.endswith("teacher") and self.settings(model).teacher.train != "head":
            return params, self.language_model.refresh(built.graphdef, params, built.constants)
        return params, built.constants

    def _validate(self, judge: Callable[[Params, PyTree], Judged], params: Params, constants: PyTree) -> float:
        return self.task.score(judge(params, constants))

    def label_folder(self, student: str, seed: int) -> Path:
        return self.workdir / "labels" / f"{TEACHER_OF[student]}.seed{seed}"

    def _labels_of(self, student: str, seed: int) -> str:
        """Identity of the labels that ``student`` learns from: their teacher, and the examples they are for."""
        history, positions = self._window(student), self.positions(student)
        return fingerprint([self.identity(TEACHER_OF[student], seed), positions, history])

    def _finished_labels(self, student: str, seed: int) -> dict[str, Any] | None:
        """What ``label`` noted of the labels that ``student`` learns from; None if they are not (all) there."""
        note = self.label_folder(student, seed) / "done.json"
        done = read_json(note, f"delete {note} and run the 'labels' stage again") if note.exists() else {}
        return done if done.get("identity") == self._labels_of(student, seed) else None

    def label(self) -> None:
        """Write what each teacher says about every training example, once; every process its share."""
        for student, teacher in TEACHER_OF.items():
            trained = (self.folder(teacher, self.seeds[0]) / "result.json").exists()
            if not (trained or student in self.config.stages) or self.config.distill.labels == "online":
                continue
            for seed in self.seeds:
                if self._finished_labels(student, seed) is not None:
                    continue
                folder, positions = self.label_folder(student, seed), self.positions(student)
                built = self.build(teacher, seed)
                params, constants = self.best(teacher, seed, built)
                examples = self.task.examples(
                    positions, history=self._window(student), **self._weighting(self.settings(student))
                )
                began, identity = time.perf_counter(), self._labels_of(student, seed)
                if leader():
                    labels.prepare(folder, identity)
                barrier("labels are prepared")
                labels.write(
                    folder,
                    built.graphdef,
                    params,
                    constants,
                    examples,
                    positions=positions,
                    part=(jax.process_index(), jax.process_count()),
                )
                barrier("labels")
                seconds = time.perf_counter() - began
                if leader():
                    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
                    write_json(folder / "done.json", {"identity": identity, "seconds": seconds})
                    self.log.note(
                        f"labels: {teacher} (seed {seed}): {examples.size:,} contexts, {size:.1f} MB in {seconds:.1f} s"
                    )
                barrier("labels are done")

    def soft_labels(self, model: str, seed: int, built: Built) -> labels.Teacher:
        if self.config.distill.labels == "cached":
            seeds = self.teacher_seeds(seed)
            for one in seeds:
                if self._finished_labels(model, one) is None:
                    raise InputError(
                        f"{self.label_folder(model, one)} is missing or was written by another teacher; run the "
                        "stage 'labels' first (--config.stages)"
                    )
            found = labels.cached(*(self.label_folder(model, one) for one in seeds))
            top = max(term.top for term in self.objective(model))
            return labels.with_top(found, top) if top else found
        teacher = self.build(TEACHER_OF[model], seed)
        params, constants = self.best(TEACHER_OF[model], seed, teacher)
        return labels.online(teacher.graphdef, params, constants, positions=built.positions)

    def _check_label_history(self, model: str) -> None:
        """A student that learns after every item of a history needs a teacher that labels as many of them."""
        name, teacher = self.settings(model).student.name, self.settings(TEACHER_OF[model]).teacher
        if self.config.task != "rank" or self.positions(model) != "all":
            return
        if teacher.trend or teacher.context != "items" or self._window(model) > teacher.history:
            raise InputError(
                f"student.name={name!r} learns after every item of a history, and its teacher must label as much: use "
                f"teacher.trend=False (now {teacher.trend}), teacher.context='items' (now {teacher.context!r}) and "
                f"teacher.history >= student.history (now {teacher.history} and {self._window(model)})"
            )

    # judging

    def evaluate(self) -> None:
        """Judge every trained model on valid and test, compare, and write report/metrics.json."""
        c, d = self.config, self.dataset
        models = [m for m in MODELS if (self.folder(m, self.seeds[0]) / "result.json").exists()]
        rows: list[dict[str, Any]] = []
        per_user: dict[str, list[dict[str, np.ndarray]]] = {}
        judged_counts: dict[str, dict[str, int]] = {}

        def add(
            name: str, seed: int | None, params: int, seconds: float, judged: dict[str, Judged], **more: Any
        ) -> None:
            valid, test = judged["valid"], judged["test"]
            size = {"params": params, "bytes": 4 * params, "train_seconds": seconds}
            row = {"name": name, "seed": seed, **size, **more, "valid": valid.metrics, "test": test.metrics}
            rows.append(row | {"slices": test.slices})
            per_user.setdefault(name, []).append(test.per_user)

        with self.log.stage("evaluate", total=1 + len(models) * len(self.seeds)) as bar:
            base = {split: self.task.baseline(split) for split in SPLITS}
            judged_counts |= {split: judged.counts for split, judged in base.items()}
            add("popularity", None, d.num_items, 0.0, base)
            if c.teacher.trend and isinstance(self.task, Rank):
                days, judged = self.task.trending()
                add("trending", None, d.num_items, 0.0, judged, days=days)
            for model in models:
                for seed in self.seeds:
                    bar.update(len(rows))
                    result = self.result(model, seed)
                    built = self.build(model, seed)
                    params, constants = self.best(model, seed, built)
                    params = sharding.put_params(params, table_rows(built.graphdef, params), self.mesh)
                    best = params, sharding.put(constants, self.mesh)
                    judged = {split: self.task.scorer(built.graphdef, split, built.history)(*best) for split in SPLITS}
                    more = {"steps": result["steps"], "best_step": result["best_step"]}
                    if isinstance(self.task, Rank):
                        more["users_per_second"] = serving.users_per_second(d, built.graphdef, *best, built.history)
                    if model in TEACHER_OF:
                        made = [self._finished_labels(model, one) for one in self.teacher_seeds(seed)]
                        more["label_seconds"] = sum(done["seconds"] for done in made if done)
                    add(model, seed, built.num_params, result["seconds"], judged, **more)
        dataset = {
            "name": d.name, "users": d.num_users, "items": d.num_items, "interactions": len(d.item),
            "cold_items": int(np.sum(~d.warm)), "split": d.split_name, "judged": judged_counts,
        }  # fmt: skip
        barrier("evaluated")
        if not leader():
            return
        report = {
            "schema": 1, "task": c.task, "dataset": dataset, "models": rows,
            "gain": gains(per_user, self._compared(), c.eval.bootstrap), "serving": self._serving(rows),
        }  # fmt: skip
        write_json(self.workdir / "report/metrics.json", report)

    def _serving(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        c = self.settings("teacher").teacher
        reads = "text" in (*c.item_features.split("+"), c.context)
        if self.config.task != "rank" or not reads or "teacher" not in {row["name"] for row in rows}:
            return []
        seconds = serving.text_seconds(self.language_model.encode, self.dataset, self.item_texts, c.history)
        return serving.costs(rows, *seconds)

    def _compared(self) -> tuple[str, ...]:
        select = selects(self.config)
        if self.config.task == "rank":
            return select, f"{select}/warm", f"{select}/cold"
        return ("accuracy", "log_loss") if select == "accuracy" else ("log_loss", "accuracy")

    # leaving

    def export(self) -> None:
        """Vectors and weights of the first seed's distilled student (or of the plain one where there is no other)."""
        model = next(
            (
                m
                for m in ("distilled", "control", "student")
                if (self.folder(m, self.seeds[0]) / "result.json").exists()
            ),
            None,
        )
        self._export_language_model()
        if model is None:
            raise InputError("nothing to export: no student is trained; run the stage 'student' or 'distilled' first")
        built = self._build_student(model, self.seeds[0])
        params, constants = self.best(model, self.seeds[0], built)  # Orbax reads in all processes together
        if not leader():
            return
        c = self.settings(model).student
        export.write(
            self.workdir / "export",
            self.dataset,
            c.name,
            self.student_spec(model),
            built.graphdef,
            params,
            constants,
            history=built.history,
            task=self.config.task,
            model=model,
        )
        self.log.note(f"export: {model} (seed {self.seeds[0]}) in {self.workdir / 'export'}")

    def _export_language_model(self) -> None:
        """A fine-tuned language model of the first seed, as a Hugging Face folder."""
        seed, c = self.seeds[0], self.settings("teacher").teacher
        if c.train == "head" or not (self.folder("teacher", seed) / "result.json").exists():
            return
        built = self.build("teacher", seed)
        best = self.best("teacher", seed, built)
        if leader():
            folder = self.workdir / "export/teacher"
            shutil.rmtree(folder, ignore_errors=True)
            self.language_model.save(folder, built.graphdef, *best)
            self.log.note(f"export: the fine-tuned language model (seed {seed}) in {folder}")

    def report(self) -> None:
        if not leader():
            return
        path = report.write(self.workdir)
        metrics = json.loads((self.workdir / "report/metrics.json").read_text())
        self.log.console.print(report.console_table(metrics))
        self.log.note(report.headline(metrics))
        self.log.note(f"report: {path}")


STAGES: dict[str, Callable[[Run], None]] = {
    "data": Run.data,
    "teacher": lambda run: run.fit("teacher"),
    "control_teacher": lambda run: run.fit("control_teacher"),
    "labels": Run.label,
    "student": lambda run: run.fit("student"),
    "control": lambda run: run.fit("control"),
    "distilled": lambda run: run.fit("distilled"),
    "evaluate": Run.evaluate,
    "export": Run.export,
    "report": Run.report,
}


def main(config: ConfigDict, workdir: Path) -> int:
    """Run the configured stages in their order; returns the exit status. User errors are one line on stderr."""
    try:
        for stage in config.stages:
            if stage not in STAGES:
                raise InputError(f"stages: {stage!r} is unknown{nearest(stage, STAGES)}")
        barrier("started")  # the first collective waits half a minute for the others, later ones much longer
        with contextlib.ExitStack() as held:
            leader_first(lambda: held.enter_context(locked(workdir)) if leader() else None)
            if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
                jax.config.update("jax_compilation_cache_dir", str((workdir / "cache/xla").absolute()))
            with Log(workdir / "metrics.jsonl", metric=selects(config), silent=not leader()) as log:
                run = Run(config, workdir, log)
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
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}; change its permissions, or --workdir", file=sys.stderr)
    except Exception as error:  # Polars, safetensors and TensorStore report a full disk in types of their own
        if not disk_is_full(error):
            raise
        print(
            f"error: the disk of {workdir} is full; free some space and run the same command again: it resumes",
            file=sys.stderr,
        )
    return 2
