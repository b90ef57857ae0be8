"""Students and users that are known by their history alone: their model, and its evaluation."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.files import read_tensors
from kd_jax.data.splits import TEST, VALID
from kd_jax.evaluation.tasks import Rank
from kd_jax.experiment.kept import kept_settings, read_settings, weights_of
from kd_jax.experiment.trained import TrainedModel
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.serving.history_map import HistoryMaps, Settings

SETTINGS = "history_map.json"  # beside it, the arrays (``kept.weights_of``)
LENGTHS = {"1": 1, "3": 3, "10": 10, "all": 0}  # newest items of a new user; 0: all
SELECT_USERS = 500  # that select the hyper-parameters of the map


def map_items(model: Any) -> np.ndarray:
    """The item vectors f32 [I, D] that the history map of a student reads."""
    return np.asarray(model.items()[0] if model.factorised else model.item[...])


def history_map(folder: Path, step: int) -> HistoryMap | None:
    """The map that was fitted to a model's parameters of ``step``; None if there is none."""
    path = folder / SETTINGS
    found = read_settings(path, Settings, step)
    if found is None or not weights_of(path).exists():
        return None
    tensors = read_tensors(weights_of(path), f"delete {path}")
    return HistoryMap(tensors["weight"], tensors["intercept"], found.decay, found.shrink)


def _arrays(fitted: HistoryMap) -> dict[str, np.ndarray]:
    return {"weight": fitted.weight, "intercept": fitted.intercept}


class NewUsers:
    """A trained model's users as new ones, known by their history alone.

    A student with a table of users gets a ``HistoryMap``, which is kept in the model's folder. A
    model that reads histories reads shorter ones.
    """

    def __init__(self, trained: TrainedModel):
        self._trained, self._experiment = trained, trained.experiment
        self.has_table = (
            isinstance(trained.experiment.task, Rank) and trained.model.has_user_vectors
        )

    def metrics(self, known: float) -> dict[str, dict[str, float]]:
        """The metric that selects models, by name, on test, by the number of newest items.

        '1', '3', '10' and 'all'. Of a student with a table of users these are train items, and
        'known' is the metric of the users with their trained vectors. 'updated' knows the
        interactions of the validation split, too: a trained vector moves by the difference that
        they make to the map. Other students read the items before test of new and known users
        alike. known: the metric of the model on test.
        """
        task = self._experiment.task
        if not isinstance(task, Rank) or (
            self._trained.model.example_kind == "user" and not self.has_table
        ):
            return {}
        return {
            task.select: self._with_map(known) if self.has_table else self._with_histories(known)
        }

    def _with_map(self, known: float) -> dict[str, float]:
        maps, settings = self._maps
        contexts = {name: maps.contexts(settings, n) for name, n in LENGTHS.items()}
        found = {name: self._of(users, TEST) for name, users in contexts.items()}
        updated = self.updated(TEST, crossed=True)
        assert updated is not None
        return found | {"known": known, "updated": self._of(updated, TEST)}

    def _with_histories(self, known: float) -> dict[str, float]:
        longest = self._trained.parts.history
        found = {
            name: self._evaluate(TEST, history=min(n, longest)) for name, n in LENGTHS.items() if n
        }
        return found | {"all": known}

    def history_map(self) -> HistoryMap | None:
        """The fitted map; None for a model without a table of users."""
        if not self.has_table:
            return None
        maps, settings = self._maps
        return maps.fit(settings)

    def updated(self, until: int, *, crossed: bool) -> np.ndarray | None:
        """The vectors f32 [U, D] of users whose interactions before the split ``until`` are known.

        crossed: see ``HistoryMaps.contexts``. None for a model without a table of users.
        """
        if not self.has_table:
            return None
        maps, settings = self._maps
        newer = self._experiment.dataset.history(until)
        return maps.updated(settings, newer, crossed=crossed)

    @functools.cached_property
    def _maps(self) -> tuple[HistoryMaps, Settings]:
        """The regression problem and its selected hyper-parameters, which are written once."""
        histories = self._experiment.dataset.history(VALID)
        model = self._trained.model
        maps = HistoryMaps(map_items(model), np.asarray(model.user[...]), histories)
        settings = kept_settings(
            self._trained.folder / SETTINGS,
            Settings,
            self._trained.step,
            lambda: maps.select(lambda contexts: self._of(contexts, VALID, SELECT_USERS)),
            lambda settings: _arrays(maps.fit(settings)),
        )
        return maps, settings

    def _of(self, users: np.ndarray, split: int, max_users: int = 0) -> float:
        """The metric with these vectors in the table of users."""
        params = self._trained.on_host[0] | {"user": users}
        return self._evaluate(split, max_users, params=params)

    def _evaluate(self, split: int, max_users: int = 0, **changed: Any) -> float:
        """The metric on ``split``. changed: see ``TrainedModel.score_function``."""
        task: Any = self._experiment.task
        score_fn, at_once = self._trained.score_function(split, **changed)
        name = "valid" if split == VALID else "test"
        found = task.evaluate(score_fn, name, (task.select,), False, max_users, at_once)
        return found.metrics[task.select]
