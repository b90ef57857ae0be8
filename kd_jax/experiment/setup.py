"""What a configuration stands for: the data, the task, the models, their objectives and recipes.

From ``settings.py`` up the configuration is read; everything below takes plain arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import difference, fingerprint, read_json, stamp, write_json
from kd_jax.core.logging import Log
from kd_jax.core.types import PAD, Array, Params, PyTree
from kd_jax.data import dataset as datasets
from kd_jax.data import readers, text
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.live_items import live_items, with_live_items
from kd_jax.data.examples.pairs import PairTokens, with_pairs
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.examples.sequence import history_texts
from kd_jax.data.examples.snapshot import snapshot_examples
from kd_jax.data.popularity import Trends, decayed_counts, trends
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.data.text import TokenTable
from kd_jax.devices.processes import leader_first
from kd_jax.distillation.sources import Source, sources
from kd_jax.distillation.term import OWN, Limits, Objective, check, of_section
from kd_jax.evaluation.tasks import Rank, Rate, Task
from kd_jax.experiment import roles
from kd_jax.experiment.config import (
    language_model,
    reads_text,
    recipe,
    selects,
    settings_of,
    student_section,
    trains_text,
)
from kd_jax.losses import sampled
from kd_jax.models.language import encoding
from kd_jax.models.language.encoding import Texts
from kd_jax.models.language.model import LanguageModel
from kd_jax.models.scorer import Frozen, split
from kd_jax.models.students import build_student, student_class, student_spec
from kd_jax.models.students.base import INPUTS, ITEM_TEXT, StudentSpec
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.cross_encoder import CrossEncoder, CrossSpec, with_vectors
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.training.recipe import Recipe

# Fields of ``teacher.model`` and ``teacher.optimizer`` that only a teacher with a language model has
# a use for.
LANGUAGE_FIELDS = (
    "form", "softmax", "negatives", "hard_negatives", "components", "whitening", "hidden", "lm_learning_rate"
)  # fmt: skip
BIASES = ("count", "trend", "teacher")  # 'teacher' is filled in when the labels are there
TEACHER_OF = {
    "distilled": "teacher",
    "control": "control_teacher",
}  # whose labels a student learns from
FORMS = ("bi", "cross")
WEIGHTING = ("decay", "decay_unit", "user_power")  # fields of a student
PATHS = ("path", "items_path")  # fields of a reader
MODELS = ("control_teacher", "teacher", "student", "control", "distilled")


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """A model as the train step takes it: ``nnx.merge(graphdef, params, constants)``.

    start: gives the first parameters, in a program that splits them where a table may be larger
    than a device's memory; ``params`` are then their shapes alone. None: they are ``params``.
    """

    graphdef: nnx.GraphDef
    params: Params
    constants: PyTree
    positions: str
    history: int
    frozen_params: int = 0  # of a language model that is read through its cached vectors
    start: jax.tree_util.Partial | None = None

    @property
    def num_params(self) -> int:
        return self.frozen_params + sum(leaf.size for leaf in jax.tree.leaves(self.params))


class Setup:
    """One resolved configuration and the workdir it writes to; what it describes is built when it
    is asked for.
    """

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        self.config, self.workdir, self.log = config, workdir, log
        self.seeds = tuple(config.seeds)
        self._encoded: dict[str, Texts] = {}  # by tower
        whole = all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"seeds={self.seeds}: give one or more different numbers from 0, as"
                " --config.seeds='(0, 1)'"
            )

    @functools.cached_property
    def dataset(self) -> datasets.Dataset:
        c = self.config.data
        folder = self.workdir / "dataset"
        note = folder / "identity.json"
        section = self._reader_section()
        identity = {
            field: value for field, value in c.to_dict().items() if not isinstance(value, dict)
        }
        identity[c.reader] = {
            field: value for field, value in section.items() if field not in PATHS
        }
        identity |= {
            "task": self.config.task,
            "files": stamp(*(section.get(field, "") for field in PATHS)),
        }  # what they hold, wherever it lies
        if note.exists():
            made = read_json(note, f"delete {folder} and run again")
            if identity["files"] is None:  # the source is gone; what was made from it is here
                identity["files"] = made["files"]
            changed = difference(made, identity, "data")
            if changed:
                raise InputError(
                    f"{folder} was made with other settings ({changed}); use another --workdir"
                )
            return datasets.load(folder)
        raw = readers.read(c.reader, section)
        built = datasets.build(
            raw,
            split=c.split,
            ratios=tuple(c.ratios),
            min_user_interactions=c.min_interactions,
            min_item_interactions=c.min_item_interactions,
            min_rating=c.min_rating,
            max_malformed=c.max_malformed,
            missing_text=c.missing_text,
            text_columns=tuple(c.text_columns) or None,
            max_users=c.max_users,
        )
        if raw.untimed and c.split != "column":
            self.log.note(
                f"warning: data.split={c.split!r} takes the order of the rows as time:"
                f" {raw.untimed}"
            )
        built.save(folder)
        write_json(note, identity)
        return built

    def _reader_section(self) -> dict[str, Any]:
        """The fields of the chosen reader. Raises InputError for one that there is not."""
        c = self.config.data
        return readers.reader_section(c.reader, c.to_dict().get(c.reader, {}))

    @functools.cached_property
    def task(self) -> Task:
        c = self.config
        if c.data.split == "strong" and student_class(c.student.name).positions == "user":
            raise InputError(
                f"data.split='strong' holds users out, and student.name={c.student.name!r} knows"
                " only the users it was trained on; use student.name='sasrec' or another"
                " data.split"
            )
        if c.task == "rank":
            return Rank(
                self.dataset,
                selects(c),
                tuple(c.eval.metrics),
                tuple(c.eval.ks),
                c.eval.batch_size,
                c.eval.valid_users,
            )
        if c.task == "rate":
            return Rate(self.dataset, tuple(c.rate.boundaries), selects(c))
        raise InputError(f"task={c.task!r} is unknown{nearest(c.task, ('rank', 'rate'))}")

    # models

    def settings(self, model: str) -> ConfigDict:
        """The configuration with what was tuned for ``model`` on top."""
        return settings_of(self.config, model)

    def folder(self, model: str, seed: int) -> Path:
        """``<model>`` for the first seed, ``<model>.seed<n>`` for the others."""
        return self.workdir / (model if seed == self.seeds[0] else f"{model}.seed{seed}")

    def identity(self, model: str, seed: int) -> dict[str, Any]:
        """All that determines the parameters of ``model``; a checkpoint is bound to it."""
        c = self.settings(model)
        common = {"data": self.dataset.checksum, "task": c.task, "select": selects(c), "seed": seed}
        if c.eval.valid_users:
            common["valid_users"] = c.eval.valid_users
        if c.task == "rate":
            common["boundaries"] = tuple(c.rate.boundaries)
        if model.endswith("teacher"):
            common["terms"] = [dataclasses.astuple(term) for term in self.objective(model)]
            fields = c.teacher.to_dict()
            del fields["clicks"]
            if model == "control_teacher":  # it reads no text
                del fields["lm"]
                for name in LANGUAGE_FIELDS:
                    for section in ("model", "optimizer"):
                        fields[section].pop(name, None)
                return common | {"teacher": fields}
            weights = self.language_model.checksum if reads_text(c.teacher) else None
            return common | {"teacher": fields, "weights": weights}
        objective = self.objective(model)
        distill: dict[str, Any] = {"terms": [dataclasses.astuple(term) for term in objective]}
        if objective[0].sampled:
            distill["negatives_power"] = c.distill.negatives_power
        for name in self.reads(model):
            if name == OWN:
                made = [self.identity(TEACHER_OF[model], one) for one in self.teacher_seeds(seed)]
                distill |= {"labels": c.distill.labels, "teacher": fingerprint(made)}
            else:
                distill.setdefault("sources", {})[name] = self.source_identity(name)
        if inputs := self._input_identity(model):
            common["inputs"] = inputs
        window = self.window(model)
        return common | {
            "student": self._student_identity(c), "distill": distill, "window": window
        }  # fmt: skip

    def _input_identity(self, model: str) -> dict[str, Any]:
        """Of the arrays that the student reads besides its batches."""
        if ITEM_TEXT not in self._inputs(model):
            return {}
        lm = self.settings(roles.main_teacher().name).teacher.lm
        return {
            ITEM_TEXT: {
                "weights": self.language_model.checksum,
                "template": lm.template,
                "max_tokens": lm.max_tokens,
            }
        }

    def _student_identity(self, c: ConfigDict) -> dict[str, Any]:
        """Of its sections, those that the chosen student has a use for."""
        name = c.student.name
        return {
            "name": name,
            name: student_section(c).to_dict(),
            "optimizer": c.student.optimizer.to_dict(),
        }

    def teacher_seeds(self, seed: int) -> tuple[int, ...]:
        """Seeds of the teachers that a student of ``seed`` learns from."""
        return self.seeds if self.config.distill.teachers == "all" else (seed,)

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """Teachers from outside the run."""
        return sources(self.config.distill.sources, reserved=OWN)

    def source_identity(self, name: str) -> dict[str, Any]:
        source = self.sources[name]
        return source.identity | (
            {"rank_decay": self.config.distill.rank_decay} if source.folder is None else {}
        )

    def reads(self, model: str) -> tuple[str, ...]:
        """Names of the teachers that ``model`` learns from, its own first."""
        if model not in TEACHER_OF:
            return ()
        named = dict.fromkeys(term.teacher for term in self.objective(model) if term.reads_teacher)
        own = OWN in named or self.bias(model) == "teacher"
        return (*[OWN][:own], *(name for name in named if name != OWN))

    def window(self, student: str) -> int:
        """Newest interactions that a student's examples hold: what it reads, or else what its
        labels' teacher reads.
        """
        c = self.settings(student)
        if self.positions(student) == "all":
            return student_section(c).history
        return self.settings(TEACHER_OF.get(student, "teacher")).teacher.model.history

    def bias(self, model: str) -> str:
        """Where the item biases of the student ``model`` start."""
        return student_section(self.settings(model)).get("bias", "count")

    def objective(self, model: str) -> Objective:
        c = self.settings(model)
        sections = self._term_sections(model, c)
        sample = {"negatives": c.distill.negatives, "top": c.distill.top}
        terms = tuple(of_section(field, section, **sample) for field, section in sections.items())
        for field, term in zip(sections, terms, strict=True):
            if term.teacher != OWN and term.teacher not in self.sources:
                known = nearest(term.teacher, self.sources)
                raise InputError(
                    f"{field}.teacher={term.teacher!r} is not in distill.sources{known}"
                )
        if model == "control":  # without what a language model may have had a part in
            terms = tuple(
                term for term in terms if term.teacher == OWN or self.sources[term.teacher].id_only
            )
            if not terms:
                raise InputError(
                    "distill.terms: all read sources that may hold a language model, and none is"
                    " left for the control; add a term that reads clicks or the control's own"
                    " teacher, or take 'control' out of stages"
                )
        if c.task == "rate":  # the softmax is over classes, and there is no warm class
            terms = tuple(
                dataclasses.replace(term, items="all") if term.items == "warm" else term
                for term in terms
            )
        where = "distill.terms" if model in TEACHER_OF else next(iter(sections))
        check(terms, self._limits(model, c), where)
        return terms

    def _limits(self, model: str, c: ConfigDict) -> Limits:
        """What can be computed for a model; a teacher owns no item table to gather rows from."""
        lists = [name for name, source in self.sources.items() if source.folder is None]
        sizes = {"num_items": self.dataset.num_items, "ranks": c.task == "rank", "lists": lists}
        if model.endswith("teacher"):
            return Limits(True, False, **sizes)
        student = student_class(c.student.name)
        return Limits(student.factorised, student.owns_item_table, **sizes)

    def _term_sections(self, model: str, c: ConfigDict) -> dict[str, ConfigDict]:
        """Config field -> section of each term that ``model`` learns from."""
        if model not in TEACHER_OF:
            kind = "teacher" if model.endswith("teacher") else "student"
            return {f"{kind}.clicks": c[kind].clicks}
        if not c.distill.terms:
            raise InputError(
                "distill.terms is empty; give a term, as --config.distill.terms.soft.loss=kl"
            )
        return {f"distill.terms.{name}": c.distill.terms[name] for name in sorted(c.distill.terms)}

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        found = language_model(self.settings("teacher").teacher.lm, self.workdir / "cache")
        if set(found.learned_from) - {self.dataset.checksum}:
            self.log.note(
                f"warning: {found.folder} was trained on other data, or another split of these; if"
                " what it learned from is in valid or test here, what is measured is too good"
            )
        return found

    def _vectors(self, tower: str, texts: list[str]) -> Texts:
        if tower not in self._encoded:
            with self.log.stage(f"encode {tower}", total=len(texts)) as bar:
                # The first process encodes, the others find the vectors in the cache.
                self._encoded[tower] = leader_first(
                    lambda: self.language_model.texts(
                        tower, texts, lambda done, _: bar.update(done)
                    )
                )
            most = self.language_model.encoder.max_length
            if full := int(np.sum(self.language_model.lengths(tower) >= most)):
                self.log.note(
                    f"{full:,} of {len(texts):,} texts reach {most} tokens, where they are cut (the"
                    " lesser of teacher.lm.max_tokens and what the language model reads)"
                )
        return self._encoded[tower]

    @functools.cached_property
    def item_texts(self) -> list[str]:
        items = self.dataset.items
        return text.item_texts(
            items.with_columns(item=self.dataset.item_ids),
            items.columns,
            self.settings("teacher").teacher.lm.template,
        )

    @functools.cached_property
    def trends(self) -> Trends:
        c = self.settings("teacher").teacher.popularity
        return trends(self.dataset, snapshots=c.snapshots, days=c.snapshot_days)

    def start_bias(self, kind: str, trend_days: float = 3.0) -> np.ndarray:
        """Where item biases start, f32 [I]: log(1 + count), or 'trend': the log of the count of
        late.
        """
        if kind not in BIASES:
            raise InputError(f"student.<name>.bias={kind!r} is unknown{nearest(kind, BIASES)}")
        if kind == "trend":
            return np.log(decayed_counts(self.dataset, trend_days) + 0.03).astype(np.float32)
        return np.log1p(self.dataset.item_counts).astype(np.float32)

    def build(self, model: str, seed: int) -> ModelParts:
        """The model with its first parameters."""
        return (self._build_teacher if model.endswith("teacher") else self._build_student)(
            model, seed
        )

    def _build_teacher(self, model: str, seed: int) -> ModelParts:
        c = self.settings(model).teacher
        if c.model.form == "cross":
            return self._build_cross(seed)
        ranks = self.task.num_classes == 0
        trend = self.trends.features if c.popularity.enabled and ranks else None
        reads_items = "text" in c.model.item_features and c.model.context == "items"
        encodes = c.lm.train != "head" and ranks and reads_items
        softmax = c.model.softmax or ("in_batch" if encodes else "full")
        spec = TeacherSpec(
            # Trends say how popular an item is; a bias that knew the total as well would speak
            # against new items.
            bias=self.start_bias("count") * (0.0 if trend is not None else 1.0),
            trends=trend,
            warm=self.dataset.warm if ranks else None,
            num_items=self.dataset.num_items,
            num_classes=self.task.num_classes,
            softmax=softmax,
            share=self._share.astype(np.float32) if softmax != "full" else None,
            **{
                f.name: c.model[f.name]
                for f in dataclasses.fields(TeacherSpec)
                if f.name in c.model and f.name != "softmax"
            },
        )
        self._check_softmax(spec, c.lm.train)
        if spec.context == "text" and (trend is not None or not ranks):
            raise InputError(
                "teacher.model.context='text' ranks, and without trends: use"
                " teacher.popularity.enabled=False and task='rank', or 'items'"
            )
        lm = self.language_model if reads_text(c) else None
        items = self._vectors("text", self.item_texts) if "text" in spec.item_features else None
        contexts = None
        if spec.context == "text":
            contexts = self._vectors(
                "written", history_texts(self.dataset, self.item_texts, spec.history)
            )
        live = lm is not None and lm.live
        module = BiEncoder(
            spec, items, contexts, lm.encoder if lm and live else None, rngs=nnx.Rngs(seed)
        )
        return ModelParts(
            *split(module),
            module.positions,
            spec.history,
            frozen_params=(lm.frozen_params if live else lm.encoder.num_params) if lm else 0,
        )

    @functools.cached_property
    def _share(self) -> np.ndarray:
        """Of the training interactions, f64 [I]."""
        return self.dataset.item_counts / max(1, self.dataset.item_counts.sum())

    def _check_softmax(self, spec: TeacherSpec, train: str) -> None:
        if spec.softmax == "full" and not spec.hard_negatives:
            return
        if (
            spec.num_classes
            or train == "head"
            or "text" not in spec.item_features
            or spec.context != "items"
        ):
            raise InputError(
                f"teacher.model.softmax={spec.softmax!r},"
                f" teacher.model.hard_negatives={spec.hard_negatives} choose the texts that a step"
                " encodes; they need task='rank', teacher.lm.train other than 'head' (where the"
                " whole catalogue costs next to nothing), text in teacher.model.item_features and"
                " teacher.model.context='items'"
            )
        if spec.softmax == "sampled" and spec.negatives < 1:
            raise InputError(
                f"teacher.model.negatives={spec.negatives}: teacher.model.softmax='sampled' draws"
                " at least 1 item per step"
            )
        if not 0 <= spec.hard_negatives < self.dataset.num_items:
            raise InputError(
                f"teacher.model.hard_negatives={spec.hard_negatives} must be 0 or more, and fewer"
                f" than the {self.dataset.num_items} items"
            )

    def check_form(self) -> None:
        """Refuse a form of teacher that is unknown, or that does not do what is asked of it."""
        c = self.settings("teacher").teacher.model
        if c.form not in FORMS:
            raise InputError(f"teacher.model.form={c.form!r} is unknown{nearest(c.form, FORMS)}")
        if c.form == "bi":
            return
        if c.context != "items" or c.item_features != "text":
            raise InputError(
                "teacher.model.form='cross' reads history and item as one text and has no towers"
                f" and no item IDs: set teacher.model.context='items' (now {c.context!r}) and"
                f" teacher.model.item_features='text' (now {c.item_features!r})"
            )
        if not isinstance(self.task, Rate):
            raise InputError(
                "teacher.model.form='cross' judges pairs, one at a time, and no catalogue: use"
                " task='rate', or let it order the best items of a trained student: python -m"
                " kd_jax.rerank --workdir=<of a run with task='rank'>"
            )

    @functools.cached_property
    def pairs(self) -> PairTokens:
        """What a cross-encoder reads."""
        lm = self.language_model
        return PairTokens(
            lm.tokenizer, self.item_texts, self.task.num_classes, lm.encoder.max_length
        )

    def _judged_pairs(self, splits: Sequence[int]) -> tuple[np.ndarray, TokenTable]:
        """The rated interactions of these splits, and each as a pair of what its user did before
        and its item.
        """
        task, history = self.task, self.settings("teacher").teacher.model.history
        assert isinstance(task, Rate)
        found = [
            rate_examples(self.dataset, task.classes, split, history=history) for split in splits
        ]
        batches = [examples.gather(np.arange(examples.size)) for examples in found]
        batch = {
            key: np.concatenate([part[key] for part in batches])
            for key in ("history", "history_class", "item")
        }
        names = [name for code, name in enumerate(("train", "valid", "test")) if code in splits]
        self.log.note(f"pairs of {', '.join(names)}: {self.pairs.truncation_summary(batch)}")
        return np.concatenate([part["interaction"] for part in batches]), self.pairs.table(batch)

    def _build_cross(self, seed: int) -> ModelParts:
        c, lm, task, d = (
            self.settings("teacher").teacher.model,
            self.language_model,
            self.task,
            self.dataset,
        )
        assert isinstance(task, Rate)
        own = np.where(d.split == TRAIN, task.classes, PAD).astype(np.int8)
        spec = CrossSpec(
            lm.encoder.dim, task.class_counts.astype(np.float32), own, c.hidden, c.dropout
        )
        vectors = None if lm.live else self._pair_vectors
        module = CrossEncoder(spec, vectors, lm.encoder if lm.live else None, rngs=nnx.Rngs(seed))
        frozen = lm.frozen_params if lm.live else lm.encoder.num_params
        return ModelParts(*split(module), module.positions, c.history, frozen)

    @functools.cached_property
    def _pair_vectors(self) -> np.ndarray:
        """A frozen language model's vectors of all judged pairs, f32 [N, F] by interaction."""
        lm = self.language_model
        rows, table = self._judged_pairs((TRAIN, VALID, TEST))
        vectors = np.full((len(self.dataset.item), lm.encoder.dim), np.nan, np.float32)
        with self.log.stage("encode pairs", total=len(rows)) as bar:
            vectors[rows] = leader_first(
                lambda: encoding.encode(
                    lm.encoder, table, cache=lm.cache, progress=lambda done, _: bar.update(done)
                )
            )
        return vectors

    def refresh(
        self, built: ModelParts, splits: Sequence[int]
    ) -> Callable[[Params, PyTree], PyTree]:
        """(params, constants) -> constants with the vectors of a teacher whose language model is
        trained computed anew; a cross-encoder's of the pairs of these splits.
        """
        if self.settings("teacher").teacher.model.form == "bi":
            return functools.partial(self.language_model.refresh, built.graphdef)
        rows, table = self._judged_pairs(splits)
        return functools.partial(with_vectors, built.graphdef, rows=rows, table=table)

    def positions(self, student: str) -> str:
        """After which of its interactions a student is asked what comes next: 'user' (all at once),
        'last' or 'all'.
        """
        return student_class(self.settings(student).student.name).positions

    def _build_student(self, model: str, seed: int) -> ModelParts:
        name, spec = self.settings(model).student.name, self.student_spec(model)
        inputs = self.student_inputs(model)
        negatives = None
        if self.objective(model)[0].sampled:
            negatives = sampled.proposal(
                self.dataset.item_counts, self.settings(model).distill.negatives_power
            )

        def made(key: Array, *arrays: Any) -> Any:
            bias, warm, proposal, inputs = arrays
            known = dataclasses.replace(spec, item_bias=bias, warm=warm)
            module = build_student(name, known, inputs, rngs=nnx.Rngs(key))
            if proposal is not None:
                module.proposal = Frozen(jnp.asarray(proposal))
            return module

        given = (jax.random.key(seed), spec.item_bias, spec.warm, negatives, inputs)
        graphdef, params, _ = split(nnx.eval_shape(made, *given))
        constants = jax.jit(lambda *given: split(made(*given))[2])(*given)
        start = jax.tree_util.Partial(lambda *given: split(made(*given))[1], *given)
        positions = self.positions(model)
        return ModelParts(graphdef, params, constants, positions, self.window(model), start=start)

    def student_inputs(self, model: str) -> dict[str, np.ndarray]:
        """The arrays that the student reads besides its batches, by name."""
        known = {ITEM_TEXT: lambda: self._vectors("text", self.item_texts).vectors}
        return {name: known[name]() for name in self._inputs(model)}

    def _inputs(self, model: str) -> tuple[str, ...]:
        """Names of the arrays that the student reads. A role without text gets none of the language
        model; nothing else decides about this.
        """
        name = self.settings(model).student.name
        names = student_class(name).inputs
        for one in names:
            if one not in INPUTS:
                raise InputError(
                    f"student.name={name!r} declares the input {one!r}{nearest(one, INPUTS)}"
                )
        return tuple(one for one in names if roles.ROLES[model].text or one != ITEM_TEXT)

    def student_spec(self, model: str) -> StudentSpec:
        c = self.settings(model)
        section = student_section(c)
        return student_spec(
            c.student.name,
            section,
            num_users=self.dataset.num_users,
            num_items=self.dataset.num_items,
            item_bias=self.start_bias(self.bias(model), section["popularity_days"]),
            warm=self.dataset.warm if self.task.num_classes == 0 else None,
            num_classes=self.task.num_classes,
        )

    def recipe(self, model: str) -> Recipe:
        c = self.settings(model)
        return recipe((c.teacher if model.endswith("teacher") else c.student).optimizer)

    def examples(self, model: str, built: ModelParts, seed: int, rows: int) -> Examples:
        """What ``model`` learns from, in batches of which this process looks up ``rows``
        examples.
        """
        c = self.settings(model)
        if model.endswith("teacher") and c.teacher.popularity.enabled and c.task == "rank":
            found = snapshot_examples(
                self.dataset,
                self.trends.times,
                history=built.history,
                horizon_days=c.teacher.popularity.horizon_days,
                window_days=c.teacher.popularity.window_days,
            )
        else:
            found = self.task.examples(built.positions, history=built.history, **self.weighting(c))
        if model.endswith("teacher") and trains_text(c.teacher):
            if c.teacher.model.form == "cross":
                self.log.note(
                    f"pairs of train: {self.pairs.truncation_summary(found.gather(np.arange(found.size)))}"
                )
                return with_pairs(found, self.pairs)
            if "text" not in c.teacher.model.item_features:
                return found
            lengths = self.language_model.lengths("text")
            m = c.teacher.model
            negatives = m.negatives if m.softmax == "sampled" else 0
            return with_live_items(
                found,
                live_items(found, lengths, self._share, rows=rows, negatives=negatives, seed=seed),
            )
        return found

    def weighting(self, c: ConfigDict) -> dict[str, Any]:
        """How a student that learns all targets of a user at once weighs them."""
        section = student_section(c)
        return {name: section[name] for name in WEIGHTING if name in section}
