"""Ranks and top-k lists for a batch of users, computed by chunks of the catalogue on its devices.

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
from typing import Any

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
# The first item of a chunk on its device, and the first that no chunk before had.
Chunk = tuple[Array | int, Array | int]


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
def rank(
    scores: Factors | Array,
    seen: RowItems,
    targets: RowItems,
    cold: tuple[Array, RowItems] | None,
    *,
    num_items: int,
    k: int,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """The ranks of ``targets``, with ties and NaN as in ``metrics.ranks_of``.

    Returns 'ranks' [P] of the targets, 'candidates' [B], the number of candidates of each row, and
    'lists' [B, k] if k > 0. cold: None, or (bool [I], pairs); then 'cold_ranks' are the ranks of
    these pairs among these items only, and 'cold_candidates' the numbers of candidates.
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
    users = len(scores.contexts if isinstance(scores, Factors) else scores)
    (found, candidates), (counts, raw) = sharding.by_device(
        here, _columns(scores, mesh), (seen, *pairs.values()), is_cold, mesh
    )
    for i, (kind, (rows, _)) in enumerate(pairs.items()):
        found[f"{kind}candidates"] = candidates[i]
        found[f"{kind}ranks"] = metrics.ranks_of(counts[i], raw[i], rows, users, num_items)
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
        return -(-count // -(-count // fits))

    def visit(self, step: Callable[[Any, Chunk], Any], carry: Any) -> Any:
        """The carry after ``step(carry, chunk)`` for every chunk of ``width`` items.

        The last chunk ends with the last item and may overlap the one before. So all chunks have
        one shape, and the program has the step once.
        """
        count, width = _count(self.scores), self.width
        chunks = -(-count // width)
        if chunks == 1:
            return step(carry, (0, 0))

        def one(i: Array, carry: Any) -> Any:
            return step(carry, (jnp.minimum(i * width, count - width), i * width))

        return lax.fori_loop(0, chunks, one, carry)

    def place(self, pairs: RowItems, chunk: Chunk) -> RowItems:
        """The pairs as indices into a chunk.

        A row that is not on this device becomes B, and an item that is not in the chunk, or has
        been in the one before, ``width``.
        """
        (rows, items), (start, fresh) = pairs, chunk
        offset = self.axes.offset(_count(self.scores)) + start
        index = within(items, offset, self.width)
        index = jnp.where(index < fresh - start, self.width, index)
        return within(rows, self.axes.first_row(self.rows), self.rows), index

    def chunk(self, chunk: Chunk) -> Array:
        """Scores f32 [B, width] of a chunk, -inf where an item is no candidate.

        A score of -inf that is no mask becomes the lowest finite score. An item that has been in
        the chunk before is no candidate.
        """
        return self.whole if self.width == _count(self.scores) else self._chunk(chunk)

    @functools.cached_property
    def whole(self) -> Array:
        """The chunk of all items on this device."""
        return self._chunk((0, 0))

    def _chunk(self, chunk: Chunk) -> Array:
        (start, fresh), size = chunk, self.width
        if isinstance(self.scores, Factors):
            contexts, *items = self.scores[:3]
            vectors, bias = (lax.dynamic_slice_in_dim(x, start, size) for x in items)
            values = Factors(contexts, vectors, bias).dense()
        else:
            values = self.scores
        values = jnp.maximum(values.astype(jnp.float32), metrics.LOWEST)
        offset = self.axes.offset(_count(self.scores)) + start
        item = jnp.arange(size)
        candidate = (offset + item < self.num_items) & (item >= fresh - start)
        values = jnp.where(candidate[None], values, -jnp.inf)
        if size == _count(self.scores):
            return values.at[self.place(self.seen, chunk)].set(-jnp.inf, mode="drop")
        first, stop = (jnp.searchsorted(self.seen[1], jnp.asarray(offset + x)) for x in (0, size))

        def mask(i: Array, values: Array) -> Array:
            rows, items = (lax.dynamic_slice_in_dim(x, first + i * _SEEN, _SEEN) for x in self.seen)
            return values.at[self.place((rows, items), chunk)].set(-jnp.inf, mode="drop")

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

        def visit(found: Any, chunk: Chunk) -> Any:
            items, best, candidates, raw = found
            values = self.chunk(chunk)
            if k:
                finite = jnp.where(jnp.isnan(values), metrics.LOWEST, values)
                top, index = lax.top_k(finite, min(k, self.width))
                index = self.axes.offset(count) + chunk[0] + index
                items, best = _merged(items, best, index, top)
            for i, part in enumerate(self.kinds(values, chunk[0])):
                candidates[i] += jnp.sum(part != -jnp.inf, axis=1, dtype=jnp.int32)
                place = self.place(targets[i], chunk)
                raw[i] += part.at[place].get(mode="fill", fill_value=0.0)
            return items, best, candidates, raw

        items, best, candidates, raw = self.visit(visit, start)
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

        def visit(counts: list[Array], chunk: Chunk) -> list[Array]:
            for i, part in enumerate(self.kinds(self.chunk(chunk), chunk[0])):
                rows, items = self.place(targets[i], chunk)
                itself = part.at[rows, items].get(mode="fill", fill_value=-jnp.inf)
                all_counted = metrics.count_not_below(part, rows, raw[i])
                counts[i] = counts[i] + all_counted - metrics.not_below(itself, raw[i])
            return counts

        start = [jnp.zeros(len(x), jnp.int32) for x in raw]
        counts = self.visit(visit, start)
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
