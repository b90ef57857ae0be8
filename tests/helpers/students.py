"""Students with random parameters, as exporters get them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helpers.training import HISTORY, spec_of, student_of, task_of
from kd_jax.models.scorer import split
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.serving.exporters import Bundle


@functools.cache
def task():
    return task_of(False)


def bundle_of(name, task_name="rank", **section):
    """A student with random parameters."""
    graphdef, params, constants = split(student_of(task(), name, **section))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(4)
    leaves = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    description = {
        "model": "student",
        "student": name,
        "task": task_name,
        "history": HISTORY,
        "spec": spec_of(task().dataset, name, dim=16, **section).plain(),
    }
    model = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), constants)
    maps = HistoryMap(np.eye(16, dtype=np.float32), np.zeros(16, np.float32), 5.0, 1.0)
    table = "user" in type(model).tables
    return Bundle(task().dataset, model, description, history_map=maps if table else None)
