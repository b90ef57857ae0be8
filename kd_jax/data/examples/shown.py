"""Training examples of impressions: what a user chose among what was shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.impressions import Impressions
from kd_jax.data.splits import TEST, TRAIN, VALID

MAX_SHOWN = 64  # of a longer list, the clicked items and others drawn once
MAX_CLICKED = 8  # further clicked items of a list are left out


def shown_examples(dataset: Dataset, *, history: int, example_kind: str) -> Examples:
    """One example per train impression with a clicked item and one that is not.

    The user has a train interaction before it; the history holds those. No clicked item is one that
    the user is evaluated with, as data.repeats='last' would leave it. The targets are the clicked
    items, in equal shares. history, example_kind: as for ``sequence_examples``; with 'all' only the
    last position has targets. Raises InputError for a data set without such an impression.
    """
    if dataset.impressions is None:
        raise InputError(f"{dataset.name} has no impressions")
    indptr, items = dataset.targets(TRAIN)
    found = dataset.impressions
    found = found.select((found.split == TRAIN) & found.mixed)
    found = found.select(~_held_out(dataset, found))
    before = _before(dataset, found)
    found, before = found.select(before > 0), before[before > 0]
    if not len(found):
        raise InputError(
            f"{dataset.name}: no train impression of a user with an earlier interaction has an item"
            " that was clicked and one that was not; do not use items='shown'"
        )
    shown, clicks = _padded(found)
    most = int(clicks.max())
    positions = history if example_kind == "all" else 1

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user, border = tables["user"][rows], tables["border"][rows]
        chosen, count = tables["shown"][rows], tables["clicks"][rows]
        place = xp.arange(most)[None]
        targets = xp.where(place < count[:, None], chosen[:, :most], PAD)
        share = (place < count[:, None]) / count[:, None]

        def last(values: Any, fill: float) -> Any:
            """[B, ...] -> [B, P, ...], the values at the last position."""
            pad = xp.full((len(rows), positions - 1, *values.shape[1:]), fill, values.dtype)
            return xp.concatenate([pad, values[:, None]], 1)

        return {
            "user": user,
            "history": window(xp, tables["items"], tables["indptr"][user], border, history)[0],
            "targets": last(targets.astype(xp.int32), PAD),
            "target_weights": last(share.astype(xp.float32), 0),
            "weights": last(xp.ones(len(rows), xp.float32), 0),
            "shown": last(chosen, PAD),
            "shown_clicks": last(count, 0),
            "row": rows.astype(xp.int32),
        }

    tables = {
        "user": found.user,
        "border": compact(indptr[found.user] + before),
        "shown": shown,
        "clicks": clicks,
        "indptr": compact(indptr),
        "items": items.astype(np.int32),
    }
    return Examples(len(found), tables, look_up)


def _held_out(dataset: Dataset, shown: Impressions) -> np.ndarray:
    """Whether each list has a click whose interaction is in valid or test."""
    later = np.isin(dataset.split, (VALID, TEST))
    size, lists = np.int64(dataset.num_items), np.repeat(np.arange(len(shown)), shown.lengths)
    held = dataset.user[later] * size + dataset.item[later]
    clicks = shown.user[lists] * size + shown.item
    found = shown.clicked & np.isin(clicks, held)
    return np.bincount(lists, found, len(shown)) > 0


def _before(dataset: Dataset, shown: Impressions) -> np.ndarray:
    """The number of train interactions of its user before each impression."""
    train = dataset.split == TRAIN
    user = np.concatenate([dataset.user[train], shown.user])
    time = np.concatenate([dataset.timestamp[train], shown.timestamp])
    listed = np.arange(len(user)) >= train.sum()
    order = np.lexsort((~listed, time, user))  # of equal times an impression comes first
    earlier = np.cumsum(~listed[order])
    found = np.empty(len(user), np.int64)
    found[order] = earlier
    return found[listed] - dataset.targets(TRAIN)[0][shown.user]


def _padded(found: Impressions) -> tuple[np.ndarray, np.ndarray]:
    """The shown items of each list, int32 [Q, K], the clicked ones first, and their number."""
    lists = np.repeat(np.arange(len(found)), found.lengths)
    draw = np.where(found.clicked, 0, np.random.default_rng(0).random(len(lists)))
    order = np.lexsort((draw, ~found.clicked, lists))
    clicks = np.minimum(found.clicks, MAX_CLICKED)
    place = np.arange(len(lists)) - np.repeat(found.indptr[:-1], found.lengths)
    clicked = found.clicked[order]
    place -= np.where(clicked, 0, (found.clicks - clicks)[lists])
    kept = np.where(clicked, place < MAX_CLICKED, place < MAX_SHOWN)
    shown = np.full((len(found), int(place[kept].max()) + 1), PAD, np.int32)
    shown[lists[kept], place[kept]] = found.item[order][kept]
    return shown, clicks.astype(np.int32)
