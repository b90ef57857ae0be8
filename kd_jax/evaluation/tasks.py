"""The tasks 'rank' and 'rate': their training examples, evaluation and baselines.

The pipeline, the train step and the models are the same for both tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import Array, Batch, Params, PyTree
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.packed import packed_examples
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.shards import shard_examples
from kd_jax.data.examples.user import user_examples
from kd_jax.data.popularity import SCALES, decayed_counts
from kd_jax.data.prepared.folder import PreparedDataset
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.devices import sharding
from kd_jax.evaluation import evaluator, impressions
from kd_jax.evaluation.metrics import expand, log_loss, predictions
from kd_jax.evaluation.names import LOWER_IS_BETTER, RATE_METRICS
from kd_jax.evaluation.scoring import pair_logits, score_function, users_at_once

SPLITS = {"valid": VALID, "test": TEST}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    metrics: name -> value. slices: slice -> metrics. per_user: name, possibly with a slice
    ('ndcg@10/warm') -> f32 [U], in a fixed order, NaN where undefined; their mean is the metric,
    and they are the input of paired comparisons. counts: of the evaluated users and targets.
    impressions: see ``impressions.evaluate``; {} where the data set has none.
    """

    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    per_user: dict[str, np.ndarray]
    counts: dict[str, int]
    impressions: dict[str, float | int] = dataclasses.field(default_factory=dict)


class Task(Protocol):
    """The interface of a task."""

    @property
    def num_classes(self) -> int:
        """The number of rating classes; 0 for a ranking."""
        ...

    def examples(
        self, example_kind: str, *, history: int, packed: bool = False, **weighting: Any
    ) -> Examples:
        """The training examples of a model with this ``Scorer.example_kind``.

        packed: whether those of the kind 'all' may leave out the padding.
        """
        ...

    def evaluation_function(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]:
        """A function (params, constants) -> Evaluation on ``split``, 'valid' or 'test'.

        full: all metrics and slices; False: only the metric that selects models.
        """
        ...

    def score(self, evaluation: Evaluation) -> float:
        """The value that selects models; higher is better."""
        ...

    def format_score(self, score: float) -> str:
        """A ``score`` as 'name value', for the log."""
        ...

    def baseline(self, split: str) -> Evaluation:
        """The evaluation of a baseline that is not personalised."""
        ...


@dataclasses.dataclass(frozen=True)
class Rank:
    """Ranks the full catalogue, without the items of the history.

    select: the metric that selects models. metric_names, ks: see ``metrics.expand``. batch_size:
    users that are scored at once. valid_users: the number of users that the validation during
    training evaluates, and that select what new items get (``experiment/new_items.py``); 0: all.
    Raises InputError for a value out of range.
    """

    dataset: Dataset
    select: str
    metric_names: Sequence[str]
    ks: Sequence[int]
    batch_size: int
    valid_users: int = 0
    num_classes: int = 0

    def __post_init__(self) -> None:
        known = expand(self.metric_names, self.ks)
        if self.select not in known:
            raise InputError(
                f"eval.select={self.select!r} is not among the metrics, of which eval.ks has the"
                f" lengths {tuple(self.ks)}{nearest(self.select, known)}"
            )
        if self.valid_users < 0:
            raise InputError(f"eval.valid_users={self.valid_users} must be 0 (all users) or more")
        if self.batch_size < 1:
            raise InputError(f"eval.batch_size={self.batch_size} must be at least 1")

    def examples(
        self, example_kind: str, *, history: int, packed: bool = False, **weighting: Any
    ) -> Examples:
        """See ``Task.examples``; weighting: arguments of ``user_examples``, for 'user' only."""
        if isinstance(self.dataset, PreparedDataset):
            return shard_examples(
                self.dataset, history=history, example_kind=example_kind, packed=packed, **weighting
            )
        if example_kind == "user":
            return user_examples(self.dataset, history=history, **weighting)
        if example_kind == "all" and packed:
            return packed_examples(self.dataset, history=history)
        return sequence_examples(self.dataset, history=history, example_kind=example_kind)

    def evaluate(
        self,
        score_fn: evaluator.ScoreFn,
        split: str,
        names: Sequence[str],
        slices: bool,
        max_users: int = 0,
        batch_size: int = 0,
    ) -> Evaluation:
        """Evaluates a score function on ``split``, 'valid' or 'test'.

        names: of the metrics. slices: whether to compute them for slices, too, and to judge
        impressions. max_users: see
        ``RankOptions``. batch_size: 0 for the task's own.
        """
        result = evaluator.evaluate_rank(
            score_fn,
            self.dataset,
            SPLITS[split],
            metrics=names,
            ks=self.ks,
            batch_size=batch_size or self.batch_size,
            slices=slices,
            max_users=max_users,
        )
        per_user = dict(result.per_user)
        for kind, values in result.per_user_slices.items():
            per_user |= {f"{name}/{kind}": value for name, value in values.items()}
        counts = result.counts["all"] | {"repeats": result.repeats}
        of = {name: found["targets"] for name, found in result.counts.items() if name != "all"}
        counts |= {f"targets/{name}": targets for name, targets in of.items()}
        shown: dict[str, float | int] = {}
        if slices:
            at_once = batch_size or self.batch_size
            shown = impressions.evaluate(score_fn, self.dataset, SPLITS[split], at_once)
        return Evaluation(result.metrics, result.slices, per_user, counts, shown)

    def evaluation_function(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]:
        """See ``Task.evaluation_function``."""
        bind = score_function(self.dataset, graphdef, SPLITS[split], history)
        names = self.metric_names if full else (self.select,)
        max_users = 0 if full else self.valid_users

        def evaluate(params: Params, constants: PyTree) -> Evaluation:
            at_once = users_at_once(
                graphdef, self.batch_size, self.dataset.num_items, sharding.data_parts(params)
            )
            return self.evaluate(bind(params, constants), split, names, full, max_users, at_once)

        return evaluate

    def score(self, evaluation: Evaluation) -> float:
        """See ``Task.score``."""
        return evaluation.metrics[self.select]

    def format_score(self, score: float) -> str:
        """See ``Task.format_score``."""
        return f"{self.select} {score:.4f}"

    def baseline(self, split: str) -> Evaluation:
        """The popularity baseline."""
        scores = evaluator.popularity(self.dataset)
        return self.evaluate(scores, split, self.metric_names, slices=True)

    def trending(self) -> tuple[float, dict[str, Evaluation]]:
        """The baseline of recent popularity, with counts weighted by exp(-age / days).

        Returns the days that are best on the validation split, and the evaluation of each split.
        """

        scales = SCALES[:-1]
        functions = [
            evaluator.same_for_all(counts) for counts in decayed_counts(self.dataset, *scales)
        ]
        scores = [self.score(self.evaluate(function, "valid", (self.select,), False))
                  for function in functions]  # fmt: skip
        best = int(np.argmax(scores))
        return scales[best], {
            split: self.evaluate(functions[best], split, self.metric_names, True)
            for split in SPLITS
        }


@dataclasses.dataclass(frozen=True)
class Rate:
    """Predicts the rating class of a user-item pair.

    boundaries: between the classes on the rating scale. select: the metric that selects models.
    batch_size: pairs at once. Raises InputError for a data set without ratings that differ, an
    unknown metric, and a class without train ratings.
    """

    dataset: Dataset
    boundaries: Sequence[float]
    select: str
    batch_size: int = 4096

    def __post_init__(self) -> None:
        if np.isnan(self.dataset.rating).any():
            raise InputError(
                "task='rate' needs a rating for every interaction; this data set has rows"
                " without one"
            )
        if np.ptp(self.dataset.rating) == 0:
            raise InputError(
                f"task='rate' needs ratings that differ; here all are {self.dataset.rating[0]:g},"
                " which also stands where there is no column of ratings: name it with"
                " data.files.columns.rating"
            )
        if self.select not in RATE_METRICS:
            raise InputError(
                f"eval.select={self.select!r} is not a metric of"
                f" task='rate'{nearest(self.select, RATE_METRICS)}"
            )
        empty = np.setdiff1d(np.arange(self.num_classes), self.classes[self.dataset.split == TRAIN])
        if len(empty):
            raise InputError(
                f"rate.boundaries={tuple(self.boundaries)}: no training rating falls into class"
                f" {empty[0]}; ratings lie in {self.dataset.rating.min():g} to"
                f" {self.dataset.rating.max():g}; choose boundaries between them"
            )

    @property
    def num_classes(self) -> int:
        """The number of rating classes."""
        return len(self.boundaries) + 1

    @property
    def classes(self) -> np.ndarray:
        """The class of each interaction, int32 [N]."""
        boundaries = np.asarray(self.boundaries, self.dataset.rating.dtype)  # as ratings are kept
        return np.searchsorted(boundaries, self.dataset.rating, side="right").astype(np.int32)

    @property
    def class_values(self) -> np.ndarray:
        """The mean train rating of each class, [C]."""
        train = self.dataset.split == TRAIN
        totals = np.bincount(self.classes[train], self.dataset.rating[train], self.num_classes)
        return totals / np.bincount(self.classes[train], minlength=self.num_classes)

    @property
    def class_counts(self) -> np.ndarray:
        """The number of train ratings of each item by class, [I, C]."""
        train = self.dataset.split == TRAIN
        counts = np.zeros((self.dataset.num_items, self.num_classes))
        np.add.at(counts, (self.dataset.item[train], self.classes[train]), 1.0)
        return counts

    def examples(
        self, example_kind: str, *, history: int, packed: bool = False, **weighting: Any
    ) -> Examples:
        """See ``Task.examples``; example_kind, packed and weighting have no effect."""
        return rate_examples(self.dataset, self.classes, TRAIN, history=history)

    def evaluate(self, logits: Callable[[np.ndarray], Array], pairs: Batch) -> Evaluation:
        """Evaluates class logits [B, C], a function of row numbers, on a batch of ``pairs``."""
        labels = pairs["targets"][:, 0, 0]
        ratings = self.dataset.rating[pairs["interaction"]]
        values, probabilities = evaluator.evaluate_rate(
            logits, labels, values=self.class_values, ratings=ratings, batch_size=self.batch_size
        )
        loss = log_loss(probabilities, labels)
        right = (predictions(probabilities) == labels).astype(np.float64)
        per_user = {
            "log_loss": self._user_shares(pairs["user"], loss),
            "accuracy": self._user_shares(pairs["user"], right),
        }
        counts = {"users": len(np.unique(pairs["user"])), "targets": len(labels)}
        return Evaluation(values, {}, per_user, counts)

    def _user_shares(self, users: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums of each user's ``values`` of pairs, scaled to the same mean as over pairs."""
        count = np.bincount(users, minlength=self.dataset.num_users)
        total = np.bincount(users, values, self.dataset.num_users) * np.sum(count > 0) / len(users)
        return np.where(count > 0, total, np.nan).astype(np.float32)

    def _pairs(self, split: str, history: int) -> tuple[Examples, Batch]:
        examples = rate_examples(self.dataset, self.classes, SPLITS[split], history=history)
        if not examples.size:
            raise InputError(
                f"{self.dataset.name}: no rated pair of a known user in the {split} split; change"
                " data.split"
            )
        return examples, examples.gather(np.arange(examples.size))

    def evaluation_function(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]:
        """See ``Task.evaluation_function``; full has no effect."""
        examples, pairs = self._pairs(split, history)
        logits = pair_logits(graphdef)
        return lambda params, constants: self.evaluate(
            lambda rows: logits(params, constants, examples.gather(rows)), pairs
        )

    def score(self, evaluation: Evaluation) -> float:
        """See ``Task.score``; losses and errors are negated."""
        value = evaluation.metrics[self.select]
        return -value if self.select in LOWER_IS_BETTER else value

    def format_score(self, score: float) -> str:
        """See ``Task.format_score``."""
        return f"{self.select} {abs(score):.4f}"

    def baseline(self, split: str) -> Evaluation:
        """The item-average baseline: class shares of the item's train ratings.

        They are smoothed with one pseudo-rating of the average.
        """
        counts = self.class_counts
        prior = counts.sum(0) / counts.sum()
        shares = (counts + prior[None]) / (counts.sum(1, keepdims=True) + 1.0)
        _, pairs = self._pairs(split, 1)
        return self.evaluate(lambda rows: jnp.log(jnp.asarray(shares[pairs["item"][rows]])), pairs)
