"""Examples of past moments, for models that read recent popularity."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.popularity import DAY
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
    """The past as a model in service would have seen it: what had a user done before a moment, and
    what came next?

    One example per moment of ``times`` and user with a history before it and targets within
    ``horizon_days`` after it. A batch belongs to one moment, drawn with probability proportional to
    exp(-age / ``window_days``).
    """
    indptr, items = dataset.targets(TRAIN)
    train = dataset.split == TRAIN
    time, user = dataset.timestamp[train], dataset.user[train]
    if len(times) < 2:
        raise InputError(
            "teacher.popularity.enabled=True needs timestamps in seconds that span more than one"
            " day of"
            " training; set it to False"
        )
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for snapshot, moment in enumerate(times[:-1]):  # after the last one nothing may be known
        before = np.bincount(user[time < moment], minlength=dataset.num_users)
        soon = np.bincount(
            user[(time >= moment) & (time < moment + horizon_days * DAY)],
            minlength=dataset.num_users,
        )
        users = np.flatnonzero((before > 0) & (soon > 0))
        border = indptr[users] + before[users]
        parts.append(
            (
                np.full(len(users), snapshot),
                users,
                border,
                border + np.minimum(soon[users], max_targets),
            )
        )
    snapshots, users, borders, stops = (np.concatenate(part) for part in zip(*parts, strict=True))
    bounds = np.searchsorted(snapshots, np.arange(len(times)))
    chance = np.exp((times[:-1] - times[-1]) / (window_days * DAY)) * (np.diff(bounds) > 0)
    if not len(snapshots):
        raise InputError(
            "teacher.popularity.enabled=True finds no moment with a history before and a target after"
            " it; set it"
            " to False"
        )
    chance /= chance.sum()

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        snapshot = rng.choice(len(chance), p=chance)
        return rng.integers(bounds[snapshot], bounds[snapshot + 1], size)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user, border, stop = tables["users"][rows], tables["borders"][rows], tables["stops"][rows]
        future = border[:, None] + xp.arange(max_targets)[None]
        wanted = future < stop[:, None]
        items, count = tables["items"], (stop - border).astype(xp.float32)
        return {
            "user": user,
            "history": window(xp, items, tables["indptr"][user], border, history)[0],
            "targets": (
                xp.where(wanted, items[xp.minimum(future, len(items) - 1)], PAD).astype(xp.int32)[
                    :, None
                ]
            ),
            "target_weights": (wanted / count[:, None]).astype(xp.float32)[:, None],
            "weights": (count**user_power)[:, None],
            "snapshot": tables["snapshots"][rows],
            "row": rows.astype(xp.int32),
        }

    tables = {
        "users": users.astype(np.int32), "borders": compact(borders), "stops": compact(stops),
        "snapshots": snapshots.astype(np.int32), "indptr": compact(indptr), "items": items.astype(np.int32),
    }  # fmt: skip
    return Examples(len(snapshots), tables, look_up, draw)
