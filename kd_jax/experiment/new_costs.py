"""What a new user and a new item cost: the time of the maps that give them their vectors."""

from __future__ import annotations

import numpy as np

from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import VALID
from kd_jax.evaluation import latency
from kd_jax.evaluation.evaluator import eval_users
from kd_jax.experiment import new_users, roles
from kd_jax.experiment.new_items import NewItems
from kd_jax.experiment.trained import TrainedModel

TIMED = 50  # users, and items


def seconds(trained: TrainedModel, items: NewItems) -> dict[str, float]:
    """'new_user_seconds' and 'new_item_seconds', medians of one at a time, in NumPy.

    A new user's vector comes from their history by the ``HistoryMap``, a new item's row from its
    text by the ``TextMap``, as in ``kd_jax.runtime``. A map that the student does not have is left
    out. Call it after that of users was fitted and kept.
    """
    experiment, found = trained.experiment, {}
    data = experiment.dataset
    fitted = new_users.history_map(trained.folder, trained.step)
    if fitted is not None:
        vectors = new_users.map_items(trained.model)
        users = eval_users(data, VALID)[:TIMED]
        windows = last_items(*data.history(VALID), fitted.length)[users]
        found["new_user_seconds"] = latency.typical_seconds(
            lambda history: fitted(history, vectors), np.split(windows, len(windows))
        )
    text_map = items.text_map()
    if text_map is not None:
        texts = experiment.texts(roles.main_teacher()).items[:TIMED]
        found["new_item_seconds"] = latency.typical_seconds(lambda text: text_map([text]), texts)
    return found
