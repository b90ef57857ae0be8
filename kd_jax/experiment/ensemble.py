"""The plain students of all seeds as one model, which has the mean of their logits.

It is the teacher of ``teacher='student'`` with ``distill.teachers='all'``, and shown beside the
student that learns from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.core.scores import Factors
from kd_jax.evaluation.evaluator import ScoreFn
from kd_jax.evaluation.tasks import SPLITS, Evaluation, Rank
from kd_jax.experiment import roles
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.objectives import teachers_of
from kd_jax.experiment.roles import Role


def learns_from_it(store: LabelStore, student: Role) -> bool:
    """Whether ``student`` learns from several plain students, all of them trained."""
    experiment, plain = store.experiment, roles.plain_student()
    if experiment.config.distill.teachers != "all" or len(experiment.seeds) < 2:
        return False
    if not isinstance(experiment.task, Rank) or plain.name not in teachers_of(experiment, student):
        return False
    return all(store.models.has(plain, seed) for seed in experiment.seeds)


def evaluated(store: LabelStore) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """The row of ``models`` in report/metrics.json, and the evaluation of each split."""
    experiment, plain = store.experiment, roles.plain_student()
    task = experiment.task
    assert isinstance(task, Rank)
    of_split: dict[str, list[ScoreFn]] = {split: [] for split in SPLITS}
    row: dict[str, Any] = {"name": roles.ENSEMBLE, "seed": None, "params": 0, "train_seconds": 0.0}
    at_once = task.batch_size
    for seed in experiment.seeds:
        trained = store.models.open(plain, seed)
        for split, scores in of_split.items():
            score_fn, at_once = trained.score_function(SPLITS[split])
            scores.append(score_fn)
        row["params"] += trained.parts.num_params
        row["train_seconds"] += store.models.result(plain, seed)["seconds"]
    row["bytes"] = 4 * row["params"]
    return row, {
        split: task.evaluate(mean_of(scores), split, task.metric_names, True, 0, at_once)
        for split, scores in of_split.items()
    }


def mean_of(score_fns: Sequence[ScoreFn]) -> ScoreFn:
    """The mean of the logits of models whose scores factorise."""
    share = 1 / len(score_fns)

    def score(users: np.ndarray) -> Factors:
        found: list[Any] = [fn(users) for fn in score_fns]
        return Factors(
            jnp.concatenate([one.contexts for one in found], -1) * share,
            jnp.concatenate([one.vectors for one in found], -1),
            sum(one.bias for one in found) * share,
        )

    return score
