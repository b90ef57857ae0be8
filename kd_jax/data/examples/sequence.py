"""Training examples of next-item prediction: the newest window of each user's history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, last_items, window
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.data.text import history_text


def history_texts(dataset: Dataset, texts: Sequence[str], history: int) -> list[str]:
    """Histories as texts, for the U users, before each of the three splits.

    Row split * U + user, the ``context_row`` of a batch, is the history before the targets of
    ``split``: 0 all train items but the last, 1 the train items, 2 the train and valid items.
    texts: of the items. history: items of a history, at most.
    """
    written: list[str] = []
    for split, drop in ((VALID, 1), (VALID, 0), (TEST, 0)):
        for row in last_items(*dataset.history(split), history, drop=drop):
            written.append(history_text([texts[item] for item in row if item != PAD], history))
    return written


def sequence_examples(dataset: Dataset, *, history: int, example_kind: str) -> Examples:
    """One example per user with at least two train items: the newest window and the next item.

    history: items of the window, L. example_kind: 'all' for a target after every item of the window
    [B, L, 1], 'last' for one after the last item [B, 1, 1]. A position has the weight of the
    interaction with its target.
    """
    tables = sequence_tables(dataset)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        first = tables["indptr"][user]
        stop = tables["indptr"][user + 1] - 1
        inputs, index, valid = window(xp, tables["items"], first, stop, history)
        target = xp.where(valid, tables["items"][index + 1], PAD).astype(xp.int32)[..., None]
        weights = valid.astype(xp.float32)
        if "weights" in tables:
            weights = xp.where(valid, tables["weights"][index + 1], 0).astype(xp.float32)
        if example_kind == "last":
            target, weights = target[:, -1:], weights[:, -1:]
        return {
            "user": user,
            "history": inputs,
            "targets": target,
            "target_weights": xp.ones(target.shape, xp.float32),
            "weights": weights,
            "context_row": user,
            "row": user,
        }

    return Examples(len(tables["users"]), tables, look_up)


def sequence_tables(dataset: Dataset) -> dict[str, np.ndarray]:
    """The tables of the examples: users with at least two train items, and all train items."""
    indptr, items = dataset.targets(TRAIN)
    users = np.flatnonzero(np.diff(indptr) >= 2).astype(np.int32)
    tables = {"users": users, "indptr": compact(indptr), "items": items.astype(np.int32)}
    if dataset.train_weights is not None:
        tables["weights"] = dataset.train_weights
    return tables
