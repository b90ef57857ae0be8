"""What a model costs to serve: users per second, and what it takes until a new item can be recommended."""

from __future__ import annotations

import time

from flax import nnx

from kd_jax.data.dataset import Dataset
from kd_jax.data.loader import TEST
from kd_jax.evaluate import eval_users, top_k
from kd_jax.tasks import score_function
from kd_jax.types import Params, PyTree


def users_per_second(
    dataset: Dataset, graphdef: nnx.GraphDef, params: Params, constants: PyTree, history: int, *, k: int = 10
) -> float:
    """Top-``k`` lists per second over the whole catalogue, seen items left out, batches of 256, after compilation."""
    scores = score_function(dataset, graphdef, TEST, history)(params, constants)
    users, seen = eval_users(dataset, TEST), dataset.history(TEST)
    top_k(scores, users[:256], k, seen)
    began = time.perf_counter()
    top_k(scores, users, k, seen)
    return len(users) / (time.perf_counter() - began)
