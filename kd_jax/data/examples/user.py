"""One example per user: all training items are targets of one context."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from kd_jax.core.errors import InputError
from kd_jax.core.types import Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.popularity import DAY
from kd_jax.data.splits import TRAIN

MAX_TARGETS = 256  # the newest targets of a user that matrix factorisation learns from


def recency_weights(age: np.ndarray, decay: float) -> np.ndarray:
    """exp(-age / decay); 0 where the age is inf."""
    if not decay > 0:
        raise InputError(f"student.<name>.decay={decay} must be positive")
    return np.exp(-age / decay)


def target_ages(
    dataset: Dataset, indptr: np.ndarray, width: int, unit: str
) -> Float[np.ndarray, " N"]:
    """How old each train interaction is, by user; inf beyond the newest ``width`` of its user.

    unit: 'interactions' (0 for the user's newest) or 'days' (before the end of training, whoever
    acted last).
    """
    if unit not in ("interactions", "days"):
        raise InputError(
            f"student.<name>.decay_unit={unit!r} is unknown; known: interactions, days"
        )
    age = np.repeat(indptr[1:] - 1.0, np.diff(indptr)) - np.arange(indptr[-1])
    if unit == "days":
        time = dataset.timestamp[dataset.split == TRAIN]
        return np.where(age < width, (time.max(initial=0) - time) / DAY, np.inf)
    return np.where(age < width, age, np.inf)


def user_examples(
    dataset: Dataset,
    *,
    history: int,
    decay: float,
    decay_unit: str = "interactions",
    user_power: float = 0.5,
) -> Examples:
    """One example per user: all train items are targets of the user's one context, the newest the
    most.

    decay: age at which a target counts 1/e, in ``decay_unit``. user_power: an example weighs (sum
    of its target weights) ** user_power; 0 weighs all users alike.
    """
    indptr, items = dataset.targets(TRAIN)
    counts = np.diff(indptr)
    width = int(min(MAX_TARGETS, counts.max(initial=1)))
    ages = target_ages(dataset, indptr, width, decay_unit)
    owner = np.repeat(np.arange(len(counts)), counts)
    totals = np.bincount(owner, recency_weights(ages, decay), len(counts))
    newest = np.full(len(counts), np.inf)
    np.minimum.at(newest, owner, ages)
    shares = recency_weights(ages - newest[owner], decay)  # of a user who left long ago, too
    shares /= np.bincount(owner, shares, len(counts))[owner]
    users = np.flatnonzero(counts).astype(np.int32)
    weights = (totals**user_power / np.mean(totals[users] ** user_power)).astype(np.float32)
    num_users = len(counts)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        first, stop = tables["indptr"][user], tables["indptr"][user + 1]
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
        "users": users, "indptr": compact(indptr), "items": items.astype(np.int32),
        "shares": shares.astype(np.float32), "weights": weights,
    }  # fmt: skip
    return Examples(len(users), tables, look_up)
