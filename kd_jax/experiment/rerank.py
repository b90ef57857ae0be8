"""Reranking of a trained model's highest-scoring items by a cross-encoder.

The cross-encoder is trained on the run's training interactions, each with the user's earlier
history, against negatives drawn by popularity. It is evaluated over the whole catalogue: the
model's best unseen items come first, in the new order, and all others follow in the old one. All
files are written to rerank/ in the workdir.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core import process
from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import fingerprint, locked, write_json
from kd_jax.core.logging import Log
from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD, Array, Params, PyTree
from kd_jax.data import text
from kd_jax.data.examples.base import last_items
from kd_jax.data.examples.pairs import PairTokens, with_pairs
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.splits import TRAIN
from kd_jax.devices import sharding
from kd_jax.distillation.term import Term
from kd_jax.evaluation import evaluator
from kd_jax.evaluation.scoring import dense_users
from kd_jax.evaluation.tasks import SPLITS, Rank
from kd_jax.experiment import roles
from kd_jax.experiment.config import changed, recipe, selects
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.roles import Role
from kd_jax.experiment.sections import leaves
from kd_jax.experiment.trained import TrainedModels, open_workdir, written
from kd_jax.losses.softmax import CrossEntropy
from kd_jax.models.language import encoding
from kd_jax.models.scorer import split
from kd_jax.models.teachers.cross_encoder import PairRanker
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.job import TrainingJob
from kd_jax.training.loop import train
from kd_jax.training.recipe import Recipe

# Fields of section ``teacher`` that a cross-encoder for reranking uses.
LM = (
    *("weights", "backend", "pooling", "normalize", "template", "max_tokens", "train", "top_n"),
    *("prompt", "lora_rank", "lora_targets", "dtype", "remat"),
)
FIELDS = (
    *(f"lm.{name}" for name in LM),
    *(f"model.{name}" for name in ("history", "hidden", "dropout")),
    *(f"optimizer.{field.name}" for field in dataclasses.fields(Recipe)),
)
# Weights of the cross-encoder's scores next to the first model's; the best is selected on
# validation.
WEIGHTS = (0.25, 0.5, 1.0, 2.0)


def reranked(first: evaluator.ScoreFn, items: np.ndarray, scores: np.ndarray) -> evaluator.ScoreFn:
    """Moves each user's candidates to the top of the catalogue, ordered by new scores.

    items: int32 [U, N], padded with PAD. scores: f32 [U, N], higher first; ties keep the order of
    ``items``. The candidates score above all other items, which keep their scores of ``first``.
    """
    order = np.argsort(np.where(items == PAD, np.inf, -scores), axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(items.shape[1])[None], axis=1)
    steps = (items.shape[1] - places).astype(np.float32)

    @jax.jit
    def lift(found: Factors | Array, items: Array, steps: Array) -> Array:
        found = found.dense() if isinstance(found, Factors) else found
        highest = jnp.max(jnp.where(jnp.isfinite(found), found, -jnp.inf), axis=1, keepdims=True)
        where = jnp.where(items == PAD, found.shape[1], items)
        return found.at[jnp.arange(len(items))[:, None], where].set(highest + steps, mode="drop")

    return lambda users: lift(first(users), jnp.asarray(items[users]), jnp.asarray(steps[users]))


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The candidates of a split, from the first-stage model ``score_fn``.

    items: int32 [U, N], its highest-scoring items, padded with PAD. first: f32 [U, N], its scores.
    table: tokens of the (history, candidate) pairs, user by user.
    """

    score_fn: evaluator.ScoreFn
    items: np.ndarray
    first: np.ndarray
    table: text.TokenTable


def candidates(
    task: Rank,
    score_fn: evaluator.ScoreFn,
    split: int,
    n: int,
    pairs: PairTokens,
    history: int,
    batch_size: int,
) -> Candidates:
    """The ``n`` highest-scoring unseen items of each evaluated user, with their pair tokens.

    The pairs of history and item are the inputs of the cross-encoder.
    """
    d = task.dataset
    users = evaluator.eval_users(d, split)
    items = np.full((d.num_users, n), PAD, np.int32)
    first = np.full((d.num_users, n), -np.inf, np.float32)
    items[users], first[users] = evaluator.top_k(
        score_fn, users, n, d.history(split), batch_size=batch_size
    )
    user, _ = np.nonzero(items != PAD)
    windows = last_items(*d.history(split), history)
    return Candidates(
        score_fn, items, first, pairs.table({"history": windows[user], "item": items[items != PAD]})
    )


class Reranker:
    """The cross-encoder of a workdir for one of its students: first ``fit``, then ``evaluate``.

    n: candidates per user. negatives: items drawn per training example. Raises InputError for an
    untrained student, a task other than 'rank', and numbers out of range.
    """

    def __init__(self, models: TrainedModels, role: Role, n: int, negatives: int):
        experiment = models.experiment
        task, d = experiment.task, experiment.dataset
        if not isinstance(task, Rank):
            raise InputError(
                "rerank: this workdir was trained with task='rate', which ranks nothing; use"
                " task='rank'"
            )
        if n < 2 or n > d.num_items:
            raise InputError(
                f"rerank: --candidates={n} must be from 2 to the {d.num_items} items there are"
            )
        if negatives < 1:
            raise InputError(f"rerank: --negatives={negatives} must be at least 1")
        self.experiment, self.task, self.role = experiment, task, role
        self.n, self.negatives, self.seed = n, negatives, experiment.seeds[0]
        self.settings = experiment.settings(roles.main_teacher()).teacher
        self.reader = experiment.texts(roles.main_teacher())
        self.encoder = self.reader.language_model.encoder
        self.pairs = self.reader.pair_tokens(0)
        if not self.reader.language_model.live:
            self.encoder.freeze_below(self.encoder.num_layers)
        c = self.settings.model
        self.graphdef, self.params, self.constants = split(
            PairRanker(self.encoder, c.hidden, c.dropout, rngs=nnx.Rngs(self.seed))
        )
        self.found = self._candidates(models)
        self.log_count = np.log1p(d.item_counts).astype(np.float32)

    def _candidates(self, models: TrainedModels) -> dict[str, Candidates]:
        """The candidates of each split, by name."""
        trained, found = models.open(self.role, self.seed), {}
        for name, code in SPLITS.items():
            score_fn, at_once = trained.score_function(code)
            history = self.settings.model.history
            found[name] = candidates(
                self.task, score_fn, code, self.n, self.pairs, history, at_once
            )
        return found

    def fit(self, folder: Path) -> tuple[Params, float]:
        """Trains the cross-encoder; returns the best parameters and the training time in seconds.

        The best parameters have the highest validation metric after reranking.
        """
        experiment, d = self.experiment, self.experiment.dataset
        no_class, history = np.zeros(len(d.item), np.int32), self.settings.model.history
        examples = rate_examples(d, no_class, TRAIN, history=history)
        summary = self.pairs.truncation_summary(examples.gather(np.arange(examples.size)))
        experiment.log.note(f"pairs of train: {summary}")
        counts = d.item_counts.astype(np.float64)
        examples = with_pairs(examples, self.pairs, self.negatives, counts)
        identity = dict(
            reranks=identity_of(experiment, self.role, self.seed),
            teacher=self.settings.to_dict(),
            weights=self.reader.language_model.checksum,
            candidates=self.n,
            negatives=self.negatives,
        )
        with Checkpoints(folder / fingerprint(identity), identity) as checkpoints:
            job = TrainingJob(
                "rerank",
                self.seed,
                self.graphdef,
                self.params,
                self.constants,
                examples,
                (Term("clicks", CrossEntropy()),),
                recipe(self.settings.optimizer, experiment.dataset.num_users),
                self._validate,
                checkpoints,
                experiment.mesh,
                experiment.log,
            )
            trained = train(job)
        return trained.params, trained.seconds

    def fits(self, params: Params, name: str) -> np.ndarray:
        """The cross-encoder's score of each candidate, without popularity, f32 [U, N]."""
        model: Any = nnx.merge(self.graphdef, sharding.fetch(params), self.constants)
        items, table = self.found[name].items, self.found[name].table
        values = np.full(items.shape, -np.inf, np.float32)
        values[items != PAD] = np.asarray(
            model.head(jnp.asarray(encoding.encode(model.encoder, table)), None)
        )[:, 0]
        return values

    def scores(self, fits: np.ndarray, name: str, weight: float | None) -> np.ndarray:
        """The scores by which candidates are ordered, f32 [U, N].

        weight: of the cross-encoder's scores, added to the first model's; None: the cross-encoder
        alone, with the log of the item counts.
        """
        found = self.found[name]
        return (
            fits + self.log_count[found.items]
            if weight is None
            else found.first + np.float32(weight) * fits
        )

    def metrics(self, name: str, scores: np.ndarray | None, full: bool = True) -> dict[str, float]:
        """Metrics over the whole catalogue; without ``scores``, those of the first model."""
        found = self.found[name]
        fn = found.score_fn if scores is None else reranked(found.score_fn, found.items, scores)
        names = self.task.metric_names if full else (self.task.select,)
        at_once = dense_users(
            self.task.batch_size, self.task.dataset.num_items
        )  # a new order has no factors
        return self.task.evaluate(fn, name, names, slices=False, batch_size=at_once).metrics

    def _validate(self, params: Params, constants: PyTree) -> float:
        return self.metrics("valid", self.scores(self.fits(params, "valid"), "valid", None), False)[
            self.task.select
        ]

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Validation and test metrics of the student, the cross-encoder, and both combined.

        The weight of the cross-encoder in the combination is selected on validation.
        """
        fits = {name: self.fits(params, name) for name in SPLITS}

        def of(weight: float) -> float:
            scores = self.scores(fits["valid"], "valid", weight)
            return self.metrics("valid", scores, False)[self.task.select]

        weight = max(WEIGHTS, key=of)
        ways: dict[str, Callable[[str], np.ndarray | None]] = {
            self.role.name: lambda name: None,
            "reranked by the cross-encoder alone": lambda name: self.scores(fits[name], name, None),
            f"by both, {weight:g} x cross-encoder": lambda name: self.scores(
                fits[name], name, weight
            ),
        }
        return {
            way: {name: self.metrics(name, scores(name)) for name in SPLITS}
            for way, scores in ways.items()
        }


@dataclasses.dataclass(frozen=True)
class Reranked:
    """The content of rerank/<role>.json.

    rows: ordering -> split -> metrics. teacher: the fields of section ``teacher`` that the
    cross-encoder was trained with.
    """

    model: str
    seed: int
    candidates: int
    negatives: int
    train_seconds: float
    seconds: float
    teacher: dict[str, Any]
    rows: dict[str, dict[str, dict[str, float]]]

    def summary(self) -> str:
        """The result as text, for the console."""
        lines = []
        for way, splits in self.rows.items():
            shown = [
                f"{split} "
                + ", ".join(f"{name} {metrics[name]:.4f}" for name in metrics if "@10" in name)
                for split, metrics in splits.items()
            ]
            lines.append(f"{way}: {'; '.join(shown)}")
        seconds = f"{self.seconds:.0f} s, of which training {self.train_seconds:.0f} s"
        return "\n".join([*lines, seconds])


def _read(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields of ``teacher`` that a cross-encoder uses."""
    return ((name, value) for name, value in leaves(config.teacher) if name in FIELDS)


def rerank(
    workdir: Path, name: str, n: int, negatives: int, changes: Sequence[str] = ()
) -> Reranked:
    """Trains and evaluates a reranker; writes and returns the content of rerank/<role>.json.

    name: the role of the model to rerank, '' for the plain student. changes:
    'teacher.optimizer.steps=200', …. Raises InputError for a workdir without that model, and for
    settings that a cross-encoder cannot have.
    """
    config = written(workdir)
    students = {role.name: role for role in roles.students()}
    if name and name not in students:
        raise InputError(f"rerank: --model={name!r} is unknown{nearest(name, students)}")
    role = students[name] if name else roles.plain_student()
    config.tuned[roles.main_teacher().name] = {}  # found for a teacher of another form
    config = changed(config, changes, FIELDS)
    (workdir / "rerank").mkdir(exist_ok=True)
    with locked(workdir), Log(workdir / "rerank/metrics.jsonl", metric=selects(config)) as log:
        process.keep_compiled(workdir)
        began = time.perf_counter()
        models = open_workdir(workdir, log, config)
        reranker = Reranker(models, role, n, negatives)
        params, seconds = reranker.fit(workdir / "rerank" / role.name)
        rows = reranker.evaluate(params)
        report = Reranked(
            model=role.name,
            seed=reranker.seed,
            candidates=n,
            negatives=negatives,
            train_seconds=seconds,
            seconds=time.perf_counter() - began,
            teacher=dict(_read(config)),
            rows=rows,
        )
        write_json(workdir / "rerank" / f"{role.name}.json", dataclasses.asdict(report))
    return report
