"""Ranks and top-k lists of a batch of users, a chunk of the catalogue at a time, on the devices that hold it.

What is ranked are scores [B, I], or the factors of such: then no more than ``tile_size()`` of them ever exist on a
device, however large the catalogue. Chunks are visited once for the k best items and the targets' scores, and once more
to count what scores at least as high; where one chunk is all, its scores are made once. Of what a device finds of its
users and items, k candidates a user and one count a target cross devices, never a score.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from kd_jax import metrics, sharding
from kd_jax.catalogue import Axes, Factors, fold, tile_size, within
from kd_jax.types import PAD, Array

SMALLEST_CHUNK = 128  # items
_SEEN = 256  # pairs that are masked at once
Pairs = tuple[Array, Array]  # (row, item), int32 [P] each, in any order; row B is padding


@functools.partial(jax.jit, static_argnames=("num_items", "k", "mesh"))
def top_k(scores: Factors | Array, seen: Pairs, *, num_items: int, k: int, mesh: Mesh | None) -> tuple[Array, Array]:
    """The k best candidates of each row, int32 [B, k], and their scores; PAD and -inf where a row has fewer.

    seen: pairs that are no candidates. num_items: how many of the columns are items. Ties go to the lower index, NaN
    ranks last.
    """

    def here(scores: Any, seen: Pairs, _: None, axes: Axes) -> Any:
        return _ranked(scores, seen, num_items, axes).first(k, None)[:2], None

    (items, values), _ = sharding.by_device(here, _columns(scores, mesh), seen, None, mesh)
    return items, values


@functools.partial(jax.jit, static_argnames=("num_items", "k", "mesh"))
def rank(
    scores: Factors | Array,
    seen: Pairs,
    targets: Pairs,
    cold: tuple[Array, Pairs] | None,
    *,
    num_items: int,
    k: int,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """'ranks' [P] of the targets and 'candidates' [B]; 'lists' [B, k] if k > 0. cold: (bool [I], pairs): 'cold_ranks'
    of these among those items alone, and 'cold_candidates'. See ``metrics.ranks_of`` for ties and NaN."""

    def here(scores: Any, given: Any, is_cold: Any, axes: Axes) -> Any:
        seen, targets, cold_targets = given
        ranked = _ranked(scores, seen, num_items, axes)
        lists, _, candidates, raw = ranked.first(k, targets)
        by_row = {"candidates": candidates} | ({"lists": lists} if k else {})
        whole: dict[str, tuple[Array, Array]] = {"ranks": (ranked.not_below(targets, raw), raw)}
        if is_cold is not None:
            among = dataclasses.replace(ranked, among=is_cold)
            _, _, by_row["cold_candidates"], raw = among.first(0, cold_targets)
            whole["cold_ranks"] = among.not_below(cold_targets, raw), raw
        return by_row, whole

    is_cold, cold_targets = (None, None) if cold is None else cold
    scores, users = _columns(scores, mesh), len(scores.contexts if isinstance(scores, Factors) else scores)
    if is_cold is not None and mesh is not None:
        is_cold = jnp.pad(is_cold, (0, -len(is_cold) % mesh.shape.get("model", 1)))
    by_row, whole = sharding.by_device(here, scores, (seen, targets, cold_targets), is_cold, mesh)
    rows = {"ranks": targets[0]} | ({} if cold_targets is None else {"cold_ranks": cold_targets[0]})
    ranks = {name: metrics.ranks_of(counts, raw, rows[name], users, num_items) for name, (counts, raw) in whole.items()}
    return by_row | ranks


def _columns(scores: Factors | Array, mesh: Mesh | None) -> Factors | Array:
    """As many as ``model`` divides; the last ones are no items."""
    missing = 0 if mesh is None else -_count(scores) % mesh.shape.get("model", 1)
    if not missing:
        return scores
    if isinstance(scores, Factors):
        vectors, bias = (jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))) for x in (scores.vectors, scores.bias))
        return scores._replace(vectors=vectors, bias=bias)
    return jnp.pad(scores, ((0, 0), (0, missing)))


def _count(scores: Factors | Array) -> int:
    return len(scores.bias) if isinstance(scores, Factors) else scores.shape[1]


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The rows and items that are on this device. among: bool [I], the only candidates; None: all."""

    scores: Factors | Array
    seen: Pairs
    num_items: int
    axes: Axes
    among: Array | None = None

    @property
    def rows(self) -> int:
        return len(self.scores.contexts if isinstance(self.scores, Factors) else self.scores)

    @property
    def width(self) -> int:
        """Items of a chunk; scores that are there already are all visited at once."""
        fits = max(SMALLEST_CHUNK, tile_size() // self.rows // SMALLEST_CHUNK * SMALLEST_CHUNK)
        return min(fits, _count(self.scores)) if isinstance(self.scores, Factors) else _count(self.scores)

    def place(self, pairs: Pairs, start: Array | int, size: int) -> Pairs:
        """Of pairs: rows that are here, else B; positions in the chunk of ``size`` items from ``start``, else size."""
        rows, items = pairs
        offset = self.axes.offset(_count(self.scores)) + start
        return within(rows, self.axes.first_row(self.rows), self.rows), within(items, offset, size)

    def chunk(self, start: Array | int, size: int) -> Array:
        """Scores f32 [B, size] of the items from ``start`` on, -inf where one is no candidate; a scorer's own -inf
        becomes the lowest finite score, as it is no mask."""
        return self.whole if size == _count(self.scores) else self._chunk(start, size)

    @functools.cached_property
    def whole(self) -> Array:
        return self._chunk(0, _count(self.scores))

    def _chunk(self, start: Array | int, size: int) -> Array:
        if isinstance(self.scores, Factors):
            contexts, *items = self.scores[:3]
            vectors, bias = (lax.dynamic_slice_in_dim(x, start, size) for x in items)
            values = Factors(contexts, vectors, bias).dense()
        else:
            values = self.scores
        values = jnp.maximum(values.astype(jnp.float32), metrics.LOWEST)
        offset = self.axes.offset(_count(self.scores)) + start
        is_item = offset + jnp.arange(size) < self.num_items
        if self.among is not None:
            is_item &= lax.dynamic_slice_in_dim(self.among, start, size)
        values = jnp.where(is_item[None], values, -jnp.inf)
        if size == _count(self.scores):
            return values.at[self.place(self.seen, start, size)].set(-jnp.inf, mode="drop")
        first, stop = (jnp.searchsorted(self.seen[1], jnp.asarray(offset + x)) for x in (0, size))

        def mask(i: Array, values: Array) -> Array:
            rows, items = (lax.dynamic_slice_in_dim(x, first + i * _SEEN, _SEEN) for x in self.seen)
            return values.at[self.place((rows, items), start, size)].set(-jnp.inf, mode="drop")

        return lax.fori_loop(0, (stop - first + _SEEN - 1) // _SEEN, mask, values)

    def first(self, k: int, targets: Pairs | None) -> tuple[Array, Array, Array, Array]:
        """The first visit: the k best items of each row and their scores, its candidates, and the targets' scores [P],
        of all devices."""
        count, pairs = _count(self.scores), 0 if targets is None else len(targets[0])
        start = (
            jnp.full((self.rows, k), PAD, jnp.int32), jnp.full((self.rows, k), -jnp.inf),
            jnp.zeros(self.rows, jnp.int32), jnp.zeros(pairs),
        )  # fmt: skip

        def visit(found: Any, begin: Array | int, size: int) -> Any:
            items, best, candidates, raw = found
            values = self.chunk(begin, size)
            if k:
                top, index = lax.top_k(jnp.where(jnp.isnan(values), metrics.LOWEST, values), min(k, size))
                index = self.axes.offset(count) + begin + index
                items, best = _merged(items, best, index, top)
            if targets is not None:
                raw = raw + values.at[self.place(targets, begin, size)].get(mode="fill", fill_value=0.0)
            return items, best, candidates + jnp.sum(values != -jnp.inf, axis=1, dtype=jnp.int32), raw

        items, best, candidates, raw = fold(visit, start, count, self.width)
        if k and self.axes.items is not None:
            items, best = (lax.all_gather(x, self.axes.items, axis=1, tiled=True) for x in (items, best))
            best, place = lax.top_k(best, k)  # of equal ones the first, which has the lowest index
            items = jnp.take_along_axis(items, place, axis=1)
        items = jnp.where(best == -jnp.inf, PAD, items)
        return items, best, self.axes.sum_items(candidates), self.axes.sum_rows(self.axes.sum_items(raw))

    def not_below(self, targets: Pairs, raw: Array) -> Array:
        """The second visit: how many candidates score at least as high as each target, whose scores are ``raw``."""

        def visit(counts: Array, begin: Array | int, size: int) -> Array:
            rows, _ = self.place(targets, begin, size)
            return counts + metrics.count_not_below(self.chunk(begin, size), rows, raw)

        counts = fold(visit, jnp.zeros(len(raw), jnp.int32), _count(self.scores), self.width)
        return self.axes.sum_rows(self.axes.sum_items(counts))


def _ranked(scores: Factors | Array, seen: Pairs, num_items: int, axes: Axes) -> _Ranked:
    """Where there are several chunks ``seen`` is put in the order of items, so that each reads only its own."""
    found = _Ranked(scores, seen, num_items, axes)
    if found.width == _count(scores):
        return found
    items, rows = lax.sort((seen[1], seen[0]), num_keys=1)
    rows = jnp.pad(rows, (0, _SEEN), constant_values=PAD)  # filled up, so that no slice is moved
    return dataclasses.replace(found, seen=(rows, jnp.pad(items, (0, _SEEN), constant_values=2**31 - 1)))


def _merged(items: Array, best: Array, more_items: Array, more: Array) -> Pairs:
    """The best of both, [B, k] as the first; of equal ones those of the first, whose indices are lower."""
    top, place = lax.top_k(jnp.concatenate([best, more], 1), best.shape[1])
    return jnp.take_along_axis(jnp.concatenate([items, more_items], 1), place, axis=1), top
