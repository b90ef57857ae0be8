"""Items that are known by their text alone: their model, and its evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax.core.scores import Factors
from kd_jax.data.splits import VALID
from kd_jax.evaluation.evaluator import evaluate_rank, judged_users
from kd_jax.evaluation.metrics import expand
from kd_jax.evaluation.scoring import contexts_of
from kd_jax.evaluation.tasks import SPLITS, Rank
from kd_jax.experiment import roles
from kd_jax.experiment.kept import kept_settings, read_settings
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import TrainedModel, TrainedModels
from kd_jax.runtime.text_map import TextMap
from kd_jax.serving.text_map import Rows, Settings, TextMaps

SETTINGS = "text_map.json"  # beside it, the arrays (``kept.weights_of``)
BIASES = "new_items.json"
SLICE = "cold_only"  # cold targets, ranked among cold items
MOST = 8.0  # above what is added to a bias, in units of a logit
HALVINGS = 7  # of the range in which the largest is sought


@dataclasses.dataclass(frozen=True)
class Biases:
    """What is added to the biases of items without a train interaction when they are served.

    judged_by: what they were selected by: ``config.export.new_items``, and the names of the two
    metrics (``NewItems.biases``). trained: for the rows that training gave to cold items. text: for
    rows by the text map.
    """

    judged_by: str
    trained: float = 0.0
    text: float = 0.0


def kept_of(models: TrainedModels, role: Role, seed: int) -> Settings | None:
    """The hyper-parameters that were selected for a student; None if there are none yet."""
    path = models.experiment.folder(role, seed) / SETTINGS
    return read_settings(path, Settings, models.result(role, seed)["best_step"])


def lost_share(config: ConfigDict) -> float:
    """``config.export.new_items``; that of ``configs/common.py`` in a workdir of before."""
    return float(config.export.get("new_items", 0.005))


def biases_of(models: TrainedModels, role: Role, seed: int) -> Biases:
    """What was selected for a student; nothing if nothing was yet, or if none may be added."""
    if not lost_share(models.experiment.config):
        return Biases("")
    path = models.experiment.folder(role, seed) / BIASES
    found = read_settings(path, Biases, models.result(role, seed)["best_step"])
    return found or Biases("")


def most_added(quality: Callable[[float], tuple[float, float]], loss: float) -> float:
    """The most that can be added to the biases of new items.

    quality: maps what is added to the quality among warm and among cold targets, NaN without such.
    The first may fall by at most the share ``loss``, and the second must rise, or nothing is added.
    The first is assumed to fall with all that is added. The result is a multiple of ``MOST`` / 2 **
    ``HALVINGS``, and less than ``MOST``.
    """
    (warm, cold), found, reached, bound = quality(0.0), 0.0, 0.0, MOST
    for _ in range(HALVINGS):
        middle = (found + bound) / 2
        of_warm, of_cold = quality(middle)
        if of_warm >= (1 - loss) * warm:
            found, reached = middle, of_cold
        else:
            bound = middle
    return found if reached > cold else 0.0


class NewItems:
    """A trained student's items as new ones, known by their text alone (``TextMap``).

    The map is fitted to the rows of items with train interactions, and kept in the student's
    folder.
    """

    def __init__(self, trained: TrainedModel):
        self._trained, self._experiment = trained, trained.experiment
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of ``_contexts``

    def metrics(self, trained: float | None) -> dict[str, dict[str, float]]:
        """The metric that selects models, by name, of cold test targets among cold items.

        'text': with their rows by a text map, which is fitted to warm items alone. 'trained': with
        their trained rows, as given; None where there is no cold target. Empty without such
        targets, and for a student whose scores do not factorise.
        """
        task = self._experiment.task
        if trained is None or not isinstance(task, Rank) or not self._trained.model.factorised:
            return {}
        found = self._cold(self._maps.predicted(self.settings()), "test")
        return {task.select: {"trained": trained, "text": found}} if found is not None else {}

    def text_map(self, settings: Settings | None = None) -> TextMap | None:
        """The fitted map; None where ``kd_jax.runtime`` cannot serve the student.

        settings: in place of those that are selected for this student.
        """
        return self._maps.fit(settings or self.settings()) if self._in_numpy else None

    def biases(self) -> Biases:
        """What new items get on top of their biases, selected once; see ``Biases``.

        It is the most, in steps of ``MOST`` / 2 ** ``HALVINGS``, with which the metric that
        selects models loses at most the share ``config.export.new_items`` among warm targets on
        validation, of ``eval.valid_users`` users and all with a cold target; 0 where the recall of
        cold targets in the longest lists does not rise, or validation has none, and for a student
        whose scores do not factorise.
        """
        task, loss = self._experiment.task, lost_share(self._experiment.config)
        if not loss or not isinstance(task, Rank) or not self._trained.model.factorised:
            return Biases("")
        recall = f"recall@{max(task.ks)}"
        deep = recall if recall in expand(task.metric_names, task.ks) else task.select
        judged_by, path = f"{loss:g} of {task.select} for {deep}", self._trained.folder / BIASES
        select = functools.partial(self._select_biases, judged_by, loss, (task.select, deep))
        return kept_settings(
            path, Biases, self._trained.step, select, valid=lambda kept: kept.judged_by == judged_by
        )

    def _select_biases(self, judged_by: str, loss: float, names: tuple[str, str]) -> Biases:
        data = self._experiment.dataset
        if data.warm[data.item[data.split == VALID]].all():
            return Biases(judged_by)
        predicted = self._maps.predicted(self.settings())
        by_text = (
            np.where(data.warm[:, None], self._rows[0], predicted[0]),
            np.where(data.warm, self._rows[1], predicted[1]),
        )
        found = (
            most_added(self.with_more_bias(names, rows=rows), loss)
            for rows in (self._rows, by_text)
        )
        return Biases(judged_by, *found)

    def with_more_bias(
        self, names: tuple[str, str], split: str = "valid", rows: Rows | None = None
    ) -> Callable[[float], tuple[float, float]]:
        """More bias of cold items -> two metrics, among warm and among cold targets of a split.

        rows: the items' vectors and biases in place of those of training. NaN without such targets.
        """
        vectors, bias = rows or self._rows
        cold = ~self._experiment.dataset.warm

        def quality(more: float) -> tuple[float, float]:
            found = self._slices((vectors, bias + np.float32(more) * cold), split)
            unknown = {name: float("nan") for name in names}
            return found.get("warm", unknown)[names[0]], found.get("cold", unknown)[names[1]]

        return quality

    @property
    def _in_numpy(self) -> bool:
        known = self._trained.model.factorised or self._trained.model.runtime_hidden() is not None
        return isinstance(self._experiment.task, Rank) and known

    @functools.cached_property
    def _rows(self) -> Rows:
        model = self._trained.model
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
            self._trained.folder / SETTINGS,
            Settings,
            self._trained.step,
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
        """The metric that selects models, of cold targets among cold items; None without such."""
        task: Any = self._experiment.task
        return self._slices(rows, split).get(SLICE, {}).get(task.select)

    def _slices(self, rows: Rows, split: str) -> dict[str, dict[str, float]]:
        """The metrics of each slice with these rows; histories are read through the trained ones.

        Empty for scores without factors.
        """
        task = self._experiment.task
        if not isinstance(task, Rank) or not self._trained.model.factorised:
            return {}
        vectors, bias = map(jnp.asarray, rows)
        users, contexts = self._contexts(split)

        def score(block: np.ndarray) -> Factors:
            places = np.searchsorted(users, block)
            return Factors(jnp.asarray(contexts[places]), vectors, bias)

        # All metrics, as in the evaluation of the model, whose compiled program ranks here too.
        return evaluate_rank(
            score,
            self._experiment.dataset,
            SPLITS[split],
            metrics=task.metric_names,
            ks=task.ks,
            batch_size=task.batch_size,
            slices=True,
            **self._judged(split),
        ).slices

    def _judged(self, split: str) -> dict[str, Any]:
        """The users that are judged, as fields of ``RankOptions``.

        On test all, else ``eval.valid_users`` and all with a cold target.
        """
        task, valid = self._experiment.task, split == "valid"
        assert isinstance(task, Rank)
        return {"max_users": task.valid_users if valid else 0, "with_cold": valid}

    def _contexts(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The users that are judged, and their contexts [U, D], computed once."""
        if split not in self._known:
            users = judged_users(self._experiment.dataset, SPLITS[split], **self._judged(split))
            score, at_once = self._trained.score_function(SPLITS[split])
            self._known[split] = users, contexts_of(score, users, at_once)
        return self._known[split]
