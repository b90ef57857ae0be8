"""Ranks and top-k lists of a batch of users, a chunk of the catalogue at a time, on the devices
that hold it.

What is ranked are scores [B, I], or the factors of such: then no more than ``tile_size()`` of them
ever exist on a device (or those of 128 items), however large the catalogue. Chunks are visited once
for the k best items and the targets' scores, and once more to count what scores at least as high;
where one chunk is all, its scores are made once. Of what a device finds of its users and items, k
candidates a user, and a score and a count a target, cross devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import Axes, fold, tile_size, within
from kd_jax.core.types import PAD, Array
from kd_jax.devices import sharding
from kd_jax.evaluation import metrics

SMALLEST_CHUNK = 128  # items
_SEEN = 256  # pairs that are masked at once
RowItems = tuple[Array, Array]  # (row, item), int32 [P] each, in any order; row B is padding


@functools.partial(jax.jit, static_argnames=("num_items", "k", "mesh"))
def top_k(
    scores: Factors | Array, seen: RowItems, *, num_items: int, k: int, mesh: Mesh | None
) -> tuple[Array, Array]:
    """The k best candidates of each row, int32 [B, k], and their scores; PAD and -inf where a row
    has fewer.

    seen: pairs that are no candidates. num_items: how many of the columns are items. Ties go to the
    lower index, NaN ranks last.
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
    """'ranks' [P] of the targets and 'candidates' [B]; 'lists' [B, k] if k > 0. cold: (bool [I],
    pairs): 'cold_ranks' of these among those items alone, and 'cold_candidates'. See
    ``metrics.ranks_of`` for ties and NaN.
    """

    def here(scores: Any, given: Any, is_cold: Any, axes: Axes) -> Any:
        seen, *targets = given
        ranked = _ranked(scores, seen, num_items, axes, among=(None, is_cold)[: len(targets)])
        lists, _, candidates, raw = ranked.first(k, targets)
        return ({"lists": lists} if k else {}, candidates), (ranked.not_below(targets, raw), raw)

    is_cold, asked = (None, [targets]) if cold is None else (cold[0], [targets, cold[1]])
    scores, users = (
        _columns(scores, mesh),
        len(scores.contexts if isinstance(scores, Factors) else scores),
    )
    if is_cold is not None:
        is_cold = jnp.pad(is_cold, (0, sharding.spare(len(is_cold), mesh)))
    (found, candidates), (counts, raw) = sharding.by_device(
        here, scores, (seen, *asked), is_cold, mesh
    )
    for i, kind in enumerate(("", "cold_")[: len(asked)]):
        found[f"{kind}candidates"] = candidates[i]
        found[f"{kind}ranks"] = metrics.ranks_of(counts[i], raw[i], asked[i][0], users, num_items)
    return found


def _columns(scores: Factors | Array, mesh: Mesh | None) -> Factors | Array:
    """As many as ``model`` divides; the last ones are no items."""
    missing = sharding.spare(_count(scores), mesh)
    if not missing:
        return scores
    if isinstance(scores, Factors):
        vectors, bias = (
            jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
            for x in (scores.vectors, scores.bias)
        )
        return scores._replace(vectors=vectors, bias=bias)
    return jnp.pad(scores, ((0, 0), (0, missing)))


def _count(scores: Factors | Array) -> int:
    return len(scores.bias) if isinstance(scores, Factors) else scores.shape[1]


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The rows and items that are on this device. among: of each kind of targets the only
    candidates, bool [I]; None: all.
    """

    scores: Factors | Array
    seen: RowItems
    num_items: int
    axes: Axes
    among: tuple[Array | None, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.scores.contexts if isinstance(self.scores, Factors) else self.scores)

    @property
    def width(self) -> int:
        """Items of a chunk; scores that are there already are all visited at once."""
        fits = max(SMALLEST_CHUNK, tile_size() // self.rows // SMALLEST_CHUNK * SMALLEST_CHUNK)
        return (
            min(fits, _count(self.scores))
            if isinstance(self.scores, Factors)
            else _count(self.scores)
        )

    def place(self, pairs: RowItems, start: Array | int, size: int) -> RowItems:
        """Of pairs: rows that are here, else B; positions in the chunk of ``size`` items from
        ``start``, else size.
        """
        rows, items = pairs
        offset = self.axes.offset(_count(self.scores)) + start
        return within(rows, self.axes.first_row(self.rows), self.rows), within(items, offset, size)

    def chunk(self, start: Array | int, size: int) -> Array:
        """Scores f32 [B, size] of the items from ``start`` on, -inf where one is no candidate; a
        scorer's own -inf becomes the lowest finite score, as it is no mask.
        """
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
        values = jnp.where((offset + jnp.arange(size) < self.num_items)[None], values, -jnp.inf)
        if size == _count(self.scores):
            return values.at[self.place(self.seen, start, size)].set(-jnp.inf, mode="drop")
        first, stop = (jnp.searchsorted(self.seen[1], jnp.asarray(offset + x)) for x in (0, size))

        def mask(i: Array, values: Array) -> Array:
            rows, items = (lax.dynamic_slice_in_dim(x, first + i * _SEEN, _SEEN) for x in self.seen)
            return values.at[self.place((rows, items), start, size)].set(-jnp.inf, mode="drop")

        return lax.fori_loop(0, (stop - first + _SEEN - 1) // _SEEN, mask, values)

    def kinds(self, values: Array, start: Array | int) -> list[Array]:
        """The scores of a chunk, for each kind of targets with its candidates alone."""
        found = []
        for among in self.among:
            here = (
                None if among is None else lax.dynamic_slice_in_dim(among, start, values.shape[1])
            )
            found.append(values if here is None else jnp.where(here[None], values, -jnp.inf))
        return found

    def first(
        self, k: int, targets: Sequence[RowItems]
    ) -> tuple[Array, Array, list[Array], list[Array]]:
        """The first visit: the k best items of each row and their scores, and for each kind of
        targets the candidates of each row [B] and the targets' scores [P], of all devices.
        """
        count = _count(self.scores)
        start = (
            jnp.full((self.rows, k), PAD, jnp.int32),
            jnp.full((self.rows, k), -jnp.inf),
            [jnp.zeros(self.rows, jnp.int32) for _ in targets],
            [jnp.zeros(len(rows)) for rows, _ in targets],
        )

        def visit(found: Any, begin: Array | int, size: int) -> Any:
            items, best, candidates, raw = found
            values = self.chunk(begin, size)
            if k:
                top, index = lax.top_k(
                    jnp.where(jnp.isnan(values), metrics.LOWEST, values), min(k, size)
                )
                index = self.axes.offset(count) + begin + index
                items, best = _merged(items, best, index, top)
            for i, part in enumerate(self.kinds(values, begin)):
                candidates[i] += jnp.sum(part != -jnp.inf, axis=1, dtype=jnp.int32)
                raw[i] += part.at[self.place(targets[i], begin, size)].get(
                    mode="fill", fill_value=0.0
                )
            return items, best, candidates, raw

        items, best, candidates, raw = fold(visit, start, count, self.width)
        if k and self.axes.items is not None:
            items, best = (
                lax.all_gather(x, self.axes.items, axis=1, tiled=True) for x in (items, best)
            )
            best, place = lax.top_k(best, k)  # of equal ones the first, which has the lowest index
            items = jnp.take_along_axis(items, place, axis=1)
        items = jnp.where(best == -jnp.inf, PAD, items)
        return (
            items,
            best,
            self.axes.sum_items(candidates),
            self.axes.sum_rows(self.axes.sum_items(raw)),
        )

    def not_below(self, targets: Sequence[RowItems], raw: list[Array]) -> list[Array]:
        """The second visit: how many other candidates score at least as high as each target, whose
        scores are ``raw``.

        A target is left out by its place: that a score is made twice with the same bits is not
        relied on.
        """

        def visit(counts: list[Array], begin: Array | int, size: int) -> list[Array]:
            for i, part in enumerate(self.kinds(self.chunk(begin, size), begin)):
                rows, items = self.place(targets[i], begin, size)
                itself = part.at[rows, items].get(mode="fill", fill_value=-jnp.inf)
                others = metrics.count_not_below(part, rows, raw[i]) - metrics.not_below(
                    itself, raw[i]
                )
                counts[i] = counts[i] + others
            return counts

        counts = fold(
            visit, [jnp.zeros(len(x), jnp.int32) for x in raw], _count(self.scores), self.width
        )
        return self.axes.sum_rows(self.axes.sum_items(counts))


def _ranked(
    scores: Factors | Array,
    seen: RowItems,
    num_items: int,
    axes: Axes,
    among: tuple[Array | None, ...] = (),
) -> _Ranked:
    """Where there are several chunks ``seen`` is put in the order of items, so that each reads only
    its own.
    """
    found = _Ranked(scores, seen, num_items, axes, among)
    if found.width == _count(scores):
        return found
    items, rows = lax.sort((seen[1], seen[0]), num_keys=1)
    rows = jnp.pad(rows, (0, _SEEN), constant_values=PAD)  # filled up, so that no slice is moved
    return dataclasses.replace(
        found, seen=(rows, jnp.pad(items, (0, _SEEN), constant_values=2**31 - 1))
    )


def _merged(items: Array, best: Array, more_items: Array, more: Array) -> RowItems:
    """The best of both, [B, k] as the first; of equal ones those of the first, whose indices are
    lower.
    """
    top, place = lax.top_k(jnp.concatenate([best, more], 1), best.shape[1])
    return jnp.take_along_axis(jnp.concatenate([items, more_items], 1), place, axis=1), top
