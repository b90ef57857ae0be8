"""Candidates of a row, for losses that read a few items: the teacher's best, and drawn ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kd_jax.core.scores import Factors, Listed
from kd_jax.core.tiling import NEGATIVE
from kd_jax.core.types import PAD
from kd_jax.losses.base import CandidateLoss, Candidates, OnPolicyLoss

TOP_CHUNK = 2**14  # items that are ranked at once


def top_items(factors: Factors, k: int) -> Int[Array, "*B k"]:
    """The ``k`` highest-scoring items of each row, exact; PAD where there are fewer.

    The scores are computed in chunks of the catalogue, at the cost of one product with all item
    vectors.
    """
    count = len(factors.bias)
    chunk = min(count, TOP_CHUNK)
    vectors = jnp.pad(factors.vectors, ((0, -count % chunk), (0, 0)))
    bias = jnp.pad(factors.bias.astype(jnp.float32), (0, -count % chunk), constant_values=NEGATIVE)
    shape = (*factors.contexts.shape[:-1], k)

    def visit(best: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        part = [lax.dynamic_slice_in_dim(x, start, chunk) for x in (vectors, bias)]
        values, index = lax.top_k(Factors(factors.contexts, *part).dense(), min(k, chunk))
        values = jnp.concatenate([best[0], values], -1)
        items = jnp.concatenate([best[1], (start + index).astype(jnp.int32)], -1)
        values, index = lax.top_k(values, k)
        return (values, jnp.take_along_axis(items, index, -1)), None

    empty = (jnp.full(shape, -jnp.inf), jnp.full(shape, PAD, jnp.int32))
    (_, items), _ = lax.scan(visit, empty, jnp.arange(0, len(bias), chunk))
    return jnp.where(items < count, items, PAD)


def best_items(factors: Factors, k: int) -> Int[Array, "*B k"]:
    """``top_items``, or the first ``k`` of ``factors.top`` where as many are known."""
    if factors.top is not None and factors.top.shape[-1] >= k:
        return factors.top[..., :k]
    return top_items(factors, k)


class CandidateItems(NamedTuple):
    """The candidate items of a step that depend on the teacher and on chance.

    top: int32 [..., N], best first, padded with ``PAD``. drawn: int32 [L], the same for all rows.
    num_items: of the catalogue from which they are drawn.
    """

    top: Int[Array, "*B N"]
    drawn: Int[Array, " L"]
    num_items: Array | int = 0


def choose(
    loss: CandidateLoss, teacher: Factors | Listed, num_items: int, key: PRNGKeyArray
) -> CandidateItems:
    """The candidates that ``loss`` needs; for a teacher that lists items, those of its list."""
    drawn = jax.random.randint(key, (loss.drawn,), 0, num_items, jnp.int32)
    if isinstance(teacher, Listed):
        logits = jnp.where(teacher.items == PAD, NEGATIVE, teacher.logits)
        order = jnp.argsort(-logits, axis=-1, stable=True)[..., : loss.top]
        return CandidateItems(jnp.take_along_axis(teacher.items, order, -1), drawn, num_items)
    return CandidateItems(best_items(teacher, loss.top), drawn, num_items)


def own_items(
    loss: CandidateLoss, student: Factors | Float[Array, "*B I"]
) -> Int[Array, "R K"] | None:
    """The student's items of highest score that ``loss`` reads, best first; None if it does not.

    Rows are flattened, and padded with ``PAD``.
    """
    if not isinstance(loss, OnPolicyLoss) or not loss.own:
        return None
    student = lax.stop_gradient(student)
    if isinstance(student, Factors):
        found = top_items(student, loss.own)
    else:
        found = lax.top_k(student, loss.own)[1].astype(jnp.int32)
    return found.reshape(-1, loss.own)


def compared(
    items: CandidateItems,
    student: Factors | Float[Array, "*B I"],
    teacher: Factors | Listed,
    warm: Bool[Array, " I"] | None,
    own: Int[Array, "R K"] | None = None,
) -> Candidates:
    """The scores of both models for ``own`` and ``items``, with rows flattened to [R, N + K + L].

    Gradients flow to the student's contexts, vectors and biases; the teacher gets none. warm: mask
    of the items that take part; None: all. own: the student's items, see ``own_items``.
    """
    top = items.top.reshape(math.prod(items.top.shape[:-1]), items.top.shape[-1])
    own = jnp.zeros((len(top), 0), jnp.int32) if own is None else own
    drawn = jnp.broadcast_to(items.drawn[None], (len(top), len(items.drawn)))
    best = jnp.concatenate([top, own], 1)
    every = jnp.concatenate([best, drawn], 1)
    earlier = jnp.tril(items.drawn[:, None] == items.drawn[None], -1).any(1)
    valid = jnp.concatenate(
        [top != PAD, (own != PAD) & ~_among(own, top), ~_among(drawn, best) & ~earlier[None]], 1
    )
    if warm is not None:
        valid &= warm[jnp.maximum(every, 0)]
    best = jnp.maximum(best, 0)
    scores = [
        jnp.concatenate([scores_of(model, best), _shared(model, items.drawn)], 1)
        for model in (student, teacher)
    ]
    return Candidates(
        scores[0],
        lax.stop_gradient(scores[1]),
        valid,
        top.shape[1],
        _among(every, own) & (every != PAD),
        items.num_items,
    )


def _among(items: Int[Array, "R M"], others: Int[Array, "R N"]) -> Bool[Array, "R M"]:
    return jnp.any(items[:, :, None] == others[:, None, :], -1)


def scores_of(model: Factors | Listed | Array, items: Int[Array, "R K"]) -> Float[Array, "R K"]:
    """Scores of these items; of a list, a very low one for an item that is not on it."""
    if isinstance(model, Factors):
        contexts = model.contexts.reshape(-1, model.contexts.shape[-1])
        near = jnp.einsum(
            "rd,rkd->rk", contexts, model.vectors[items], preferred_element_type=jnp.float32
        )
        return near + model.bias[items].astype(jnp.float32)
    if isinstance(model, Listed):
        listed = model.items.reshape(len(items), -1)
        logits = model.logits.reshape(len(items), -1)
        same = (items[:, :, None] == listed[:, None, :]) & (listed != PAD)[:, None, :]
        found = jnp.sum(jnp.where(same, logits[:, None, :], 0.0), -1)
        return jnp.where(same.any(-1), found, NEGATIVE)
    return jnp.take_along_axis(model.reshape(len(items), -1), items, 1).astype(jnp.float32)


def _shared(model: Factors | Listed | Array, items: Int[Array, " L"]) -> Float[Array, "R L"]:
    """Scores of the same items for all rows: one matrix product."""
    if isinstance(model, Factors):
        contexts = model.contexts.reshape(-1, model.contexts.shape[-1])
        return Factors(contexts, model.vectors[items], model.bias[items]).dense()
    if isinstance(model, Listed):
        rows = model.items.reshape(-1, model.items.shape[-1])
        return scores_of(model, jnp.broadcast_to(items[None], (len(rows), len(items))))
    return model.reshape(-1, model.shape[-1])[:, items].astype(jnp.float32)


def plackett_luce(
    scores: Float[Array, "R K"], taken: Bool[Array, "R K"], rest: Float[Array, "R M"] | None = None
) -> Float[Array, " R"]:
    """The negative log-likelihood, in nats, that the ``taken`` items come first and in this order.

    Items are drawn one after the other, each in proportion to exp(score) among those that are left.
    rest: scores of items that come behind in any order, ``NEGATIVE`` at padding; None for no items.
    """
    scores = jnp.where(taken, scores, NEGATIVE)
    left = lax.cumlogsumexp(scores, axis=1, reverse=True)
    if rest is not None:
        rest = jnp.pad(rest, ((0, 0), (0, 1)), constant_values=NEGATIVE)  # never empty
        left = jnp.logaddexp(left, jax.nn.logsumexp(rest, axis=1, keepdims=True))
    return jnp.sum(jnp.where(taken, left - scores, 0.0), axis=1)
