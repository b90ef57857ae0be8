"""Counts for ranks and top-k lists of a batch of users, by chunks of the catalogue on its devices.

The input is scores [B, I] or their factors; of the latter, at most ``tile_size()`` scores (or those
of 128 items) exist on a device at a time, however large the catalogue. Chunks are visited once for
the k best items and the scores of the targets, and once more to count the items that score at least
as high; the scores of a single chunk are computed once. Devices exchange k candidates per user, and
a score and a count per target.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import Axes, tile_size, within
from kd_jax.core.types import PAD, Array
from kd_jax.devices import sharding
from kd_jax.evaluation import metrics

SMALLEST_CHUNK = 128  # items
_SEEN = 256  # pairs that are masked at once
# (row, item), int32 [P] each, in any order; row B is padding.
RowItems = tuple[Array, Array]


@functools.partial(jax.jit, static_argnames=("num_items", "k", "mesh"))
def top_k(
    scores: Factors | Array, seen: RowItems, *, num_items: int, k: int, mesh: Mesh | None
) -> tuple[Array, Array]:
    """The k best candidates of each row, int32 [B, k], and their scores.

    PAD and -inf where a row has fewer candidates. Ties go to the lower index, NaN ranks last. seen:
    pairs that are no candidates. num_items: the number of columns that are items. mesh: that of the
    scores, or None.
    """

    def here(scores: Any, seen: RowItems, _: None, axes: Axes) -> Any:
        return _ranked(scores, seen, num_items, axes).first(k, [])[:2], None

    (items, values), _ = sharding.by_device(here, _columns(scores, mesh), seen, None, mesh)
    return items, values


@functools.partial(jax.jit, static_argnames=("num_items", "k", "mesh"))
def target_counts(
    scores: Factors | Array,
    seen: RowItems,
    targets: RowItems,
    cold: tuple[Array, RowItems] | None,
    *,
    num_items: int,
    k: int,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """What ``metrics.ranks_of`` needs for the ranks of ``targets``.

    Returns 'counts' [P], the number of other candidates that are ``metrics.not_below`` each target,
    'scores' [P], those of the targets, 'candidates' [B], the number of candidates of each row, and
    'lists' [B, k] if k > 0. cold: None, or (bool [I], pairs); then 'cold_counts', 'cold_scores' and
    'cold_candidates' are those of these pairs among these items only.
    """

    def here(scores: Any, given: Any, is_cold: Any, axes: Axes) -> Any:
        seen, *targets = given
        among = (None,) if is_cold is None else (None, is_cold)
        ranked = _ranked(scores, seen, num_items, axes, among)
        lists, _, candidates, raw = ranked.first(k, targets)
        return ({"lists": lists} if k else {}, candidates), (ranked.not_below(targets, raw), raw)

    pairs = {"": targets}
    is_cold = None
    if cold is not None:
        pairs["cold_"] = cold[1]
        is_cold = jnp.pad(cold[0], (0, sharding.spare(len(cold[0]), mesh)))
    (found, candidates), (counts, raw) = sharding.by_device(
        here, _columns(scores, mesh), (seen, *pairs.values()), is_cold, mesh
    )
    for i, kind in enumerate(pairs):
        found[f"{kind}candidates"] = candidates[i]
        found[f"{kind}counts"], found[f"{kind}scores"] = counts[i], raw[i]
    return found


def _columns(scores: Factors | Array, mesh: Mesh | None) -> Factors | Array:
    """The scores, padded to a multiple of ``model`` with columns that are no items."""
    missing = sharding.spare(_count(scores), mesh)
    if not missing:
        return scores
    if isinstance(scores, Factors):
        vectors = jnp.pad(scores.vectors, ((0, missing), (0, 0)))
        bias = jnp.pad(scores.bias, (0, missing))
        return scores._replace(vectors=vectors, bias=bias)
    return jnp.pad(scores, ((0, 0), (0, missing)))


def _count(scores: Factors | Array) -> int:
    return len(scores.bias) if isinstance(scores, Factors) else scores.shape[1]


class _Chunk(NamedTuple):
    """``width`` items from ``start`` on, of which the first ``passed`` were visited before."""

    start: Array | int
    passed: Array | int
    width: int


def _rounded(items: int) -> int:
    return -(-items // SMALLEST_CHUNK) * SMALLEST_CHUNK


def _fold(step: Callable[[Any, _Chunk], Any], carry: Any, count: int, width: int) -> Any:
    """The carry after ``step`` for each chunk of ``count`` items.

    All chunks have one width, so that the step is compiled once: the last one ends with the last
    item, and passes over those of the chunk before it.
    """
    if count == width:
        return step(carry, _Chunk(0, 0, width))

    def chunk(i: Array, carry: Any) -> Any:
        start = jnp.minimum(i * width, count - width)
        return step(carry, _Chunk(start, i * width - start, width))

    return lax.fori_loop(0, -(-count // width), chunk, carry)


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The scores of the rows and items on this device.

    seen: pairs that are no candidates. num_items: of all devices. among: for each kind of targets,
    the candidates, bool [I]; None: all items.
    """

    scores: Factors | Array
    seen: RowItems
    num_items: int
    axes: Axes
    among: tuple[Array | None, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows on this device."""
        return len(self.scores.contexts if isinstance(self.scores, Factors) else self.scores)

    @property
    def width(self) -> int:
        """The number of items of a chunk: all, for scores that are not factors."""
        count = _count(self.scores)
        if not isinstance(self.scores, Factors):
            return count
        fits = max(SMALLEST_CHUNK, tile_size() // self.rows // SMALLEST_CHUNK * SMALLEST_CHUNK)
        return min(count, _rounded(-(-count // -(-count // fits))))

    def place(self, pairs: RowItems, at: _Chunk) -> RowItems:
        """The pairs as indices into a chunk.

        A row that is not on this device becomes B, and an item that the chunk does not visit its
        width.
        """
        rows, items = pairs
        index = within(items, self.axes.offset(_count(self.scores)) + at.start, at.width)
        visited = jnp.where(index < at.passed, at.width, index)
        return within(rows, self.axes.first_row(self.rows), self.rows), visited

    def chunk(self, at: _Chunk) -> Array:
        """Scores f32 [B, width] of a chunk, -inf where an item is no candidate or is passed over.

        A score of -inf that is no mask becomes the lowest finite score.
        """
        return self.whole if at.width == _count(self.scores) else self._chunk(at)

    @functools.cached_property
    def whole(self) -> Array:
        """The chunk of all items on this device."""
        return self._chunk(_Chunk(0, 0, _count(self.scores)))

    def _chunk(self, at: _Chunk) -> Array:
        start, size = at.start, at.width
        if isinstance(self.scores, Factors):
            contexts, *items = self.scores[:3]
            vectors, bias = (lax.dynamic_slice_in_dim(x, start, size) for x in items)
            values = Factors(contexts, vectors, bias).dense()
        else:
            values = self.scores
        values = jnp.maximum(values.astype(jnp.float32), metrics.LOWEST)
        offset = self.axes.offset(_count(self.scores)) + start
        place = jnp.arange(size)
        counted = (offset + place < self.num_items) & (place >= at.passed)
        values = jnp.where(counted[None], values, -jnp.inf)
        if size == _count(self.scores):
            return values.at[self.place(self.seen, at)].set(-jnp.inf, mode="drop")
        first, stop = (jnp.searchsorted(self.seen[1], jnp.asarray(offset + x)) for x in (0, size))

        def mask(i: Array, values: Array) -> Array:
            rows, items = (lax.dynamic_slice_in_dim(x, first + i * _SEEN, _SEEN) for x in self.seen)
            return values.at[self.place((rows, items), at)].set(-jnp.inf, mode="drop")

        return lax.fori_loop(0, (stop - first + _SEEN - 1) // _SEEN, mask, values)

    def kinds(self, values: Array, start: Array | int) -> list[Array]:
        """The scores of a chunk for each kind of targets, -inf outside its candidates."""
        found = []
        for among in self.among:
            if among is None:
                found.append(values)
                continue
            here = lax.dynamic_slice_in_dim(among, start, values.shape[1])
            found.append(jnp.where(here[None], values, -jnp.inf))
        return found

    def first(
        self, k: int, targets: Sequence[RowItems]
    ) -> tuple[Array, Array, list[Array], list[Array]]:
        """The first visit of all chunks.

        Returns the k best items of each row and their scores and, for each kind of targets, the
        number of candidates of each row [B] and the targets' scores [P], over all devices.
        """
        count = _count(self.scores)
        start = (
            jnp.full((self.rows, k), PAD, jnp.int32),
            jnp.full((self.rows, k), -jnp.inf),
            [jnp.zeros(self.rows, jnp.int32) for _ in targets],
            [jnp.zeros(len(rows)) for rows, _ in targets],
        )

        def visit(found: Any, at: _Chunk) -> Any:
            items, best, candidates, raw = found
            values = self.chunk(at)
            if k:
                finite = jnp.where(jnp.isnan(values), metrics.LOWEST, values)
                top, index = lax.top_k(finite, min(k, at.width))
                index = self.axes.offset(count) + at.start + index
                items, best = _merged(items, best, index, top)
            for i, part in enumerate(self.kinds(values, at.start)):
                candidates[i] += jnp.sum(part != -jnp.inf, axis=1, dtype=jnp.int32)
                place = self.place(targets[i], at)
                raw[i] += part.at[place].get(mode="fill", fill_value=0.0)
            return items, best, candidates, raw

        items, best, candidates, raw = _fold(visit, start, count, self.width)
        if k and self.axes.items is not None:
            items = lax.all_gather(items, self.axes.items, axis=1, tiled=True)
            best = lax.all_gather(best, self.axes.items, axis=1, tiled=True)
            best, place = lax.top_k(best, k)  # of ties the first, which has the lowest index
            items = jnp.take_along_axis(items, place, axis=1)
        items = jnp.where(best == -jnp.inf, PAD, items)
        raw = self.axes.sum_rows(self.axes.sum_items(raw))
        return items, best, self.axes.sum_items(candidates), raw

    def not_below(self, targets: Sequence[RowItems], raw: list[Array]) -> list[Array]:
        """The second visit of all chunks: the number of other candidates ``not_below`` each target.

        raw: the targets' scores. The target itself is left out by its index, so that it does not
        matter whether both visits compute its score with the same bits.
        """

        def visit(counts: list[Array], at: _Chunk) -> list[Array]:
            for i, part in enumerate(self.kinds(self.chunk(at), at.start)):
                rows, items = self.place(targets[i], at)
                itself = part.at[rows, items].get(mode="fill", fill_value=-jnp.inf)
                all_counted = metrics.count_not_below(part, rows, raw[i])
                counts[i] = counts[i] + all_counted - metrics.not_below(itself, raw[i])
            return counts

        start = [jnp.zeros(len(x), jnp.int32) for x in raw]
        counts = _fold(visit, start, _count(self.scores), self.width)
        return self.axes.sum_rows(self.axes.sum_items(counts))


def _ranked(
    scores: Factors | Array,
    seen: RowItems,
    num_items: int,
    axes: Axes,
    among: tuple[Array | None, ...] = (),
) -> _Ranked:
    """A ``_Ranked``; with several chunks ``seen`` is sorted by item, so each reads its part."""
    found = _Ranked(scores, seen, num_items, axes, among)
    if found.width == _count(scores):
        return found
    items, rows = lax.sort((seen[1], seen[0]), num_keys=1)
    # Padded, so that dynamic_slice never moves a slice to fit.
    rows = jnp.pad(rows, (0, _SEEN), constant_values=PAD)
    items = jnp.pad(items, (0, _SEEN), constant_values=2**31 - 1)
    return dataclasses.replace(found, seen=(rows, items))


def _merged(items: Array, best: Array, more_items: Array, more: Array) -> RowItems:
    """The k best of two lists of items [B, k] and scores; ties go to the first list."""
    top, place = lax.top_k(jnp.concatenate([best, more], 1), best.shape[1])
    return jnp.take_along_axis(jnp.concatenate([items, more_items], 1), place, axis=1), top
