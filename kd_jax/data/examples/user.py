"""Training examples of matrix factorisation: all of a user's train items, at once, as targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from kd_jax.core.errors import InputError
from kd_jax.core.types import Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.splits import TRAIN

MAX_TARGETS = 256  # only the newest train items of a user are targets


def recency_weights(age: np.ndarray, decay: float) -> np.ndarray:
    """exp(-age / decay); 0 where the age is inf."""
    if not decay > 0:
        raise InputError(f"student.<name>.decay={decay} must be positive")
    return np.exp(-age / decay)


class Whole(NamedTuple):
    """What the examples of some users depend on in those of all.

    width: targets of an example. end: the last time of training. mean: of the weights.
    """

    width: int
    end: int
    mean: float


def target_ages(
    dataset: Dataset, indptr: np.ndarray, width: int, unit: str, end: int | None = None
) -> Float[np.ndarray, " N"]:
    """The age of each train interaction; inf for all but the newest ``width`` of a user.

    end: the last time of training; None: that of ``dataset``. unit: 'interactions' (0 for the
    user's newest) or 'days' (before the end of training). Raises InputError for another unit.
    """
    if unit not in ("interactions", "days"):
        raise InputError(
            f"student.<name>.decay_unit={unit!r} is unknown; known: interactions, days"
        )
    age = np.repeat(indptr[1:] - 1.0, np.diff(indptr)) - np.arange(indptr[-1])
    if unit == "days":
        time = dataset.timestamp[dataset.split == TRAIN]
        end = time.max(initial=0) if end is None else end
        return np.where(age < width, (end - time) / dataset.day, np.inf)
    return np.where(age < width, age, np.inf)


def widest(counts: np.ndarray) -> int:
    """The number of targets of an example, where users have ``counts`` train interactions."""
    return int(min(MAX_TARGETS, counts.max(initial=1)))


def user_examples(
    dataset: Dataset,
    *,
    history: int,
    decay: float,
    decay_unit: str = "interactions",
    user_power: float = 0.5,
    whole: Whole | None = None,
) -> Examples:
    """One example per user, with the train items as targets, weighted by recency.

    The weight of an interaction multiplies that of its recency. history: L. decay: the age at which
    a target counts 1/e, in ``decay_unit`` (``target_ages``). user_power: the weight of an example
    is (sum of its target weights) ** user_power; with 0 all users have the same weight. whole: of
    all users, where ``dataset`` has a part of them.
    """
    indptr, items = dataset.targets(TRAIN)
    counts = np.diff(indptr)
    width = whole.width if whole else widest(counts)
    ages = target_ages(dataset, indptr, width, decay_unit, whole.end if whole else None)
    owner = np.repeat(np.arange(len(counts)), counts)
    own = 1.0 if dataset.train_weights is None else dataset.train_weights
    totals = np.bincount(owner, recency_weights(ages, decay) * own, len(counts))
    newest = np.full(len(counts), np.inf)
    np.minimum.at(newest, owner, ages)
    # Relative to the user's newest interaction, so that the shares of a user who was last active
    # long ago do not underflow.
    shares = recency_weights(ages - newest[owner], decay) * own
    shares /= np.bincount(owner, shares, len(counts))[owner]
    users = np.flatnonzero(counts).astype(np.int32)
    mean = whole.mean if whole else np.mean(totals[users] ** user_power)
    weights = (totals**user_power / mean).astype(np.float32)
    num_users = len(counts)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        first = tables["indptr"][user]
        stop = tables["indptr"][user + 1]
        targets, index, valid = window(xp, tables["items"], first, stop, width)
        return {
            "user": user,
            "history": window(xp, tables["items"], first, stop, history)[0],
            "targets": targets[:, None],
            "target_weights": xp.where(valid, tables["shares"][index], 0)[:, None],
            "weights": tables["weights"][user][:, None],
            "context_row": num_users + user,
            "row": user,
        }

    tables = {
        "users": users,
        "indptr": compact(indptr),
        "items": items.astype(np.int32),
        "shares": shares.astype(np.float32),
        "weights": weights,
    }
    return Examples(len(users), tables, look_up)
