"""The input of exporters: a trained student, its data set, and their description."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.models.scorer import Scorer
from kd_jax.models.students.base import Inputs
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.runtime.text_map import TextMap

USERS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Vectors:
    """A factorised student as arrays: score = contexts · items + bias.

    contexts: f32 [U, D], of every user. items: f32 [I, D]. bias: f32 [I].
    """

    contexts: np.ndarray
    items: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A student as it is served, with all that an exporter may need.

    description: 'model', its role in the run; 'student', its name in ``STUDENTS``; 'task';
    'history', how many interactions it reads; 'spec', ``StudentSpec.plain``. inputs: the arrays it
    was built from. until: the split before which users are known; a student with a table of users
    knows what the table does. trained: the model as it was trained, if it is not served so.
    """

    dataset: Dataset
    model: Scorer
    description: dict[str, Any]
    inputs: Inputs = dataclasses.field(default_factory=dict)
    history_map: HistoryMap | None = None
    text_map: TextMap | None = None
    until: int = TEST + 1
    trained: Scorer | None = None

    @functools.cached_property
    def vectors(self) -> Vectors | None:
        """None where scores are of pairs (task 'rate') or do not factorise."""
        if self.description["task"] != "rank" or not self.model.factorised:
            return None
        items, bias = self.model.items()
        users = np.arange(self.dataset.num_users, dtype=np.int32)
        windows = last_items(*self.dataset.history(self.until), self.description["history"])
        parts = np.array_split(users, max(1, len(users) // USERS_AT_ONCE))
        contexts = [
            self.model.context({"user": part, "history": windows[part]}, items) for part in parts
        ]
        return Vectors(
            np.concatenate([np.asarray(part) for part in contexts]),
            np.asarray(items),
            np.asarray(bias),
        )
