"""Students and items that are known by their text alone: their model, and its evaluation."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.scores import Factors
from kd_jax.devices import sharding
from kd_jax.evaluation.scoring import score_function
from kd_jax.evaluation.tasks import SPLITS, Rank
from kd_jax.experiment import roles
from kd_jax.experiment.kept import kept_settings, read_settings
from kd_jax.experiment.parts import Best, ModelParts, placed
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import TrainedModels
from kd_jax.runtime.text_map import TextMap
from kd_jax.serving.text_map import Rows, Settings, TextMaps

SETTINGS = "text_map.json"  # beside it, the arrays (``kept.weights_of``)
SLICE = "cold_only"  # cold targets, ranked among cold items


def kept_of(models: TrainedModels, role: Role, seed: int) -> Settings | None:
    """The hyper-parameters that were selected for a student; None if there are none yet."""
    path = models.experiment.folder(role, seed) / SETTINGS
    return read_settings(path, Settings, models.result(role, seed)["best_step"])


class NewItems:
    """A trained student's items as new ones, known by their text alone (``TextMap``).

    The map is fitted to the rows of items with train interactions, and kept in the student's
    folder.
    """

    def __init__(self, models: TrainedModels, role: Role, seed: int, parts: ModelParts, best: Best):
        self._experiment = models.experiment
        self._folder = models.experiment.folder(role, seed)
        self._parts = parts
        self._best: Best = sharding.fetch(best[0]), sharding.fetch(best[1])
        self.model: Any = nnx.merge(parts.graphdef, *self._best)
        self._step = models.result(role, seed)["best_step"]

    def metrics(self, trained: float | None) -> dict[str, dict[str, float]]:
        """The metric that selects models, by name, of cold test targets among cold items.

        'text': with their rows by a text map, which is fitted to warm items alone. 'trained': with
        their trained rows, as given; None where there is no cold target. Empty without such
        targets, and for a student whose scores do not factorise.
        """
        task = self._experiment.task
        if trained is None or not isinstance(task, Rank) or not self.model.factorised:
            return {}
        found = self._cold(self._maps.predicted(self.settings()), "test")
        return {task.select: {"trained": trained, "text": found}} if found is not None else {}

    def text_map(self, settings: Settings | None = None) -> TextMap | None:
        """The fitted map; None where ``kd_jax.runtime`` cannot serve the student.

        settings: in place of those that are selected for this student.
        """
        return self._maps.fit(settings or self.settings()) if self._served else None

    @property
    def _served(self) -> bool:
        known = self.model.factorised or self.model.runtime_hidden() is not None
        return isinstance(self._experiment.task, Rank) and known

    @functools.cached_property
    def _rows(self) -> Rows:
        model = self.model
        rows = model.items() if model.factorised else (model.item[...], model.bias[...])
        return np.asarray(rows[0]), np.asarray(rows[1])

    @functools.cached_property
    def _maps(self) -> TextMaps:
        experiment = self._experiment
        texts = experiment.texts(roles.main_teacher()).items
        return TextMaps(texts, self._rows, experiment.dataset.warm)

    def settings(self) -> Settings:
        """The selected hyper-parameters, which are written once, with the map."""
        return kept_settings(
            self._folder / SETTINGS,
            Settings,
            self._step,
            self._select,
            lambda settings: vars(self._maps.fit(settings)),
        )

    def _select(self) -> Settings:
        judged = self._cold(self._rows, "valid") is not None
        return self._maps.select(self._quality if judged else None)

    def _quality(self, rows: Rows) -> float:
        found = self._cold(rows, "valid")
        assert found is not None
        return found

    def _cold(self, rows: Rows, split: str) -> float | None:
        """The metric of cold targets among cold items with these rows.

        None where there are no such targets, or no factors. Histories are read through the trained
        rows.
        """
        experiment, task = self._experiment, self._experiment.task
        if not isinstance(task, Rank) or not self.model.factorised:
            return None
        vectors, bias = map(jnp.asarray, rows)
        bind = score_function(
            experiment.dataset, self._parts.graphdef, SPLITS[split], self._parts.history
        )
        scores = bind(*placed(self._parts.graphdef, self._best, experiment.mesh))

        def score(users: np.ndarray) -> Factors:
            found = scores(users)
            assert isinstance(found, Factors)
            return Factors(jnp.asarray(sharding.fetch(found.contexts)), vectors, bias)

        # All metrics, as in the evaluation of the model, whose compiled program ranks here too.
        found = task.evaluate(score, split, task.metric_names, slices=True).slices
        return found[SLICE][task.select] if SLICE in found else None
