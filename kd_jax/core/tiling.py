"""Tiles: how a catalogue is cut, visited and numbered where a device holds only a part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kd_jax.core.types import PAD, PyTree

NEGATIVE = -1e30  # a finite stand-in for -inf: keeps masked items free of NaN
EXCLUDED = (
    -1e9
)  # logit of an item that a row excludes; above NEGATIVE, so a row of excluded items is uniform
MIN_ROWS = 128
TILE = {
    "cpu": 2**20
    # logits in one tile: 4 MB in f32, of which a CPU's last-level cache holds the few that live at once
}
TILE_ELSEWHERE = 2**26  # 256 MB: large enough to fill an accelerator


def tile_size() -> int:
    """Logits that are made at once."""
    return TILE.get(jax.default_backend(), TILE_ELSEWHERE)


@dataclasses.dataclass(frozen=True)
class Axes:
    """Names of the mesh axes that rows and items are split over where this runs inside a
    ``shard_map``; else None.
    """

    rows: str | tuple[str, ...] | None = None
    items: str | None = None

    def sum_rows(self, tree: PyTree) -> PyTree:
        return tree if self.rows is None else lax.psum(tree, self.rows)

    def sum_items(self, tree: PyTree) -> PyTree:
        return tree if self.items is None else lax.psum(tree, self.items)

    def max_items(self, tree: PyTree) -> PyTree:
        return tree if self.items is None else lax.pmax(tree, self.items)

    def offset(self, count: int) -> Array | int:
        """The first item that is here, where every device has ``count``."""
        return 0 if self.items is None else lax.axis_index(self.items) * count

    def first_row(self, count: int) -> Array | int:
        return 0 if self.rows is None else lax.axis_index(self.rows) * count


def tile_shape(rows: int, items: int, tile: int) -> tuple[int, int]:
    """Rows and items of a tile of about ``tile`` logits: some rows against all items where
    ``MIN_ROWS`` of them make a tile no more than twice as large, else all rows against some
    items.
    """
    height = max(MIN_ROWS, tile // items)
    if min(rows, height) * items <= 2 * tile:
        return -(-rows // -(-rows // height)), items
    return rows, max(128, min(items, tile // rows // 128 * 128))


def pad_rows(x: Array, size: int) -> Array:
    return jnp.pad(x, ((0, size - len(x)), *[(0, 0)] * (x.ndim - 1)))


def fold(step: Callable[[Any, Array | int, int], Any], carry: Any, count: int, width: int) -> Any:
    """``step(carry, start, size)`` over all chunks of ``width`` of ``count`` items, and the
    rest.
    """
    full = count // width
    if full == 1:
        carry = step(carry, 0, width)
    elif full:
        carry = lax.fori_loop(0, full, lambda i, c: step(c, i * width, width), carry)
    return step(carry, full * width, count % width) if count % width else carry


def within(items: Array, offset: Array | int, count: int) -> Array:
    """Positions in a chunk of ``count`` items from ``offset`` on; ``count`` (out of bounds) where
    it is not there.
    """
    position = items - offset
    return jnp.where((items != PAD) & (position >= 0) & (position < count), position, count)


def set_at(values: Array, items: Array, offset: Array | int, to: float) -> Array:
    index = within(items, offset, values.shape[-1])
    grid = jnp.ix_(*map(jnp.arange, items.shape[:-1])) if items.ndim > 1 else ()
    return values.at[(*(axis[..., None] for axis in grid), index)].set(to, mode="drop")
