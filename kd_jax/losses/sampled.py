"""Losses over a sample of the catalogue: the same ce, soft_ce and kl where even one pass over all
items is too much.

Negatives are drawn once per step and shared by its rows, with replacement, from a proposal q. A
row's softmax then has two kinds of items. Its *own*, which are always in and count once: its
targets, and the items that its teacher scores highest. And the negatives, each standing for 1 / (n
q) items, so that every sum over the catalogue (a softmax's normaliser, a teacher's expectation) is
estimated without bias; a negative that is one of the row's own is masked. The weight enters as
-log(n q) beside the logit, after the temperature. What stays biased is a logarithm or a ratio of
those sums, by O(1/n); ``benchmarks/sampled_bias.py`` measures it. Only vectors of the items in play
are read, so the tables' gradients are those of few rows (``kd_jax/sparse.py``).

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
from kd_jax.losses.streamed import Loss, Rows

TOP_CHUNK = 2**14  # items that are ranked at once


class Draws(NamedTuple):
    """Negatives of a step. items: int32 [N], repeats allowed; log_expected: f32 [N], the log of how
    often each item was expected to be drawn, N q.
    """

    items: Int[Array, " N"]
    log_expected: Float[Array, " N"]


def proposal(counts: np.ndarray, power: float) -> np.ndarray:
    """q ∝ (count + 1) ** power as uint32 [I]: where each item's share of the 2**32 random words
    begins.

    Every item has a share, and q is read off these whole numbers, so the correction knows it
    exactly (cumulated f32 would not tell ten million items apart). power=0 is uniform. Raises
    InputError for a power that is not from 0 up.
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


def top_items(factors: Factors, k: int) -> Int[Array, "*B k"]:
    """The ``k`` items of highest score per row, exact, in chunks of the catalogue; at the cost of
    one product with it.

    PAD where there are fewer than k items.
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


def mean_losses(
    losses: tuple[Loss, ...],
    coefficients: Float[Array, " K"],
    student: Factors,
    rows: Rows,
    draws: Draws,
    teacher: Factors | None = None,
    warm: Bool[Array, " I"] | None = None,
    tile: int = 0,
) -> tuple[Float[Array, ""], Float[Array, " K"]]:
    """``catalogue.mean_losses`` estimated from ``draws``: (the sum weighted by ``coefficients``,
    the mean losses [K]).

    Items are indices into the factors, which may hold the whole catalogue or only those that are in
    play. A row's own items are its targets and ``teacher.top``. With every item drawn once and
    expected once this is the full loss. tile: logits that are made at once, 0 for the default; more
    rows than fit are visited in turn, and again for the gradient.
    """
    number = len(draws.items)
    order = jnp.arange(number)
    # An item that was drawn several times keeps one column, with the weight of all.
    column = jnp.full(len(student.bias), number).at[draws.items].min(order)
    times = jnp.zeros(len(student.bias)).at[draws.items].add(1.0)[draws.items]
    stands_for = jnp.where(
        column[draws.items] == order, jnp.log(times) - draws.log_expected, NEGATIVE
    )
    own = None if teacher is None else teacher.top
    contexts = (student.contexts, None if teacher is None else teacher.contexts)

    def visit(part: tuple[tuple[Array, Array | None], Rows, Array | None]) -> Array:
        (from_student, from_teacher), here, top = part
        return _means(
            losses,
            student._replace(contexts=from_student),
            (
                None
                if teacher is None or from_teacher is None
                else teacher._replace(contexts=from_teacher)
            ),
            here,
            here.targets if top is None else jnp.concatenate([here.targets, top], 1),
            (draws.items, stands_for, column),
            warm,
        )

    parts = (contexts, rows, own)
    size, mine = len(rows.weights), rows.targets.shape[1] + (0 if own is None else own.shape[1])
    cost = number + mine * (1 + student.vectors.shape[1])  # floats per row
    tiles = -(-size * cost // (4 * (tile or tile_size())))
    if tiles <= 1:
        means = visit(parts)
    else:
        height = -(-size // tiles)

        def cut(x: Array) -> Array:
            """[R, …] -> [tiles, height, …]: every tile takes rows from all devices of the ``data``
            axis.
            """
            x = jnp.pad(x, ((0, height * tiles - size), *[(0, 0)] * (x.ndim - 1)))
            return jnp.moveaxis(x.reshape(height, tiles, *x.shape[1:]), 1, 0)

        means = lax.map(jax.checkpoint(visit), jax.tree.map(cut, parts)).sum(0)
    return jnp.sum(coefficients * means), means


def _means(
    losses: tuple[Loss, ...],
    student: Factors,
    teacher: Factors | None,
    rows: Rows,
    own: Int[Array, "R C"],
    negatives: tuple[Array, Array, Array],
    warm: Array | None,
) -> Array:
    """Weighted sum over these rows of each loss, [K]. negatives: items [N], log weights [N], each
    item's column [I].
    """
    items, stands_for, column = negatives
    targets = rows.targets.shape[1]
    index = jnp.maximum(own, 0)
    repeated = jnp.any(jnp.tril(own[:, :, None] == own[:, None, :], -1), -1)
    once = jnp.where((own == PAD) | repeated, NEGATIVE, 0.0)
    hit = jnp.where(own == PAD, len(items), column[index])
    grid = jnp.arange(len(own))[:, None]
    rest = (
        jnp.broadcast_to(stands_for[None], (len(own), len(items)))
        .at[grid, hit]
        .set(NEGATIVE, mode="drop")
    )
    every = jnp.concatenate([once, rest], 1)
    counted = jnp.where(rows.targets == PAD, 0.0, rows.target_weights)
    some_warm = every
    if warm is not None:
        some_warm = jnp.where(jnp.concatenate([warm[index], jnp.broadcast_to(warm[items][None], rest.shape)], 1),
                              every, NEGATIVE)  # fmt: skip

    def logits(factors: Factors) -> Array:
        """f32 [R, C + N]."""
        near = jnp.einsum(
            "rd,rcd->rc",
            factors.contexts,
            factors.vectors[index],
            preferred_element_type=jnp.float32,
        ) + factors.bias[index].astype(jnp.float32)
        part = Factors(factors.contexts, factors.vectors[items], factors.bias[items])
        return jnp.concatenate([near, part.dense()], 1)

    scores, values = logits(student), []
    soft = None if teacher is None else lax.stop_gradient(logits(teacher))
    for loss in losses:
        weights = some_warm if loss.warm else every
        some = jnp.max(weights, 1) > NEGATIVE / 2  # a softmax without any item has loss 0
        scaled = scores / loss.temperature if loss.name != "ce" else scores
        normaliser = jax.nn.logsumexp(scaled + weights, axis=1)
        if loss.name == "ce":
            share = (
                jnp.where(warm[index[:, :targets]], counted, 0.0)
                if loss.warm and warm is not None
                else counted
            )
            per_row = jnp.sum(share * (normaliser[:, None] - scaled[:, :targets]), 1)
        else:
            assert soft is not None
            target = soft / loss.temperature
            total = jax.nn.logsumexp(target + weights, axis=1)[:, None]
            probability = jnp.exp(target + weights - total)
            gap = normaliser[:, None] - scaled + (target - total if loss.name == "kl" else 0.0)
            per_row = loss.temperature**2 * jnp.sum(probability * gap, 1)
        values.append(jnp.sum(jnp.where(some, per_row, 0.0) * rows.weights))
    return jnp.stack(values)
