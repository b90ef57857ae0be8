"""A trained student as it is served: with its users' newest clicks, and with new items in lists."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kd_jax.data.splits import TEST
from kd_jax.experiment.new_items import Biases, NewItems
from kd_jax.experiment.new_users import NewUsers
from kd_jax.experiment.parts import Best
from kd_jax.experiment.trained import TrainedModel
from kd_jax.runtime.text_map import TextMap


def served(
    trained: TrainedModel, users: NewUsers, biases: Biases, until: int, *, crossed: bool
) -> Best:
    """The parameters of a student as they are served.

    Its table of users, if it has one, knows the interactions before the split ``until``
    (``HistoryMaps.updated``), and the biases of items without a train interaction have
    ``biases.trained`` more. crossed: see ``HistoryMaps.contexts``.
    """
    params, constants = trained.on_host
    vectors = users.updated(until, crossed=crossed)
    if vectors is not None:
        params = params | {"user": vectors}
    if biases.trained:
        params = params | {
            "bias": params["bias"] + np.float32(biases.trained) * ~trained.experiment.dataset.warm
        }
    return params, constants


def for_texts(text_map: TextMap | None, biases: Biases) -> TextMap | None:
    """The text map with ``biases.text`` added to the biases that it gives."""
    if text_map is None or not biases.text:
        return text_map
    intercept = text_map.intercept.copy()
    intercept[-1] += np.float32(biases.text)
    return dataclasses.replace(text_map, intercept=intercept)


def metrics(trained: TrainedModel, users: NewUsers, items: NewItems) -> dict[str, Any]:
    """The evaluation on test of a student as it is served to users known until test.

    'test' and 'slices' are those of an entry of ``models``, 'new_item_bias' is ``Biases.trained``.
    Empty for a student that is served as it was trained. Users are cross-fitted.
    """
    biases = items.biases()
    if not (users.has_table or biases.trained):
        return {}
    test = trained.evaluate("test", served(trained, users, biases, TEST, crossed=True))
    return {"test": test.metrics, "slices": test.slices, "new_item_bias": biases.trained}
