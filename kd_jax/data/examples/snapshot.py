"""Training examples at earlier times, for models that read recent popularity."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.splits import TRAIN


def snapshot_examples(
    dataset: Dataset,
    times: np.ndarray,
    *,
    history: int,
    horizon_days: float = 14.0,
    window_days: float = 60.0,
    max_targets: int = 16,
    user_power: float = 0.5,
) -> Examples:
    """Examples of the past as a model in service would have seen it.

    One example per time of ``times`` (i64 [S], in ``dataset.time_unit``; all but the last) and user
    with a history before it and targets within ``horizon_days`` after it. The rows of a batch have
    the same time, drawn with probability proportional to exp(-age / ``window_days``). user_power:
    the weight of an example is (sum of the weights of its targets) ** user_power. Raises InputError
    if no time has an example.
    """
    if len(times) < 2:
        raise InputError(
            "teacher.popularity.enabled=True needs timestamps that span more than one"
            " day of training; set it to False"
        )
    found = _windows(dataset, times, horizon_days, max_targets)
    snapshots = found["snapshots"]
    if not len(snapshots):
        raise InputError(
            "teacher.popularity.enabled=True finds no time with a history before and a target after"
            " it; set it to False"
        )
    bounds = np.searchsorted(snapshots, np.arange(len(times)))
    age = (times[:-1] - times[-1]) / (window_days * dataset.day)
    probability = np.exp(age) * (np.diff(bounds) > 0)
    probability /= probability.sum()

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        snapshot = rng.choice(len(probability), p=probability)
        return rng.integers(bounds[snapshot], bounds[snapshot + 1], size)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        border = tables["borders"][rows]
        stop = tables["stops"][rows]
        targets, shares, count = _targets(xp, tables, border, stop, max_targets)
        return {
            "user": user,
            "history": window(xp, tables["items"], tables["indptr"][user], border, history)[0],
            "targets": targets.astype(xp.int32)[:, None],
            "target_weights": (shares / count[:, None]).astype(xp.float32)[:, None],
            "weights": (count**user_power)[:, None],
            "snapshot": tables["snapshots"][rows],
            "row": rows.astype(xp.int32),
        }

    return Examples(len(snapshots), _tables(dataset, found), look_up, draw)


def _targets(
    xp: Any, tables: dict[str, Any], border: Any, stop: Any, width: int
) -> tuple[Any, Any, Any]:
    """The items in [border, stop), [B, width], their weights, and the sums of these [B]."""
    items = tables["items"]
    future = border[:, None] + xp.arange(width)[None]
    is_target = future < stop[:, None]
    future = xp.minimum(future, len(items) - 1)
    targets = xp.where(is_target, items[future], PAD)
    if "weights" in tables:
        weights = xp.where(is_target, tables["weights"][future], 0)
        return targets, weights, weights.sum(1)
    return targets, is_target, (stop - border).astype(xp.float32)


def _tables(dataset: Dataset, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tables from which batches are looked up."""
    indptr, items = dataset.targets(TRAIN)
    weights = dataset.train_weights
    return ({} if weights is None else {"weights": weights}) | {
        "users": found["users"].astype(np.int32),
        "borders": compact(found["borders"]),
        "stops": compact(found["stops"]),
        "snapshots": found["snapshots"].astype(np.int32),
        "indptr": compact(indptr),
        "items": items.astype(np.int32),
    }


def _windows(
    dataset: Dataset, times: np.ndarray, horizon_days: float, max_targets: int
) -> dict[str, np.ndarray]:
    """The examples as indices into the train items, sorted by snapshot.

    The targets of an example are the items in [border, stop), the history is before border.
    """
    indptr, _ = dataset.targets(TRAIN)
    train = dataset.split == TRAIN
    time = dataset.timestamp[train]
    user = dataset.user[train]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for snapshot, moment in enumerate(times[:-1]):  # after the last one there are no targets
        past = time < moment
        near = (time >= moment) & (time < moment + horizon_days * dataset.day)
        before = np.bincount(user[past], minlength=dataset.num_users)
        soon = np.bincount(user[near], minlength=dataset.num_users)
        users = np.flatnonzero((before > 0) & (soon > 0))
        border = indptr[users] + before[users]
        stop = border + np.minimum(soon[users], max_targets)
        parts.append((np.full(len(users), snapshot), users, border, stop))
    names = ("snapshots", "users", "borders", "stops")
    return {name: np.concatenate(part) for name, *part in zip(names, *parts, strict=True)}
