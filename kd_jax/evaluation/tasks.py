"""The two tasks. A task knows its training examples, its soft labels' rows, how to score a model
and what to compare.

The pipeline, the train step and the models do not know which task they serve.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.scores import Factors
from kd_jax.core.types import Array, Batch, Params, PyTree
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, last_items
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.user import user_examples
from kd_jax.data.popularity import SCALES, decayed_counts
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.devices import sharding
from kd_jax.evaluation import evaluator
from kd_jax.evaluation.metrics import expand, log_loss, predictions
from kd_jax.models.scorer import factorises

SPLITS = {"valid": VALID, "test": TEST}
LOWER_IS_BETTER = ("log_loss", "rmse", "mae")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """metrics: name -> value. slices: slice -> metrics. per_user: name -> f32 [U] in a fixed order,
    NaN if undefined, for paired comparisons, their mean over users being the metric; a name may
    carry a slice ('ndcg@10/warm'). counts: of the users and targets that were judged.
    """

    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    per_user: dict[str, np.ndarray]
    counts: dict[str, int]


@functools.lru_cache
def score_function(
    dataset: Dataset, graphdef: nnx.GraphDef, split: int, history: int
) -> Callable[[Params, PyTree], evaluator.ScoreFn]:
    """(params, constants) -> (users int32 [B] -> their scores, [B, I] or as factors), compiled once
    per architecture and split.

    A user's context is all that happened before ``split``; what depends on the items alone is
    computed once. On a mesh the item tables may have more than I rows, and the scores are of as
    many (``sharding.put_params``).
    """
    windows, factorised = last_items(*dataset.history(split), history), factorises(graphdef)

    @jax.jit
    def catalogue(params: Params, constants: PyTree) -> PyTree:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.catalogue()

    @jax.jit
    def scores(
        params: Params, constants: PyTree, items: PyTree, windows: Array, users: Array
    ) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        batch = {
            "user": users,
            "history": windows,
            "context_row": split * dataset.num_users + users,
        }
        found: Any = model.scores(batch, items)
        if isinstance(found, Factors) != factorised:
            raise TypeError(
                f"{type(model).__name__}.scores gives {'no ' * factorised}factors; see"
                " Scorer.factorised"
            )
        return (
            found.contexts if isinstance(found, Factors) else found
        )  # the items are there already

    def bind(params: Params, constants: PyTree) -> evaluator.ScoreFn:
        items, place = catalogue(params, constants), sharding.user_placement(params)

        def score(users: np.ndarray) -> Factors | Array:
            found = scores(params, constants, items, place(windows[users]), place(users))
            return Factors(found, *items) if factorised else found

        return score

    return bind


LARGEST_BLOCK = 2**26  # scores without factors on a device that has a share of the users: 256 MB


def dense_users(batch_size: int, num_items: int, devices: int = 1) -> int:
    """``batch_size``, or as few users as ``LARGEST_BLOCK`` scores allow on each of the ``devices``
    that divide them; a multiple of ``devices``, else all of them would rank all.
    """
    most = max(1, LARGEST_BLOCK // num_items)
    each = -(-batch_size // devices)
    return devices * (each if each <= most else 1 << (most.bit_length() - 1))


def users_at_once(graphdef: nnx.GraphDef, batch_size: int, num_items: int, devices: int) -> int:
    """Users whose scores a model makes at once: ``dense_users`` where they have no factors, else
    ``batch_size``.
    """
    return (
        -(-batch_size // devices) * devices
        if factorises(graphdef)
        else dense_users(batch_size, num_items, devices)
    )


@functools.lru_cache
def _pair_logits(graphdef: nnx.GraphDef) -> Callable[[Params, PyTree, Batch], Array]:
    """(params, constants, batch) -> class logits [B, C], compiled once per architecture."""

    @jax.jit
    def logits(params: Params, constants: PyTree, batch: Batch) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.logits(batch)[:, 0]

    return logits


class Task(Protocol):
    """What the pipeline asks of a task."""

    @property
    def num_classes(self) -> int: ...
    def examples(self, positions: str, *, history: int, **weighting: Any) -> Examples: ...
    def scorer(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]: ...
    def score(self, judged: Evaluation) -> float: ...
    def told(self, score: float) -> str: ...
    def baseline(self, split: str) -> Evaluation: ...


@dataclasses.dataclass(frozen=True)
class Rank:
    """Softmax over the catalogue; full-catalogue ranking with seen items masked."""

    dataset: Dataset
    select: str
    metric_names: Sequence[str]
    ks: Sequence[int]
    batch_size: int
    valid_users: int = 0  # that validation in training judges; 0: all
    num_classes: int = 0

    def __post_init__(self) -> None:
        known = expand(self.metric_names, self.ks)
        if self.select not in known:
            raise InputError(
                f"eval.select={self.select!r} is not among the metrics{nearest(self.select, known)}"
            )
        if self.valid_users < 0:
            raise InputError(f"eval.valid_users={self.valid_users} must be 0 (all users) or more")
        if self.batch_size < 1:
            raise InputError(f"eval.batch_size={self.batch_size} must be at least 1")

    def examples(self, positions: str, *, history: int, **weighting: Any) -> Examples:
        """weighting: of a user's targets and of users, see ``user_examples``; for models that learn
        a user at once.
        """
        if positions == "user":
            return user_examples(self.dataset, history=history, **weighting)
        return sequence_examples(self.dataset, history=history, positions=positions)

    def _judged(
        self,
        score_fn: evaluator.ScoreFn,
        split: str,
        names: Sequence[str],
        slices: bool,
        max_users: int = 0,
        batch_size: int = 0,
    ) -> Evaluation:
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
        return Evaluation(result.metrics, result.slices, per_user, counts)

    def scorer(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]:
        bind = score_function(self.dataset, graphdef, SPLITS[split], history)
        names, users = (self.metric_names, 0) if full else ((self.select,), self.valid_users)

        def judge(params: Params, constants: PyTree) -> Evaluation:
            at_once = users_at_once(
                graphdef, self.batch_size, self.dataset.num_items, sharding.data_parts(params)
            )
            return self._judged(bind(params, constants), split, names, full, users, at_once)

        return judge

    def score(self, judged: Evaluation) -> float:
        return judged.metrics[self.select]

    def told(self, score: float) -> str:
        return f"{self.select} {score:.4f}"

    def baseline(self, split: str) -> Evaluation:
        return self._judged(
            evaluator.popularity(self.dataset), split, self.metric_names, slices=True
        )

    def trending(self) -> tuple[float, dict[str, Evaluation]]:
        """Popularity of late, exp(-age / days): the days that do best on validation, and the
        judgements with them.
        """

        def score_fn(days: float) -> evaluator.ScoreFn:
            return evaluator.same_for_all(decayed_counts(self.dataset, days))

        days = max(
            SCALES[:-1],
            key=lambda d: self.score(self._judged(score_fn(d), "valid", (self.select,), False)),
        )
        return days, {
            split: self._judged(score_fn(days), split, self.metric_names, True) for split in SPLITS
        }


@dataclasses.dataclass(frozen=True)
class Rate:
    """Class logits of a user-item pair; the classes are the intervals between ``boundaries`` on the
    rating scale.
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
        known = ("accuracy", "precision", "recall", "f1", "auc", *LOWER_IS_BETTER)
        if self.select not in known:
            raise InputError(
                f"eval.select={self.select!r} is not a metric of"
                f" task='rate'{nearest(self.select, known)}"
            )
        empty = np.setdiff1d(np.arange(self.num_classes), self.classes[self.dataset.split == TRAIN])
        if len(empty):
            raise InputError(
                f"rate.boundaries={tuple(self.boundaries)}: no training rating falls into class"
                f" {empty[0]}; ratings lie in {self.dataset.rating.min():g} to"
                f" {self.dataset.rating.max():g}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.boundaries) + 1

    @property
    def classes(self) -> np.ndarray:
        return np.searchsorted(
            np.asarray(self.boundaries), self.dataset.rating, side="right"
        ).astype(np.int32)

    @property
    def class_values(self) -> np.ndarray:
        """The mean training rating of each class, [C]."""
        train = self.dataset.split == TRAIN
        totals = np.bincount(self.classes[train], self.dataset.rating[train], self.num_classes)
        return totals / np.bincount(self.classes[train], minlength=self.num_classes)

    @property
    def class_counts(self) -> np.ndarray:
        """Training ratings of each item by class, [I, C]."""
        train = self.dataset.split == TRAIN
        counts = np.zeros((self.dataset.num_items, self.num_classes))
        np.add.at(counts, (self.dataset.item[train], self.classes[train]), 1.0)
        return counts

    def examples(self, positions: str, *, history: int, **weighting: Any) -> Examples:
        return rate_examples(self.dataset, self.classes, TRAIN, history=history)

    def _judged(self, logits: Callable[[np.ndarray], Array], pairs: Batch) -> Evaluation:
        labels, ratings = pairs["targets"][:, 0, 0], self.dataset.rating[pairs["interaction"]]
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
        """Each user's sum of ``values`` of pairs, scaled so that the mean over users is the mean
        over pairs.
        """
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

    def scorer(
        self, graphdef: nnx.GraphDef, split: str, history: int, *, full: bool = True
    ) -> Callable[[Params, PyTree], Evaluation]:
        examples, pairs = self._pairs(split, history)
        logits = _pair_logits(graphdef)
        return lambda params, constants: self._judged(
            lambda rows: logits(params, constants, examples.gather(rows)), pairs
        )

    def score(self, judged: Evaluation) -> float:
        value = judged.metrics[self.select]
        return -value if self.select in LOWER_IS_BETTER else value

    def told(self, score: float) -> str:
        return f"{self.select} {abs(score):.4f}"

    def baseline(self, split: str) -> Evaluation:
        """The item's class shares in training, smoothed by one pseudo-rating of the average: no
        personalisation.
        """
        counts = self.class_counts
        prior = counts.sum(0) / counts.sum()
        shares = (counts + prior[None]) / (counts.sum(1, keepdims=True) + 1.0)
        _, pairs = self._pairs(split, 1)
        return self._judged(lambda rows: jnp.log(jnp.asarray(shares[pairs["item"][rows]])), pairs)
