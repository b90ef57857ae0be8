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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax import export, labels, manifest, report, serving, sharding
from kd_jax.checkpoint import Checkpoints, check_identity
from kd_jax.compare import gains
from kd_jax.data import dataset as datasets
from kd_jax.data import lists, text
from kd_jax.data.lists import Lists
from kd_jax.data.loader import TEST, TRAIN, VALID, Examples
from kd_jax.distill import OWN
from kd_jax.distributed import agreed, barrier, leader, leader_first, preempted
from kd_jax.errors import InputError, nearest
from kd_jax.files import disk_is_full, fingerprint, locked, read_json, write_json
from kd_jax.models.layers import table_rows
from kd_jax.models.student import student_class
from kd_jax.progress import Log
from kd_jax.setup import MODELS, TEACHER_OF, Built, Setup, reads_text, selects
from kd_jax.tasks import SPLITS, Judged, Rank
from kd_jax.train import TABLES_SHARE, Preempted, Trained, train
from kd_jax.types import Params, PyTree


@dataclasses.dataclass(frozen=True)
class Labels:
    """Soft labels of one teacher: where they are, what must have made them, and how they are made."""

    title: str
    folder: Path
    identity: str
    make: Callable[[], tuple[labels.Labeller, Examples]]

    @property
    def finished(self) -> dict[str, Any] | None:
        """What was noted when all of them were there; None where they are not, or others are."""
        note = self.folder / "done.json"
        done = read_json(note, f"delete {note} and run the 'labels' stage again") if note.exists() else {}
        return done if done.get("identity") == self.identity else None


class Run(Setup):
    """The stages of one run, each a method; ``main`` calls them in order."""

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        super().__init__(config, workdir, log)
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        self._read: dict[str, Lists] = {}  # by source
        self._opened: dict[str, Run] = {}

    @classmethod
    def opened(cls, workdir: Path, log: Log) -> Run:
        """The run that made ``workdir``, for reading its models. Raises InputError if it is none."""
        config = ConfigDict(read_json(workdir / "config.json", "give the --workdir of a run of launch.py"))
        config.mesh = ConfigDict({"data": -1, "model": 1})  # the devices at hand, not those that trained it
        run = cls(config, workdir, log)
        run.dataset = datasets.load(workdir / "dataset")  # as it is there, whatever became of its source
        return run

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
        if len(np.unique(d.user[d.split == TEST])) == 1:
            self.log.note("warning: the test split has one user: what is measured says nothing about others")

    # learning

    def fit(self, model: str) -> None:
        """Train ``model`` once per seed, from soft labels where it has a teacher."""
        for seed in self.seeds:
            folder = self.folder(model, seed)
            with Checkpoints(folder, self.identity(model, seed)) as checkpoints:
                if agreed((folder / "result.json").exists()):
                    checkpoints.check_there(self.result(model, seed)["best_step"])
                    self.log.note(f"{model} (seed {seed}): up to date")
                    continue
                trained = self._train(model, seed, checkpoints)
            score = self.task.told(trained.best_score)
            self.log.note(
                f"{model} (seed {seed}): best on validation: {score} at step {trained.best_step} of {trained.steps}"
            )
            result = {f.name: getattr(trained, f.name) for f in dataclasses.fields(trained) if f.name != "params"}
            if leader():
                write_json(folder / "result.json", result)
            barrier("result")

    def _train(self, model: str, seed: int, checkpoints: Checkpoints) -> Trained:
        built, recipe = self.build(model, seed), self.recipe(model)
        objective = self.objective(model)
        teachers, start = self.soft_labels(model, seed, built), built.start
        if self.settings(model).student.bias == "teacher" and OWN in teachers and "bias" in built.params:
            bias = np.asarray(teachers[OWN].bias())
            start = jax.tree_util.Partial(lambda start, bias: start() | {"bias": bias}, start, bias)
        teachers = {term.teacher: teachers[term.teacher] for term in objective if term.needs_teacher}
        judge = self.task.scorer(built.graphdef, "valid", built.history, full=False)
        live = model.endswith("teacher") and self.settings(model).teacher.train != "head"
        mine = sharding.local_rows(self.mesh, recipe.batch_size)
        examples = self.examples(model, built, seed, recipe.batch_size if mine is None else len(mine))
        teachers, examples = labels.fitting(teachers, examples, int(TABLES_SHARE * sharding.device_memory()))
        return train(
            built.graphdef,
            start or built.params,
            built.constants,
            name=model,
            seed=seed,
            examples=examples,
            objective=objective,
            recipe=recipe,
            evaluate=functools.partial(self._validate, judge),
            checkpoints=checkpoints,
            mesh=self.mesh,
            log=self.log,
            teachers={name: teacher.arrays for name, teacher in teachers.items()},
            teacher_scores={name: teacher.scores for name, teacher in teachers.items()},
            refresh=self.refresh(built, (VALID,)) if live else None,
            traces=self._traces(model, seed) if self.config.trace else None,
        )

    def _traces(self, model: str, seed: int) -> Path:
        """Of this process alone."""
        process = (f"process{jax.process_index()}",) if jax.process_count() > 1 else ()
        return self.workdir.joinpath("trace", self.folder(model, seed).name, *process)

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
        self.check_form()
        text.check_template(self.settings("teacher").teacher.template, self.dataset.items.columns)
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
            for name in self.reads(model):
                if name == OWN:
                    self._check_label_history(model)
                else:
                    self._check_source(model, name)
            untrained = [seed for seed in self.seeds if not (self.folder(model, seed) / "result.json").exists()]
            if model in TEACHER_OF and "labels" not in self.config.stages and untrained:
                for wanted in self._labels(model, sorted({s for seed in untrained for s in self.teacher_seeds(seed)})):
                    self._check_written(wanted)
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

    def best_params(self, model: str, seed: int, built: Built) -> Params:
        """The best parameters of a trained model."""
        folder = self.folder(model, seed)
        if not (folder / "result.json").exists():
            raise InputError(f"{folder} holds no trained {model}; run the stage {model!r} first (--config.stages)")
        return Checkpoints(folder).params(self.result(model, seed)["best_step"], built.params)

    def best(self, model: str, seed: int, built: Built, splits: Sequence[int] = (VALID, TEST)) -> tuple[Params, PyTree]:
        """``best_params``, and the constants that belong to them. splits: to be judged."""
        params = self.best_params(model, seed, built)
        if model.endswith("teacher") and self.settings(model).teacher.train != "head":
            return params, self.refresh(built, splits)(params, built.constants)
        return params, built.constants

    def _validate(self, judge: Callable[[Params, PyTree], Judged], params: Params, constants: PyTree) -> float:
        return self.task.score(judge(params, constants))

    # soft labels

    def _own_labels(self, student: str, seed: int) -> Labels:
        """What the run's own teacher says about every training example of ``student``."""
        teacher = TEACHER_OF[student]
        history, positions = self._window(student), self.positions(student)

        def make() -> tuple[labels.Labeller, Examples]:
            built = self.build(teacher, seed)
            params, constants = self.best(teacher, seed, built, (TRAIN,))
            model = labels.of_model(built.graphdef, params, constants, positions=positions, rates=self._rates)
            return model, self._label_examples(student, history)

        identity = fingerprint([self.identity(teacher, seed), positions, history])
        return Labels(f"{teacher} (seed {seed})", self.workdir / f"labels/{teacher}.seed{seed}", identity, make)

    def _source_labels(self, student: str, name: str) -> Labels:
        """What a teacher from outside says about them. One folder per content: students of one kind share it."""
        source, positions = self.sources[name], self.positions(student)
        window = self._window(student) if positions == "all" else 0  # of others only the teacher knows what it reads

        def make() -> tuple[labels.Labeller, Examples]:
            how: dict[str, Any] = {"positions": positions, "confidence": source.confidence}
            if source.folder is None:
                lists = self._lists(name)
                labeller = labels.of_lists(lists, self.dataset.num_items, **how)
                return labeller, self._label_examples(student, window or lists.history)
            run, seed = self._other(name)
            built = run.build(source.model, seed)
            best = run.best(source.model, seed, built)
            labeller = labels.of_model(built.graphdef, *best, rates=self._rates, **how)
            return labeller, self._label_examples(student, window or built.history)

        identity = fingerprint([self.source_identity(name), self.dataset.checksum, positions, window])
        return Labels(f"{name} ({source.path})", self.workdir / "labels" / name / identity, identity, make)

    @property
    def _rates(self) -> bool:
        return self.task.num_classes > 0

    def _label_examples(self, student: str, history: int) -> Examples:
        weighting = self._weighting(self.settings(student))
        return self.task.examples(self.positions(student), history=history, **weighting)

    def _lists(self, name: str) -> Lists:
        if name not in self._read:
            c, path = self.config.distill, self.sources[name].path
            found = lists.read(path, self.dataset, rank_decay=c.rank_decay, max_unmatched=c.max_unmatched)
            for note in found.notes:
                self.log.note(f"labels: {name} ({path}): {note}")
            self._read[name] = found
        return self._read[name]

    def _other(self, name: str) -> tuple[Run, int]:
        """The run whose model is the source ``name``, and the seed of that model. Raises InputError if it is of other
        data, or another task."""
        folder = self.sources[name].folder
        assert folder is not None
        if name not in self._opened:
            found = Run.opened(folder.parent, self.log)
            where = f"distill.sources: {name!r}: {folder}"
            if found.dataset.checksum != self.dataset.checksum:
                raise InputError(
                    f"{where} was trained on other data (checksum {found.dataset.checksum}, here "
                    f"{self.dataset.checksum}); train it with the same values in section data"
                )
            missing = [f"{s}.{f}" for s in ("teacher", "student") for f in self.config[s] if f not in found.config[s]]
            if missing:
                raise InputError(f"{where} was made by an older kd_jax, which had no {missing[0]}; train it again")
            if found.config.task != self.config.task:
                raise InputError(f"{where} was trained for task={found.config.task!r}; use the same task in both")
            self._opened[name] = found
        run = self._opened[name]
        seed = folder.name.partition(".seed")[2]
        return run, int(seed) if seed else run.seeds[0]

    def _check_source(self, student: str, name: str) -> None:
        """Refuse, before anything is trained, a source that cannot teach ``student``; a list is read to the end."""
        source, positions = self.sources[name], self.positions(student)
        if source.folder is None:
            if self._rates:
                raise InputError(
                    f"distill.sources: {name!r}: lists rank items; use a workdir as source, or task='rank'"
                )
            if not self._source_labels(student, name).finished:
                self._lists(name)
            return
        run, _ = self._other(name)
        if self._rates:
            return
        c, teaches = run.settings(source.model), source.model.endswith("teacher")
        kind = "teacher" if teaches else c.student.name
        if not teaches and not student_class(kind).factorised:
            raise InputError(
                f"distill.sources: {name!r}: the scores of {source.folder} ({kind!r}) do not factorise, and cannot be "
                "kept as vectors; use an 'mf' or 'sasrec' as source"
            )
        if positions != "all":
            return
        if teaches:
            follows, history = not c.teacher.trend and c.teacher.context == "items", c.teacher.history
        else:
            follows, history = student_class(kind).positions == "all", c.student.history
        if not follows or history < self._window(student):
            raise InputError(
                f"distill.sources: {name!r}: student.name={self.settings(student).student.name!r} learns after each of "
                f"{self._window(student)} items of a history, and {source.folder} ({kind!r}) "
                + (f"reads {history}" if follows else "does not read histories item by item")
                + "; use a 'sasrec' with student.history as long as here"
            )

    def label(self) -> None:
        """Write what each teacher says about every training example, once; every process its share."""
        for student, teacher in TEACHER_OF.items():
            trained = (self.folder(teacher, self.seeds[0]) / "result.json").exists()
            if not (trained or student in self.config.stages):
                continue
            for wanted in [found for seed in self.seeds for found in self._labels(student, (seed,))]:
                if not agreed(wanted.finished is not None):
                    self._write_labels(wanted)

    def _labels(self, student: str, seeds: Sequence[int]) -> list[Labels]:
        """All cached labels that ``student`` learns from, those of its own teacher for each of ``seeds``."""
        own = self.config.distill.labels == "cached"
        found = [
            [self._own_labels(student, seed) for seed in seeds if own]
            if name == OWN
            else [self._source_labels(student, name)]
            for name in self.reads(student)
        ]
        return [one for several in found for one in several]

    def _write_labels(self, wanted: Labels) -> None:
        began, folder = time.perf_counter(), wanted.folder
        labeller, examples = wanted.make()
        if leader():
            labels.prepare(folder, wanted.identity)
        barrier("labels are prepared")
        labels.write(folder, labeller, examples, part=(jax.process_index(), jax.process_count()))
        barrier("labels")
        used = labels.distinct_lists(folder) if "list_items" in labeller.shared else None
        if used == 0:
            raise InputError(
                f"labels: {wanted.title}: no training example has the user, or ends with the history, of any list; "
                "histories are the newest training items, oldest first"
            )
        seconds = time.perf_counter() - began
        if leader():
            size = labels.size_of(folder) / 1e6
            write_json(folder / "done.json", {"identity": wanted.identity, "seconds": seconds})
            said = f"labels: {wanted.title}: {examples.size:,} contexts, {size:.1f} MB in {seconds:.1f} s"
            self.log.note(said + ("" if used is None else f"; {used:,} lists are used"))
        barrier("labels are done")

    def soft_labels(self, model: str, seed: int, built: Built) -> dict[str, labels.Teacher]:
        """The teachers of ``model``, by name."""
        found: dict[str, labels.Teacher] = {}
        top = max(term.top for term in self.objective(model))
        for name in self.reads(model):
            if name == OWN and self.config.distill.labels == "online":
                teacher = self.build(TEACHER_OF[model], seed)
                params, constants = self.best(TEACHER_OF[model], seed, teacher, (TRAIN,))
                found[name] = labels.online(teacher.graphdef, params, constants, positions=built.positions)
                continue
            wanted = [self._own_labels(model, one) for one in self.teacher_seeds(seed)]
            if name != OWN:
                wanted = [self._source_labels(model, name)]
            for one in wanted:
                self._check_written(one)
            cached = labels.cached(*(one.folder for one in wanted))
            found[name] = labels.with_top(cached, top) if top and "contexts" in cached.arrays else cached
        return found

    def _check_written(self, wanted: Labels) -> None:
        if not wanted.finished:
            raise InputError(
                f"{wanted.folder} is missing or was written by another teacher; run the stage 'labels' first "
                "(--config.stages)"
            )

    def _check_label_history(self, model: str) -> None:
        """A student that learns after every item of a history needs a teacher that labels as many of them."""
        name, teacher = self.settings(model).student.name, self.settings(TEACHER_OF[model]).teacher
        if self.config.task != "rank" or self.positions(model) != "all":
            return
        window = self._window(model)
        wrong = {
            f"teacher.trend=False (now {teacher.trend})": teacher.trend,
            f"teacher.context='items' (now {teacher.context!r})": teacher.context != "items",
            f"teacher.history >= student.history (now {teacher.history} and {window})": window > teacher.history,
        }
        if any(wrong.values()):
            raise InputError(
                f"student.name={name!r} learns after every item of a history, and its teacher must label as much: use "
                + " and ".join(cure for cure, needed in wrong.items() if needed)
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
            kept = {key: test.per_user[key] for key in self._compared() if key in test.per_user}
            per_user.setdefault(name, []).append(kept)

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
                        made = [found.finished for found in self._labels(model, self.teacher_seeds(seed))]
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
        if self.config.task != "rank" or not reads_text(c) or "teacher" not in {row["name"] for row in rows}:
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
        left = self._export_language_model()
        if model is None:
            if left:
                return
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

    def _export_language_model(self) -> bool:
        """A fine-tuned language model of the first seed, as a Hugging Face folder; whether there is one."""
        seed, c = self.seeds[0], self.settings("teacher").teacher
        if c.train == "head" or not (self.folder("teacher", seed) / "result.json").exists():
            return False
        built = self.build("teacher", seed)
        params = self.best_params("teacher", seed, built)  # its constants, vectors of all texts, do not leave
        if leader():
            folder = self.workdir / "export/teacher"
            shutil.rmtree(folder, ignore_errors=True)
            self.language_model.save(folder, built.graphdef, params, built.constants)
            self.log.note(f"export: the fine-tuned language model (seed {seed}) in {folder}")
        return True

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


def verify_labels(workdir: Path, rows: int) -> Iterator[labels.Checked]:
    """``rows`` labels of every folder in ``workdir``, computed again by the teacher that wrote them."""
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        run = Run.opened(workdir, log)
        written = [found for student in TEACHER_OF for found in run._labels(student, run.seeds)]
        written = [found for found in written if (found.folder / "done.json").exists()]
        if not written:
            raise InputError(f"{workdir} holds no finished labels; run its stage 'labels' first")
        for wanted in {found.folder: found for found in written}.values():
            if not wanted.finished:
                raise InputError(
                    f"{wanted.folder} was written for another config or teacher; run the stage 'labels' again"
                )
            yield labels.verify(wanted.folder, *wanted.make(), rows)


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
