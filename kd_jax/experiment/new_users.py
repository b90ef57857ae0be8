"""Students and users that are known by their history alone: their model, and its evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from kd_jax.core.files import read_json, write_json, write_tensors
from kd_jax.core.types import Params, PyTree
from kd_jax.data.splits import TEST, VALID
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.evaluation.scoring import score_function, users_at_once
from kd_jax.evaluation.tasks import Rank
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import TrainedModels
from kd_jax.models.scorer import table_rows
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.serving.history_map import HistoryMaps, Settings

SETTINGS, WEIGHTS = "history_map.json", "history_map.safetensors"
LENGTHS = (1, 3, 10, 0)  # newest items that a new user is known by; 0: all
SELECT_USERS = 500  # that select the hyper-parameters of the map

Best = tuple[Params, PyTree]  # parameters and constants


class NewUsers:
    """A trained model's users as new ones, known by their history alone.

    A student with a table of users gets a ``HistoryMap``, which is kept in the model's folder. A
    model that reads histories reads shorter ones.
    """

    def __init__(self, models: TrainedModels, role: Role, seed: int, parts: ModelParts, best: Best):
        self._experiment = models.experiment
        self._folder = models.experiment.folder(role, seed)
        self._parts = parts
        self._best: Best = sharding.fetch(best[0]), sharding.fetch(best[1])
        self._rank = isinstance(models.experiment.task, Rank)
        self._table = self._rank and "user" in table_rows(parts.graphdef, best[0], "user")

    def metrics(self) -> dict[str, dict[str, float]]:
        """The metric that selects models, by name, on test, by the number of newest train items.

        '1', '3', '10' and 'all'; 'known' is the metric of the users with their trained vectors, and
        'updated' that of the trained vectors after the interactions of the validation split.
        """
        task = self._experiment.task
        return {task.select: self._by_history()} if isinstance(task, Rank) else {}

    def _by_history(self) -> dict[str, float]:
        names = {str(n) if n else "all": n for n in LENGTHS}
        if not self._table:
            return {name: self._shortened(n or self._parts.history) for name, n in names.items()}
        maps, settings = self.maps()
        found = {name: self._of(maps.contexts(settings, n), TEST) for name, n in names.items()}
        newer = self._experiment.dataset.history(TEST)
        shift = maps.contexts(settings, 0, newer) - maps.contexts(settings, 0)
        trained = np.where(maps.trained[:, None], maps.users, maps.contexts(settings, 0))
        return found | {
            "known": self._of(maps.users, TEST),
            "updated": self._of(trained + shift, TEST),
        }

    def history_map(self) -> HistoryMap | None:
        """The fitted map; None for a model without a table of users."""
        if not self._table:
            return None
        maps, settings = self.maps()
        return maps.fit(settings)

    def maps(self) -> tuple[HistoryMaps, Settings]:
        """The regression problem and its selected hyper-parameters, which are written once."""
        model: Any = nnx.merge(self._parts.graphdef, *self._best)
        items = model.items()[0] if model.factorised else model.item[...]
        histories = self._experiment.dataset.history(VALID)
        maps = HistoryMaps(np.asarray(items), np.asarray(model.user[...]), histories)
        path = self._folder / SETTINGS
        if agreed(path.exists()):
            return maps, Settings(**read_json(path, f"delete {path}"))
        settings = maps.select(lambda contexts: self._of(contexts, VALID, SELECT_USERS))
        if leader():
            fitted = maps.fit(settings)
            tensors = {"weight": fitted.weight, "intercept": fitted.intercept}
            write_tensors(self._folder / WEIGHTS, tensors)
            write_json(path, dataclasses.asdict(settings))
        barrier("history map")
        return maps, settings

    def _of(self, users: np.ndarray, split: int, max_users: int = 0) -> float:
        """The metric with these vectors in the table of users."""
        params = self._best[0] | {"user": users}
        return self._evaluate(params, self._parts.history, split, max_users)

    def _shortened(self, history: int) -> float:
        return self._evaluate(self._best[0], history, TEST)

    def _evaluate(self, params: Params, history: int, split: int, max_users: int = 0) -> float:
        experiment, graphdef = self._experiment, self._parts.graphdef
        task: Any = experiment.task
        placed = sharding.put_params(params, table_rows(graphdef, params), experiment.mesh)
        constants = sharding.put(self._best[1], experiment.mesh)
        score_fn = score_function(experiment.dataset, graphdef, split, history)(placed, constants)
        at_once = users_at_once(
            graphdef, task.batch_size, experiment.dataset.num_items, sharding.data_parts(placed)
        )
        name = "valid" if split == VALID else "test"
        found = task.evaluate(score_fn, name, (task.select,), False, max_users, at_once)
        return found.metrics[task.select]
