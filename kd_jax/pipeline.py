"""The stages, in order. Each reads and writes named artifacts in the workdir and is skipped when they are up to date.

Only ``launch.py`` and this file read the configuration.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax import export, labels, manifest, report, serving, sharding
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import dataset as datasets
from kd_jax.data import sources, text
from kd_jax.data.loader import Examples, history_texts, snapshot_examples, with_live_items
from kd_jax.data.trends import Trends, decayed_counts, trends
from kd_jax.distill import Objective, Term
from kd_jax.errors import InputError, nearest
from kd_jax.files import difference, fingerprint, locked, stamp, write_json
from kd_jax.metrics import paired_bootstrap
from kd_jax.models.language import LanguageModel
from kd_jax.models.student import StudentSpec, student_class
from kd_jax.models.teacher import BiEncoder, TeacherSpec, Texts
from kd_jax.progress import Log
from kd_jax.tasks import Judged, Rank, Rate, Task
from kd_jax.train import Recipe, train
from kd_jax.types import Params, PyTree

TEACHER_OF = {"distilled": "teacher", "control": "control_teacher"}  # whose labels a student learns from
MODELS = ("control_teacher", "teacher", "student", "control", "distilled")


@dataclasses.dataclass(frozen=True)
class Built:
    """A model as the train step takes it: ``nnx.merge(graphdef, params, constants)``."""

    graphdef: nnx.GraphDef
    params: Params
    constants: PyTree
    positions: str
    history: int
    frozen_params: int = 0  # of a language model that is read through its cached vectors

    @property
    def num_params(self) -> int:
        return self.frozen_params + sum(leaf.size for leaf in jax.tree.leaves(self.params))


class Run:
    """One workdir, one resolved configuration. The stages are methods; ``main`` calls them in order."""

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        self.config, self.workdir, self.log = config, workdir, log
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        self.seeds = tuple(int(seed) for seed in config.seeds)
        if not self.seeds:
            raise InputError("seeds is empty; give at least one, for example --config.seeds='(0,)'")

    # data

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
            if count:
                self.log.note(f"data: {what.replace('_', ' ')}: {count:,}")

    @functools.cached_property
    def dataset(self) -> datasets.Dataset:
        c = self.config.data
        folder = self.workdir / "dataset"
        note = folder / "identity.json"
        identity = c.to_dict() | {"task": self.config.task, "files": stamp(c.path, c.items_path)}
        if note.exists():
            if identity["files"] is None:  # the source is gone; what was made from it is here
                identity["files"] = json.loads(note.read_text())["files"]
            changed = difference(json.loads(note.read_text()), identity, "data")
            if changed:
                raise InputError(f"{folder} was made with other settings ({changed}); use another --workdir")
            return datasets.load(folder)
        raw = sources.read(
            c.source, c.path or None, items_path=c.items_path or None, columns=c.columns.to_dict(),
            tfds_name=c.tfds_name, tfds_fields=c.tfds_fields.to_dict(),
        )
        built = datasets.build(
            raw, split=c.split, ratios=tuple(c.ratios), min_user_interactions=c.min_interactions,
            min_item_interactions=c.min_item_interactions, min_rating=c.min_rating, max_malformed=c.max_malformed,
            missing_text=c.missing_text, text_columns=tuple(c.text_columns) or None, max_users=c.max_users,
        )
        built.save(folder)
        write_json(note, identity)
        return built

    @functools.cached_property
    def task(self) -> Task:
        c = self.config
        if c.data.split == "strong" and student_class(c.student.name).positions == "user":
            raise InputError(
                f"data.split='strong' holds users out, and student.name={c.student.name!r} knows only the users it was "
                "trained on; use student.name='sasrec' or another data.split"
            )
        if c.task == "rank":
            return Rank(self.dataset, c.eval.select, tuple(c.eval.metrics), tuple(c.eval.ks), c.eval.batch_size)
        if c.task == "rate":
            return Rate(self.dataset, tuple(c.rate.boundaries), c.eval.select)
        raise InputError(f"task={c.task!r} is unknown{nearest(c.task, ('rank', 'rate'))}")

    # models

    def settings(self, model: str) -> ConfigDict:
        """The configuration with what was tuned for ``model`` on top."""
        c = ConfigDict(self.config.to_dict())
        for field, value in self.config.tuned[model]:
            section, _, name = field.partition(".")
            if section not in c or name not in c[section]:
                known = [f"{s}.{n}" for s in ("teacher", "student", "distill", "train") for n in c[s]]
                raise InputError(f"tuned.{model}: no field {field!r}{nearest(field, known)}")
            c[section][name] = value
        if model == "control_teacher":
            c.teacher.update(item_features="id", context="items", train="head", train_bias=True)
        return c

    def folder(self, model: str, seed: int) -> Path:
        """``<model>`` for the first seed, ``<model>.seed<n>`` for the others."""
        return self.workdir / (model if seed == self.seeds[0] else f"{model}.seed{seed}")

    def identity(self, model: str, seed: int) -> dict[str, Any]:
        """All that determines the parameters of ``model``; a checkpoint is bound to it."""
        c = self.settings(model)
        common = {"data": self.dataset.checksum, "task": c.task, "select": c.eval.select, "seed": seed}
        if c.task == "rate":
            common["boundaries"] = tuple(c.rate.boundaries)
        if model.endswith("teacher"):
            return common | {"teacher": c.teacher.to_dict()}
        distill = {"terms": [dataclasses.astuple(term) for term in self.objective(model)]}
        if model in TEACHER_OF:
            distill |= {"labels": c.distill.labels, "teacher": fingerprint(self.identity(TEACHER_OF[model], seed))}
        return common | {"student": c.student.to_dict(), "train": c.train.to_dict(), "distill": distill}

    def objective(self, model: str) -> Objective:
        c = self.settings(model)
        terms = tuple(Term(*term) for term in (c.distill.terms if model in TEACHER_OF else (c.distill.clicks,)))
        if c.task == "rate":  # classes, not items: there is no warm class
            terms = tuple(dataclasses.replace(term, items="all") for term in terms)
        return terms

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        c = self.config.teacher
        return LanguageModel(
            c.weights, backend=c.backend, pooling=c.pooling, max_tokens=c.max_tokens, train=c.train, top_n=c.top_n,
            cache=self.workdir / "cache",
        )

    def _vectors(self, tower: str, texts: list[str]) -> Texts:
        with self.log.stage(f"encode {tower}", total=len(texts)) as bar:
            return self.language_model.texts(tower, texts, lambda done, _: bar.update(done))

    @functools.cached_property
    def item_texts(self) -> list[str]:
        return text.item_texts(self.dataset.items, self.dataset.items.columns)

    @functools.cached_property
    def trends(self) -> Trends:
        c = self.config.teacher
        return trends(self.dataset, snapshots=c.snapshots, days=c.snapshot_days)

    def start_bias(self, kind: str) -> np.ndarray:
        """Where item biases start, f32 [I]: log(1 + count), or 'trend': the log of the count of late."""
        if kind == "trend":
            return np.log(decayed_counts(self.dataset, self.config.student.trend_days) + 0.03).astype(np.float32)
        return np.log1p(self.dataset.item_counts).astype(np.float32)

    def build(self, model: str, seed: int) -> Built:
        """The model with its first parameters."""
        return (self._build_teacher if model.endswith("teacher") else self._build_student)(model, seed)

    def _build_teacher(self, model: str, seed: int) -> Built:
        c = self.settings(model).teacher
        ranks = self.task.num_classes == 0
        trend = self.trends.features if c.trend and ranks else None
        spec = TeacherSpec(
            # Trends say how popular an item is; a bias that knew the total as well would speak against new items.
            bias=self.start_bias("count") * (0.0 if trend is not None else 1.0), trends=trend, warm=self.dataset.warm if ranks else None, num_items=self.dataset.num_items,
            num_classes=self.task.num_classes,
            **{f.name: c[f.name] for f in dataclasses.fields(TeacherSpec) if f.name in c},
        )
        reads_text = "text" in (*spec.item_features.split("+"), spec.context)
        lm = self.language_model if reads_text else None
        items = self._vectors("text", self.item_texts) if "text" in spec.item_features else None
        contexts = None
        if spec.context == "text":
            contexts = self._vectors("written", history_texts(self.dataset, self.item_texts, spec.history))
        live = lm is not None and lm.live
        module = BiEncoder(spec, items, contexts, lm.encoder if lm and live else None, rngs=nnx.Rngs(seed))
        graphdef, params, constants = nnx.split(module, nnx.Param, ...)
        return Built(
            graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(constants), module.positions, spec.history,
            frozen_params=lm.encoder.num_params if lm and not live else 0,
        )

    def _build_student(self, model: str, seed: int) -> Built:
        c = self.settings(model).student
        cls = student_class(c.name)
        spec = self.student_spec(model)
        graphdef, params, constants = nnx.split(cls(spec, rngs=nnx.Rngs(seed)), nnx.Param, ...)
        history = c.history if cls.positions == "all" else self.config.teacher.history
        return Built(graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(constants), cls.positions, history)

    def student_spec(self, model: str) -> StudentSpec:
        c = self.settings(model).student
        return StudentSpec(
            num_users=self.dataset.num_users, num_items=self.dataset.num_items, bias=self.start_bias(c.bias),
            warm=self.dataset.warm if self.task.num_classes == 0 else None, num_classes=self.task.num_classes,
            **{f.name: c[f.name] for f in dataclasses.fields(StudentSpec) if f.name in c and f.name != "bias"},
        )

    # learning

    def fit(self, model: str) -> None:
        """Train ``model`` once per seed, from soft labels where it has a teacher."""
        for seed in self.seeds:
            folder = self.folder(model, seed)
            checkpoints = Checkpoints(folder, self.identity(model, seed))
            if (folder / "result.json").exists():
                self.log.note(f"{model} (seed {seed}): up to date")
                continue
            built, recipe = self.build(model, seed), self.recipe(model)
            teacher = self.soft_labels(model, seed, built) if model in TEACHER_OF else None
            if self.settings(model).student.bias == "teacher" and teacher is not None and "bias" in built.params:
                built.params["bias"] = np.asarray(teacher.bias())
            judge = self.task.scorer(built.graphdef, "valid", built.history, full=False)
            live = model.endswith("teacher") and self.settings(model).teacher.train != "head"
            trained = train(
                built.graphdef, built.params, built.constants, name=model, seed=seed,
                examples=self.examples(model, built), objective=self.objective(model), recipe=recipe,
                evaluate=lambda params, constants, judge=judge: self.task.score(judge(params, constants)),
                checkpoints=checkpoints, mesh=self.mesh, log=self.log,
                teacher=teacher.arrays if teacher else None, teacher_logits=teacher.logits if teacher else None,
                refresh=functools.partial(self.language_model.refresh, built.graphdef) if live else None,
            )
            checkpoints.close()
            write_json(folder / "result.json", dataclasses.asdict(trained))

    def recipe(self, model: str) -> Recipe:
        c = self.settings(model)
        section = c.teacher if model.endswith("teacher") else c.train
        return Recipe(**{f.name: section[f.name] for f in dataclasses.fields(Recipe) if f.name in section})

    def examples(self, model: str, built: Built) -> Examples:
        c = self.settings(model)
        if model.endswith("teacher") and c.teacher.trend and c.task == "rank":
            return snapshot_examples(
                self.dataset, self.trends.times, history=built.history, horizon_days=c.teacher.horizon_days,
                window_days=c.teacher.window_days,
            )
        found = self.task.examples(built.positions, history=built.history, **self._weighting(c))
        if model.endswith("teacher") and c.teacher.train != "head":
            return with_live_items(found, c.teacher.batch_size, self.dataset.num_items)
        return found

    def _weighting(self, c: ConfigDict) -> dict[str, Any]:
        return {"decay": c.student.decay, "decay_unit": c.student.decay_unit, "user_power": c.student.user_power}

    def best(self, model: str, seed: int, built: Built) -> tuple[Params, PyTree]:
        """The best parameters of a trained model, and the constants that belong to them."""
        folder = self.folder(model, seed)
        if not (folder / "result.json").exists():
            raise InputError(f"{folder} holds no trained {model}; run the stage {model!r} first (--config.stages)")
        step = json.loads((folder / "result.json").read_text())["best_step"]
        params = Checkpoints(folder).params(step, built.params)
        if model.endswith("teacher") and self.settings(model).teacher.train != "head":
            return params, self.language_model.refresh(built.graphdef, params, built.constants)
        return params, built.constants

    def label_file(self, student: str, seed: int) -> Path:
        return self.workdir / "labels" / f"{TEACHER_OF[student]}.seed{seed}.safetensors"

    def label(self) -> None:
        """Write what each teacher says about every training example, once."""
        for student, teacher in TEACHER_OF.items():
            if student not in self.config.stages or self.config.distill.labels == "online":
                continue
            for seed in self.seeds:
                path = self.label_file(student, seed)
                note = path.with_suffix(".json")
                target = self._build_student(student, seed)
                identity = fingerprint([self.identity(teacher, seed), target.positions, target.history])
                if note.exists() and path.exists() and json.loads(note.read_text())["identity"] == identity:
                    continue
                built = self.build(teacher, seed)
                self._check_label_history(target, built)
                params, constants = self.best(teacher, seed, built)
                examples = self.task.examples(
                    target.positions, history=target.history, **self._weighting(self.settings(student))
                )
                began = time.perf_counter()
                labels.write(
                    path, built.graphdef, params, constants, examples, rows=self.task.label_rows(examples),
                    positions=target.positions,
                )
                write_json(note, {"identity": identity})
                self.log.note(f"labels: {teacher} (seed {seed}): {examples.size:,} contexts, "
                              f"{path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - began:.1f} s")

    def soft_labels(self, model: str, seed: int, built: Built) -> labels.Teacher:
        if self.config.distill.labels == "cached":
            return labels.cached(self.label_file(model, seed))
        if self.config.distill.labels != "online":
            raise InputError(f"distill.labels={self.config.distill.labels!r} is unknown; known: cached, online")
        teacher = self.build(TEACHER_OF[model], seed)
        self._check_label_history(built, teacher)
        params, constants = self.best(TEACHER_OF[model], seed, teacher)
        return labels.online(teacher.graphdef, params, constants, positions=built.positions)

    def _check_label_history(self, student: Built, teacher: Built) -> None:
        if student.positions == "all" and (teacher.positions != "all" or student.history > teacher.history):
            raise InputError(
                f"student.history={student.history} reads more than the teacher can label (teacher.history="
                f"{teacher.history}, teacher.context gives '{teacher.positions}' positions); raise teacher.history, lower "
                "student.history, or use teacher.context='items'"
            )

    # judging

    def evaluate(self) -> None:
        """Judge every trained model on valid and test, compare, and write report/metrics.json."""
        path = self.workdir / "report/metrics.json"
        c, d = self.config, self.dataset
        rows: list[dict[str, Any]] = []
        per_user: dict[str, list[dict[str, np.ndarray]]] = {}
        cost: list[dict[str, Any]] = []
        models = [m for m in MODELS if (self.folder(m, self.seeds[0]) / "result.json").exists()]
        with self.log.stage("evaluate", total=1 + len(models) * len(self.seeds)) as bar:
            base = {split: self.task.baseline(split) for split in ("valid", "test")}
            rows.append({"name": "popularity", "seed": None, "params": d.num_items, "bytes": 4 * d.num_items,
                         "train_seconds": 0.0, **_judged(base)})
            if c.teacher.trend and c.task == "rank":
                days, trending = self.task.trending()
                rows.append({"name": "trending", "seed": None, "params": d.num_items, "bytes": 4 * d.num_items,
                             "train_seconds": 0.0, "days": days, **_judged(trending)})
            for model in models:
                for seed in self.seeds:
                    bar.update(len(rows))
                    result = json.loads((self.folder(model, seed) / "result.json").read_text())
                    built = self.build(model, seed)
                    params, constants = self.best(model, seed, built)
                    judged = {
                        split: self.task.scorer(built.graphdef, split, built.history)(params, constants)
                        for split in ("valid", "test")
                    }
                    speed = None
                    if c.task == "rank":
                        speed = serving.users_per_second(d, built.graphdef, params, constants, built.history)
                    rows.append({"name": model, "seed": seed, "params": built.num_params, "bytes": 4 * built.num_params,
                                 "train_seconds": result["seconds"], "steps": result["steps"],
                                 "best_step": result["best_step"], "users_per_second": speed, **_judged(judged)})
                    per_user.setdefault(model, []).append(judged["test"].per_user)
        write_json(path, {
            "schema": 1, "task": c.task, "select": c.eval.select,
            "dataset": {"name": d.name, "users": d.num_users, "items": d.num_items, "interactions": len(d.item),
                        "cold_items": int(np.sum(~d.warm)), "split": d.split_name},
            "models": rows, "gain": self._gains(per_user), "serving": cost,
        })

    def _gains(self, per_user: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, Any]:
        """Distilled over student, and over control (the language model's own share), paired over users."""
        gains: dict[str, Any] = {}
        if not {"student", "distilled"} <= per_user.keys():
            return gains
        select = self.config.eval.select
        for name in (select, f"{select}/warm", f"{select}/cold") if self.task.num_classes == 0 else ("log_loss", "accuracy"):
            values = {model: np.stack([v[name] for v in seeds]) for model, seeds in per_user.items() if name in seeds[0]}
            if "distilled" not in values:
                continue
            gain = paired_bootstrap(values["student"], values["distilled"], resamples=self.config.eval.bootstrap)
            gains[name] = {"student": gain.baseline, "distilled": gain.candidate, "relative": gain.relative,
                           "ci95": gain.ci95, "p_value": gain.p_value}
            if "control" in values:
                share = paired_bootstrap(values["control"], values["distilled"], resamples=self.config.eval.bootstrap)
                gains[name] |= {"control": share.baseline, "lm_share": {
                    "relative": share.relative, "ci95": share.ci95, "p_value": share.p_value}}
        return gains

    # leaving

    def export(self) -> None:
        """Vectors and weights of the first seed's distilled student (or of the plain one where there is no other)."""
        model = next((m for m in ("distilled", "control", "student")
                      if (self.folder(m, self.seeds[0]) / "result.json").exists()), None)
        if model is None:
            raise InputError("nothing to export: no student is trained; run the stage 'student' or 'distilled' first")
        built = self._build_student(model, self.seeds[0])
        params, constants = self.best(model, self.seeds[0], built)
        c = self.settings(model).student
        export.write(
            self.workdir / "export", self.dataset, c.name, self.student_spec(model), built.graphdef, params, constants,
            history=built.history, task=self.config.task,
        )
        self.log.note(f"export: {model} (seed {self.seeds[0]}) in {self.workdir / 'export'}")

    def report(self) -> None:
        path = report.write(self.workdir)
        metrics = json.loads((self.workdir / "report/metrics.json").read_text())
        self.log.console.print(report.console_table(metrics))
        self.log.note(report.headline(metrics))
        self.log.note(f"report: {path}")


def _judged(judged: dict[str, Judged]) -> dict[str, Any]:
    return {"valid": judged["valid"].metrics, "test": judged["test"].metrics, "slices": judged["test"].slices}


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
        with locked(workdir):
            jax.config.update("jax_compilation_cache_dir", str((workdir / "cache/xla").absolute()))
            write_json(workdir / "config.json", config.to_dict())
            with Log(workdir / "metrics.jsonl", metric=config.eval.select) as log:
                run = Run(config, workdir, log)
                manifest.write(workdir, run.dataset.checksum, run.seeds)
                for name, stage in STAGES.items():
                    if name in config.stages:
                        stage(run)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: the disk of {workdir} is full; free some space and run the same command again: it resumes",
              file=sys.stderr)
    return 2
