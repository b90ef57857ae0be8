"""Functions that score batches of users or pairs with a model, compiled once per architecture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from kd_jax.core.scores import Factors
from kd_jax.core.types import Array, Batch, Params, PyTree
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import last_items
from kd_jax.devices import sharding
from kd_jax.evaluation import evaluator
from kd_jax.evaluation.batching import stream
from kd_jax.models.scorer import catalogue, factorises

LARGEST_BLOCK = 2**26  # scores [B, I] on one device: 256 MB


@functools.lru_cache
def score_function(
    dataset: Dataset, graphdef: nnx.GraphDef, split: int, history: int
) -> Callable[[Params, PyTree], evaluator.ScoreFn]:
    """A function (params, constants) -> score function of the users (``evaluator.ScoreFn``).

    It is compiled once per architecture. A user's history is that before ``split``; item
    vectors are computed once. On a mesh the item tables may have more than I rows, and the scores
    as many columns (``sharding.put_params``).
    """
    windows = last_items(*dataset.history(split), history)
    factorised = factorises(graphdef)
    scores = _scores(graphdef, factorised)
    first = np.int32(split * dataset.num_users)  # of the split's rows of ``context_row``

    def bind(params: Params, constants: PyTree) -> evaluator.ScoreFn:
        items = catalogue(graphdef, params, constants)
        place = sharding.user_placement(params)

        def score(users: np.ndarray) -> Factors | Array:
            found = scores(
                params, constants, items, place(windows[users]), place(users), place(first + users)
            )
            return Factors(found, *items) if factorised else found

        return score

    return bind


@functools.lru_cache
def _scores(graphdef: nnx.GraphDef, factorised: bool) -> Callable[..., Array]:
    """The jitted function of an architecture for the scores of users."""

    @jax.jit
    def scores(
        params: Params, constants: PyTree, items: PyTree, windows: Array, users: Array, rows: Array
    ) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        found: Any = model.scores({"user": users, "history": windows, "context_row": rows}, items)
        if isinstance(found, Factors) != factorised:
            kind = "no factors" if factorised else "factors"
            raise TypeError(f"{type(model).__name__}.scores returns {kind}; see Scorer.factorised")
        return found.contexts if isinstance(found, Factors) else found

    return scores


def contexts_of(
    score: evaluator.ScoreFn, users: np.ndarray, at_once: int
) -> Float[np.ndarray, "U D"]:
    """The contexts of users, for scores that are factors."""

    def contexts(_: int, block: np.ndarray) -> Array:
        found = score(block)
        assert isinstance(found, Factors)
        return found.contexts

    return np.concatenate(stream(contexts, users, at_once))[: len(users)]


def dense_users(batch_size: int, num_items: int, devices: int = 1) -> int:
    """The largest batch of users, up to ``batch_size``, for scores that are not factors.

    Each of the ``devices`` over which the users are split has at most ``LARGEST_BLOCK`` scores. The
    batch is a multiple of ``devices``, since otherwise it would be replicated.
    """
    most = max(1, LARGEST_BLOCK // num_items)
    each = -(-batch_size // devices)
    return devices * (each if each <= most else 1 << (most.bit_length() - 1))


def users_at_once(graphdef: nnx.GraphDef, batch_size: int, num_items: int, devices: int) -> int:
    """The batch of users that a model scores at once, a multiple of ``devices``.

    ``batch_size``, rounded up, for a model with factors, else ``dense_users``.
    """
    if factorises(graphdef):
        return -(-batch_size // devices) * devices
    return dense_users(batch_size, num_items, devices)


@functools.lru_cache
def pair_logits(graphdef: nnx.GraphDef) -> Callable[[Params, PyTree, Batch], Array]:
    """(params, constants, batch) -> class logits [B, C], compiled once per architecture."""

    @jax.jit
    def logits(params: Params, constants: PyTree, batch: Batch) -> Array:
        model: Any = nnx.merge(graphdef, params, constants)
        return model.logits(batch)[:, 0]

    return logits
