"""Training examples of the task 'rate': one per interaction."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples, compact, window
from kd_jax.data.splits import FOLD_IN


def rate_examples(dataset: Dataset, classes: np.ndarray, split: int, *, history: int) -> Examples:
    """One example per interaction of ``split``: user, item, and the class of its rating.

    classes: int [N], the class of every interaction of the data set. history: L. The history holds
    the user's interactions before this one, and of earlier splits only (for training examples: of
    the training split), so that neither the target nor a later interaction is in it. Users without
    an interaction in those splits are left out.
    """
    context = (dataset.split < max(split, 1)) | (dataset.split == FOLD_IN)
    before = np.concatenate([[0], np.cumsum(context)])
    items = dataset.item[context]
    rated = classes[context]
    warm_user = before[dataset.indptr[1:]] > before[dataset.indptr[:-1]]
    rows = np.flatnonzero((dataset.split == split) & warm_user[dataset.user])

    def look_up(xp: Any, tables: dict[str, Any], chosen: Any) -> Batch:
        row = tables["rows"][chosen]
        user = tables["user"][row]
        first = tables["before"][tables["indptr"][user]]
        stop = tables["before"][row]
        seen, index, valid = window(xp, tables["items"], first, stop, history)
        target = tables["classes"][row][:, None, None]
        weights = tables["weights"][row] if "weights" in tables else xp.ones(len(row), xp.float32)
        return {
            "user": user,
            "item": tables["item"][row],
            "history": seen,
            "history_class": xp.where(valid, tables["rated"][index], PAD).astype(xp.int32),
            "targets": target,
            "target_weights": xp.ones(target.shape, xp.float32),
            "weights": weights[:, None],
            "row": chosen.astype(xp.int32),
            "interaction": row,
        }

    tables = {
        "rows": rows,
        "user": dataset.user,
        "item": dataset.item,
        "indptr": dataset.indptr,
        "before": before,
        "items": np.append(items, 0),  # so that the table is never empty
        "rated": np.append(rated, 0),
        "classes": classes,
    }
    narrow = {name: compact(table) for name, table in tables.items()}
    if dataset.weight is not None:
        narrow["weights"] = dataset.weight
    return Examples(len(rows), narrow, look_up)
