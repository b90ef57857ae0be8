"""A baseline with the setting that is best on validation, evaluated like every model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.core.scores import Factors
from kd_jax.core.types import Array
from kd_jax.data.splits import TRAIN
from kd_jax.evaluation.baselines.base import Baseline, Clicks, Fitted, clicks_of
from kd_jax.evaluation.evaluator import ScoreFn
from kd_jax.evaluation.scoring import dense_users
from kd_jax.evaluation.tasks import SPLITS, Evaluation, Rank


@dataclass(frozen=True)
class Chosen:
    """The best setting of a baseline, the seconds that its fit took, and its evaluations."""

    setting: Mapping[str, Any]
    params: int
    seconds: float
    found: dict[str, Evaluation]


def chosen(task: Rank, baseline: Baseline) -> Chosen:
    """The baseline with the first of its settings that is best on validation.

    It is fitted to the interactions of training, each pair of user and item once, and reads what
    the user chose before the split. Raises what ``Baseline.fit`` raises.
    """
    dataset = task.dataset
    train = clicks_of(dataset.targets(TRAIN), dataset.num_items)
    history = {
        split: clicks_of(dataset.history(number), dataset.num_items)
        for split, number in SPLITS.items()
    }

    def evaluate(fitted: Fitted, split: str) -> Evaluation:
        score = _score_function(fitted, history[split])
        at_once = 0 if fitted.factorised else dense_users(task.batch_size, dataset.num_items)
        return task.evaluate(score, split, task.metric_names, True, 0, at_once)

    best: tuple[Mapping[str, Any], float, Fitted, Evaluation] | None = None
    for setting in baseline.settings:
        start = time.perf_counter()
        fitted = baseline.fit(train, **setting)
        seconds = time.perf_counter() - start
        # With all metrics, so that all settings and both splits share a compiled program.
        valid = evaluate(fitted, "valid")
        if best is None or task.score(valid) > task.score(best[3]):
            best = setting, seconds, fitted, valid
    assert best is not None
    setting, seconds, fitted, valid = best
    found = {"valid": valid, "test": evaluate(fitted, "test")}
    return Chosen(setting, fitted.params, seconds, found)


def _score_function(fitted: Fitted, history: Clicks) -> ScoreFn:
    def score(users: np.ndarray) -> Array | Factors:
        found = fitted.scores(users, history[users])
        return found if isinstance(found, Factors) else jnp.asarray(found)

    return score
