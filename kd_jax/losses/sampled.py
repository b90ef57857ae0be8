"""Softmax losses over a sample of the catalogue, where even one pass over all items is too much.

Negatives are drawn once per step and shared by its rows, with replacement, from a proposal q. A
row's softmax then has two kinds of items. Its *own*, which are always in and count once: its
targets, and the items that its teacher scores highest. And the negatives, each standing for 1 / (n
q) items, so that every sum over the catalogue (a softmax's normaliser, a teacher's expectation) is
estimated without bias; a negative that is one of the row's own is masked. The weight enters as
-log(n q) beside the logit, after the temperature. What stays biased is a logarithm or a ratio of
those sums, by O(1/n); ``benchmarks/sampled_bias.py`` measures it. Only vectors of the items in play
are read, so the tables' gradients are those of few rows (``kd_jax/training/lazy_adam.py``).

Sources: Bengio and Senécal, "Adaptive importance sampling to accelerate training of a neural
probabilistic language model", 2008; Jean et al., ACL 2015 (one sample for a whole batch); Yi et
al., RecSys 2019 (log-Q for two towers); that the target itself is not corrected, since it is not
drawn: Khrylchenko et al., "Correcting the LogQ correction", 2025.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE, tile_size
from kd_jax.core.types import PAD
from kd_jax.losses.base import RowStatistics, SoftmaxLoss
from kd_jax.losses.dense import statistics, with_named
from kd_jax.losses.terms import Inputs, Rows, SoftmaxTerm


class Draws(NamedTuple):
    """The negatives of a step.

    items: int32 [N], repeats allowed. log_expected: f32 [N], the log of the expected number of
    draws of each item, N q.
    """

    items: Int[Array, " N"]
    log_expected: Float[Array, " N"]


def proposal(counts: np.ndarray, power: float) -> np.ndarray:
    """The sampling distribution q ∝ (count + 1) ** power, as uint32 [I].

    Each number is where the item's share of the 2**32 random words begins. Every item has a share.
    q is computed from these integers, so the correction is exact (a cumulative sum in f32 could not
    separate ten million items). power=0 is uniform. Raises InputError for a power that is negative
    or not finite.
    """
    if not 0 <= power < math.inf:
        raise InputError(f"distill.negatives_power={power} must be a number from 0 (uniform) up")
    shares = (np.asarray(counts, np.float64) + 1.0) ** power
    sizes = 1 + np.floor(shares / shares.sum() * (2**32 - len(shares) - 1)).astype(np.uint64)
    return (np.cumsum(sizes) - sizes).astype(np.uint32)  # the last item has what is left


def draw(starts: UInt32[Array, " I"], number: int, key: Array) -> Draws:
    """``number`` items drawn with replacement from the proposal, at log2(I) look-ups each."""
    words = jax.random.bits(key, (number,), jnp.uint32)
    items = jnp.searchsorted(starts, words, side="right").astype(jnp.int32) - 1
    end = jnp.where(items + 1 < len(starts), starts[jnp.minimum(items + 1, len(starts) - 1)], 0)
    share = (end - starts[items]).astype(
        jnp.float32
    )  # modulo 2**32: the last share ends where the first begins
    return Draws(items, jnp.log(share) + (math.log(number) - 32 * math.log(2)))


def mean_losses(
    terms: tuple[SoftmaxTerm, ...],
    student: Factors,
    inputs: Inputs,
    draws: Draws,
    tile: int = 0,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Estimates ``streamed.mean_losses`` from ``draws``.

    Returns (the sum weighted by the coefficients, the mean losses [N]). Items are indices into the
    factors, which may hold the whole catalogue or only the items of the step. A row's own items are
    its targets and ``teacher.top``. With every item drawn once and expected once, this is the full
    loss. tile: number of logits computed at once, 0 for the default; more rows than fit are
    computed in turn, and recomputed for the gradient.
    """
    rows, teacher = inputs.rows, inputs.teacher
    assert teacher is None or isinstance(teacher, Factors)
    negatives = _columns(student, draws)
    own = None if teacher is None else teacher.top
    contexts = (student.contexts, None if teacher is None else teacher.contexts)

    def visit(part: tuple[tuple[Array, Array | None], Rows, Array | None]) -> Array:
        (from_student, from_teacher), here, top = part
        some = None
        if teacher is not None and from_teacher is not None:
            some = teacher._replace(contexts=from_teacher)
        return _means(
            terms,
            student._replace(contexts=from_student),
            inputs._replace(rows=here, teacher=some),
            here.targets if top is None else jnp.concatenate([here.targets, top], 1),
            negatives,
        )

    parts = (contexts, rows, own)
    size = len(rows.weights)
    mine = rows.targets.shape[1] + (0 if own is None else own.shape[1])
    cost = len(draws.items) + mine * (1 + student.vectors.shape[1])  # floats per row
    tiles = -(-size * cost // (4 * (tile or tile_size())))
    if tiles <= 1:
        means = visit(parts)
    else:
        height = -(-size // tiles)

        def cut(x: Array) -> Array:
            """[R, …] -> [tiles, height, …]: a tile takes rows from all devices of ``data``."""
            x = jnp.pad(x, ((0, height * tiles - size), *[(0, 0)] * (x.ndim - 1)))
            return jnp.moveaxis(x.reshape(height, tiles, *x.shape[1:]), 1, 0)

        means = lax.map(jax.checkpoint(visit), jax.tree.map(cut, parts)).sum(0)
    return jnp.sum(inputs.coefficients * means), means


class _Negatives(NamedTuple):
    """The distinct drawn items, with columns in the logits.

    items: [N]. stands_for: [N], the log of the number of items that each represents. column: [I],
    the column of each item; N for an item that was not drawn.
    """

    items: Array
    stands_for: Array
    column: Array


def _columns(student: Factors, draws: Draws) -> _Negatives:
    """An item that was drawn several times keeps one column, with the weight of all."""
    number = len(draws.items)
    order = jnp.arange(number)
    column = jnp.full(len(student.bias), number).at[draws.items].min(order)
    times = jnp.zeros(len(student.bias)).at[draws.items].add(1.0)[draws.items]
    first = column[draws.items] == order
    stands_for = jnp.where(first, jnp.log(times) - draws.log_expected, NEGATIVE)
    return _Negatives(draws.items, stands_for, column)


def _means(
    terms: tuple[SoftmaxTerm, ...],
    student: Factors,
    inputs: Inputs,
    own: Int[Array, "R C"],
    negatives: _Negatives,
) -> Array:
    """The weighted sum of each loss over these rows, [N]."""
    rows, teacher, warm = inputs.rows, inputs.teacher, inputs.warm
    items = negatives.items
    targets = rows.targets.shape[1]
    index = jnp.maximum(own, 0)
    every = _log_weights(own, negatives)
    some_warm = every
    if warm is not None:
        drawn_warm = jnp.broadcast_to(warm[items][None], (len(own), len(items)))
        some_warm = jnp.where(jnp.concatenate([warm[index], drawn_warm], 1), every, NEGATIVE)
    counted = jnp.where(rows.targets == PAD, 0.0, rows.target_weights)

    def temperature(term: SoftmaxTerm) -> float | Array:
        if term.softmax.scheduled < 0:
            return term.softmax.temperature
        assert inputs.temperatures is not None
        return inputs.temperatures[term.scheduled]

    scores = _logits(student, index, items)
    assert teacher is None or isinstance(teacher, Factors)
    soft = None if teacher is None else lax.stop_gradient(_logits(teacher, index, items))
    values = []
    for term in terms:
        weights = some_warm if term.warm else every
        some = jnp.max(weights, 1) > NEGATIVE / 2  # a softmax without any item has loss 0
        if term.loss.reads_teacher:
            assert soft is not None
            per_row, some = _compared(
                term.loss, temperature(term), weights, own, rows, scores, soft
            )
        else:
            share = counted
            if term.warm and warm is not None:
                share = jnp.where(warm[index[:, :targets]], counted, 0.0)
            log_z = jax.nn.logsumexp(scores + weights, axis=1)
            hit = jnp.sum(share * (scores[:, :targets] - log_z[:, None]), 1)
            zero = jnp.zeros(len(own))
            per_row = term.loss.value(
                RowStatistics(zero, target_logit=hit, target_weight=share.sum(1))
            )
        values.append(jnp.sum(jnp.where(some, per_row, 0.0) * rows.weights))
    return jnp.stack(values)


def _compared(
    loss: SoftmaxLoss,
    temperature: float | Array,
    weights: Float[Array, "R CN"],
    own: Int[Array, "R C"],
    rows: Rows,
    scores: Float[Array, "R CN"],
    soft: Float[Array, "R CN"],
) -> tuple[Float[Array, " R"], Bool[Array, " R"]]:
    """temperature² · ``loss`` of each row, and whether any item takes part in its softmax."""
    scaled, named = [scores / temperature, soft / temperature], None
    if loss.apart:
        there = jnp.any(own[:, :, None] == rows.apart(loss.apart)[:, None, :], -1)
        there &= weights[:, : own.shape[1]] > NEGATIVE / 2
        named = [jnp.where(there, x[:, : own.shape[1]], NEGATIVE) for x in scaled]
        there = jnp.pad(there, ((0, 0), (0, weights.shape[1] - own.shape[1])))
        weights = jnp.where(there, NEGATIVE, weights)
    log_q, log_p = (x - jax.nn.logsumexp(x + weights, axis=1)[:, None] for x in scaled)
    found = statistics(loss, log_q, log_p, weights)
    if named is not None:
        found = with_named(found, named, [x + weights for x in scaled])
    return temperature**2 * loss.value(found), jnp.max(weights, 1) > NEGATIVE / 2


def _logits(factors: Factors, own: Int[Array, "R C"], drawn: Int[Array, " N"]) -> Array:
    """f32 [R, C + N] of each row's own items, and of the drawn ones."""
    near = jnp.einsum(
        "rd,rcd->rc", factors.contexts, factors.vectors[own], preferred_element_type=jnp.float32
    ) + factors.bias[own].astype(jnp.float32)
    part = Factors(factors.contexts, factors.vectors[drawn], factors.bias[drawn])
    return jnp.concatenate([near, part.dense()], 1)


def _log_weights(own: Int[Array, "R C"], negatives: _Negatives) -> Float[Array, "R CN"]:
    """The log of the number of items that each column of a row represents.

    An own item represents one; a negative, unless it is an own item too, as many as drawn.
    """
    repeated = jnp.any(jnp.tril(own[:, :, None] == own[:, None, :], -1), -1)
    once = jnp.where((own == PAD) | repeated, NEGATIVE, 0.0)
    number = len(negatives.items)
    hit = jnp.where(own == PAD, number, negatives.column[jnp.maximum(own, 0)])
    grid = jnp.arange(len(own))[:, None]
    rest = jnp.broadcast_to(negatives.stands_for[None], (len(own), number))
    return jnp.concatenate([once, rest.at[grid, hit].set(NEGATIVE, mode="drop")], 1)
