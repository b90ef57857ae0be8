"""Teachers, built from their sections of the configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import PAD, Params, PyTree
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.live_items import live_items, with_live_items
from kd_jax.data.examples.pairs import with_pairs
from kd_jax.data.examples.sequence import history_texts
from kd_jax.data.examples.shown import shown_examples
from kd_jax.data.examples.snapshot import snapshot_examples
from kd_jax.data.splits import TRAIN
from kd_jax.evaluation.tasks import Rate
from kd_jax.experiment.config import reads_text, trains_text
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import reads_impressions
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.models.scorer import split
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.cross_encoder import CrossEncoder, CrossSpec, with_vectors
from kd_jax.models.teachers.spec import TeacherSpec

FORMS = ("bi", "cross")


def build(experiment: Experiment, role: Role, seed: int) -> ModelParts:
    """The teacher with its first parameters."""
    c = experiment.settings(role).teacher
    if c.model.form == "cross":
        return _build_cross(experiment, role, seed)
    spec = _spec(experiment, role)
    reader = experiment.texts(role)
    items = reader.encoded_items() if "text" in spec.item_features else None
    contexts = None
    if spec.context == "text":
        texts = history_texts(experiment.dataset, reader.items, spec.history)
        contexts = reader.encoded("written", texts)
    encoder, frozen = None, 0
    if reads_text(c):
        lm = reader.language_model
        encoder = lm.encoder if lm.live else None
        frozen = lm.frozen_params if lm.live else lm.encoder.num_params
    module = BiEncoder(spec, items, contexts, encoder, rngs=nnx.Rngs(seed))
    return ModelParts(*split(module), module.example_kind, spec.history, frozen)


def _spec(experiment: Experiment, role: Role) -> TeacherSpec:
    """Raises InputError for settings that do not go together."""
    c, d = experiment.settings(role).teacher, experiment.dataset
    num_classes = experiment.task.num_classes
    ranks = num_classes == 0
    trends = experiment.trends(role).features if c.popularity.enabled and ranks else None
    bias = np.log1p(d.item_counts).astype(np.float32)
    if trends is not None:
        # They hold how popular an item is; a bias with the total as well would count against new
        # items.
        bias = np.zeros_like(bias)
    reads_items = "text" in c.model.item_features and c.model.context == "items"
    encodes = c.lm.train != "head" and ranks and reads_items
    softmax = c.model.softmax or ("in_batch" if encodes else "full")
    names = {field.name for field in dataclasses.fields(TeacherSpec)} - {"softmax"}
    spec = TeacherSpec(
        bias=bias,
        trends=trends,
        warm=d.warm if ranks else None,
        num_items=d.num_items,
        num_classes=num_classes,
        softmax=softmax,
        share=_share(experiment).astype(np.float32) if softmax != "full" else None,
        **{name: value for name, value in c.model.items() if name in names},
    )
    _check_softmax(spec, c.lm.train)
    if spec.context == "text" and (trends is not None or not ranks):
        raise InputError(
            "teacher.model.context='text' ranks, and without trends: use"
            " teacher.popularity.enabled=False and task='rank', or 'items'"
        )
    return spec


def _share(experiment: Experiment) -> np.ndarray:
    """The share of each item in the training interactions, f64 [I]."""
    counts = experiment.dataset.item_counts
    return counts / max(1, counts.sum())


def _check_softmax(spec: TeacherSpec, train: str) -> None:
    if spec.softmax == "full" and not spec.hard_negatives:
        return
    reads_items = "text" in spec.item_features and spec.context == "items"
    if spec.num_classes or train == "head" or not reads_items:
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
    if not 0 <= spec.hard_negatives < spec.num_items:
        raise InputError(
            f"teacher.model.hard_negatives={spec.hard_negatives} must be 0 or more, and fewer"
            f" than the {spec.num_items} items"
        )


def check_form(experiment: Experiment, role: Role) -> None:
    """Checks the form of a teacher against the task and its other settings.

    Raises InputError for a form that is unknown or does not fit them.
    """
    c = experiment.settings(role).teacher.model
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
    if not isinstance(experiment.task, Rate):
        raise InputError(
            "teacher.model.form='cross' judges pairs, one at a time, and no catalogue: use"
            " task='rate', or let it order the best items of a trained student: python -m"
            " kd_jax.rerank --workdir=<of a run with task='rank'>"
        )


def _build_cross(experiment: Experiment, role: Role, seed: int) -> ModelParts:
    c, task, d = experiment.settings(role).teacher.model, experiment.task, experiment.dataset
    assert isinstance(task, Rate)
    reader = experiment.texts(role)
    lm = reader.language_model
    own = np.where(d.split == TRAIN, task.classes, PAD).astype(np.int8)
    counts = task.class_counts.astype(np.float32)
    spec = CrossSpec(lm.encoder.dim, counts, own, c.hidden, c.dropout)
    vectors = None if lm.live else reader.pair_vectors(task, c.history)
    frozen = lm.frozen_params if lm.live else lm.encoder.num_params
    module = CrossEncoder(spec, vectors, lm.encoder if lm.live else None, rngs=nnx.Rngs(seed))
    return ModelParts(*split(module), module.example_kind, c.history, frozen)


def refresh(
    experiment: Experiment, role: Role, parts: ModelParts, splits: Sequence[int]
) -> Callable[[Params, PyTree], PyTree]:
    """A function (params, constants) -> constants with new language-model vectors.

    It is for a teacher with a language model that is trained. splits: for a cross-encoder, the
    splits with the pairs to encode.
    """
    c, reader = experiment.settings(role).teacher.model, experiment.texts(role)
    if c.form == "bi":
        return functools.partial(reader.language_model.refresh, parts.graphdef)
    assert isinstance(experiment.task, Rate)
    rows, table = reader.rated_pairs(experiment.task, c.history, splits)
    return functools.partial(with_vectors, parts.graphdef, rows=rows, table=table, shared=True)


def examples_of(
    experiment: Experiment, role: Role, parts: ModelParts, seed: int, rows: int
) -> Examples:
    """The training examples of a teacher.

    rows: number of examples of a batch that this process looks up.
    """
    c, kind = experiment.settings(role).teacher, parts.example_kind
    if reads_impressions(experiment, role):
        return shown_examples(experiment.dataset, history=parts.history, example_kind=kind)
    trains = trains_text(c)
    if c.popularity.enabled and experiment.task.num_classes == 0:
        found = snapshot_examples(
            experiment.dataset,
            experiment.trends(role).times,
            history=parts.history,
            horizon_days=c.popularity.horizon_days,
            window_days=c.popularity.window_days,
        )
    else:
        found = experiment.task.examples(kind, history=parts.history, packed=not trains)
    if not trains:
        return found
    reader = experiment.texts(role)
    if c.model.form == "cross":
        tokens = reader.pair_tokens(experiment.task.num_classes)
        summary = tokens.truncation_summary(found.gather(np.arange(found.size)))
        experiment.log.note(f"pairs of train: {summary}")
        return with_pairs(found, tokens)
    if "text" not in c.model.item_features:
        return found
    lengths = reader.language_model.lengths("text")
    negatives = c.model.negatives if c.model.softmax == "sampled" else 0
    share = _share(experiment)
    live = live_items(found, lengths, share, rows=rows, negatives=negatives, seed=seed)
    return with_live_items(found, live)
