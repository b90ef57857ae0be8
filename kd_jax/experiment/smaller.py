"""The quality of a trained student whose vectors have fewer bits or fewer dimensions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.data.splits import TEST
from kd_jax.evaluation.evaluator import chosen_users, eval_users
from kd_jax.evaluation.scoring import contexts_of
from kd_jax.evaluation.tasks import Rank
from kd_jax.experiment.trained import TrainedModel
from kd_jax.models.scorer import factorises
from kd_jax.runtime import quantized

FULL = 32  # bits of a trained number
BITS = (16, 8, 4)
PARTS = (2, 4)  # into which the dimensions are divided; the first is kept
PAIRS = 1 << 26  # of users and items that are scored for one size, at most
FEWEST = 500  # users, whatever the size of the catalogue


class Vectors(NamedTuple):
    """Scores as factors: contexts [U, D], items [I, D] and bias [I], all f32."""

    contexts: np.ndarray
    items: np.ndarray
    bias: np.ndarray


def sizes(trained: TrainedModel, known: float) -> dict[str, Any]:
    """The metric that selects models on test, of the trained vectors and of smaller ones.

    'users' is how many of the test users are judged: all, unless there are more than ``PAIRS`` /
    items. 'sizes' has a row per size: 'bits' of a number of an item vector (of a user's vector at
    least 8, ``quantized.user_bits``), 'dim', 'bytes' of item vectors, biases and the vectors of a
    table of users, and the metric by name. Smaller vectors are packed as in ``runtime.quantized``
    or cut by ``cut``. Empty for a student whose scores do not factorise.

    known: the metric of the model on test. Vectors beyond the range of float16 have no size below
    32 bits, which is noted in the log.
    """
    experiment = trained.experiment
    task, data = experiment.task, experiment.dataset
    if not isinstance(task, Rank) or not factorises(trained.parts.graphdef):
        return {}
    most = max(FEWEST, PAIRS // data.num_items)
    judged = eval_users(data, TEST)
    users = chosen_users(judged, most)
    found = _vectors(trained, users)
    count = data.num_users if getattr(trained.model, "has_user_vectors", False) else 0
    dim = found.items.shape[1]
    rows: list[dict[str, Any]] = [
        {"bits": FULL, "dim": dim, "bytes": _bytes(FULL, dim, data.num_items, count)}
    ]
    whole = len(users) == len(judged)
    rows[0][task.select] = known if whole else _quality(task, found, users)
    for bits in BITS:
        try:
            small = packed(found, bits)
        except InputError as error:
            experiment.log.note(f"vectors of {bits} bits are not measured: {error}")
            continue
        row = {"bits": bits, "dim": dim, "bytes": _bytes(bits, dim, data.num_items, count)}
        rows.append(row | {task.select: _quality(task, small, users)})
    widths = list(dict.fromkeys(dim // part for part in PARTS if dim // part))
    principal = cut_vectors(found, max(widths, default=0))
    for width in widths:
        row = {"bits": FULL, "dim": width, "bytes": _bytes(FULL, width, data.num_items, count)}
        kept = principal._replace(contexts=principal.contexts * (np.arange(dim) < width))
        rows.append(row | {task.select: _quality(task, kept, users)})
    return {"users": len(users), "sizes": rows}


def _vectors(trained: TrainedModel, users: np.ndarray) -> Vectors:
    """The trained vectors, with the contexts of ``users``."""
    score, at_once = trained.score_function(TEST)
    return Vectors(contexts_of(score, users, at_once), *map(np.asarray, trained.model.items()))


def _quality(task: Rank, found: Vectors, users: np.ndarray) -> float:
    vectors, bias = jnp.asarray(found.items), jnp.asarray(found.bias)

    def scores(rows: np.ndarray) -> Factors:
        places = np.minimum(np.searchsorted(users, rows), len(users) - 1)  # padding: any user
        return Factors(jnp.asarray(found.contexts[places]), vectors, bias)

    return task.evaluate(scores, "test", (task.select,), False, len(users)).metrics[task.select]


def packed(found: Vectors, bits: int) -> Vectors:
    """The vectors as they are decoded after they were stored in ``bits``; biases are float16.

    Raises InputError as ``quantized.pack`` does.
    """
    contexts, items = (
        quantized.unpack(quantized.pack(rows, wanted, what))
        for rows, wanted, what in (
            (found.contexts, quantized.user_bits(bits), "user vectors"),
            (found.items, bits, "item vectors"),
        )
    )
    return Vectors(contexts, items, quantized.half(found.bias, "biases").astype(np.float32))


def cut_vectors(found: Vectors, dim: int) -> Vectors:
    """The first ``dim`` principal dimensions, filled with zeros to the width of the vectors.

    The mean context is moved into the biases, c · v + b = (c - mean) · v + (b + mean · v), so that
    the dimensions have less to represent. One width for all sizes means one compiled program.
    """
    mean = found.contexts.mean(0)
    contexts, items = cut(found.contexts - mean, found.items, dim)
    more = ((0, 0), (0, found.items.shape[1] - items.shape[1]))
    return Vectors(np.pad(contexts, more), np.pad(items, more), found.bias + found.items @ mean)


def cut(
    contexts: Float[np.ndarray, "U D"], items: Float[np.ndarray, "I D"], dim: int
) -> tuple[Float[np.ndarray, "U d"], Float[np.ndarray, "I d"]]:
    """The best user vectors [U, d] and item vectors [I, d] with d = min(dim, D, U, I).

    Of all matrices of rank d, users @ items.T has the smallest squared error from contexts @
    items.T, summed over all users and items. Source: Eckart and Young, "The approximation of one
    matrix by another of lower rank", Psychometrika 1936. The SVD of the [U, I] product is computed
    from that of a [D, D] matrix; each side gets the square root of the singular values.
    """
    (q_users, r_users), (q_items, r_items) = (
        np.linalg.qr(side.astype(np.float64)) for side in (contexts, items)
    )
    left, values, right = np.linalg.svd(r_users @ r_items.T, full_matrices=False)
    scale = np.sqrt(values[:dim])[None]
    users = q_users @ (left[:, :dim] * scale)
    vectors = q_items @ (right[:dim].T * scale)
    return users.astype(np.float32), vectors.astype(np.float32)


def _bytes(bits: int, dim: int, items: int, users: int) -> int:
    """The bytes of the vectors of items and users, and of the items' biases."""
    if bits == FULL:
        return 4 * (dim * (items + users) + items)
    return items * (_row_bytes(bits, dim) + 2) + users * _row_bytes(quantized.user_bits(bits), dim)


def _row_bytes(bits: int, dim: int) -> int:
    return quantized.pack(np.zeros((1, dim), np.float32), bits).nbytes
