"""Tiles of a matrix of logits [rows, items]: their shape, loops over them, and sharded indices."""

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
# Logit of an item that a row excludes; above NEGATIVE, so a row of excluded items is uniform.
EXCLUDED = -1e9
MIN_ROWS = 128
# Logits in one tile: 4 MB in f32. A CPU's last-level cache holds the few tiles alive at once.
TILE = {"cpu": 2**20}
TILE_ELSEWHERE = 2**26  # 256 MB: large enough to fill an accelerator


def tile_size() -> int:
    """Number of logits in one tile, for the default backend."""
    return TILE.get(jax.default_backend(), TILE_ELSEWHERE)


@dataclasses.dataclass(frozen=True)
class Axes:
    """Mesh axes over which rows and items are split inside a ``shard_map``; None: not split."""

    rows: str | tuple[str, ...] | None = None
    items: str | None = None

    def sum_rows(self, tree: PyTree) -> PyTree:
        """The sum over the devices that hold different rows."""
        return tree if self.rows is None else lax.psum(tree, self.rows)

    def sum_items(self, tree: PyTree) -> PyTree:
        """The sum over the devices that hold different items."""
        return tree if self.items is None else lax.psum(tree, self.items)

    def max_items(self, tree: PyTree) -> PyTree:
        """The maximum over the devices that hold different items."""
        return tree if self.items is None else lax.pmax(tree, self.items)

    def offset(self, count: int) -> Array | int:
        """Index of the first item on this device, where every device has ``count`` items."""
        return 0 if self.items is None else lax.axis_index(self.items) * count

    def first_row(self, count: int) -> Array | int:
        """Index of the first row on this device, where every device has ``count`` rows."""
        return 0 if self.rows is None else lax.axis_index(self.rows) * count


def tile_shape(rows: int, items: int, tile: int) -> tuple[int, int]:
    """Rows and items of a tile of about ``tile`` logits.

    Some rows and all items, where ``MIN_ROWS`` rows make a tile of at most twice the size; else all
    rows and some items.
    """
    height = max(MIN_ROWS, tile // items)
    if min(rows, height) * items <= 2 * tile:
        return -(-rows // -(-rows // height)), items
    return rows, max(128, min(items, tile // rows // 128 * 128))


def pad_rows(x: Array, size: int) -> Array:
    """[N, …] -> [size, …], padded with zeros."""
    return jnp.pad(x, ((0, size - len(x)), *[(0, 0)] * (x.ndim - 1)))


def fold(step: Callable[[Any, Array | int, int], Any], carry: Any, count: int, width: int) -> Any:
    """The carry after ``step(carry, start, size)`` for each chunk of ``count`` items.

    Chunks have ``width`` items; the last one may have fewer.
    """
    full = count // width
    if full == 1:
        carry = step(carry, 0, width)
    elif full:
        carry = lax.fori_loop(0, full, lambda i, c: step(c, i * width, width), carry)
    return step(carry, full * width, count % width) if count % width else carry


def within(items: Array, offset: Array | int, count: int) -> Array:
    """Indices of ``items`` in the chunk [offset, offset + count).

    ``count``, which is out of bounds, for ``PAD`` and for items of other chunks.
    """
    index = items - offset
    return jnp.where((items != PAD) & (index >= 0) & (index < count), index, count)


def set_at(values: Array, items: Array, offset: Array | int, to: float) -> Array:
    """``values`` [..., C], of the items from ``offset`` on, set to ``to`` at ``items`` [..., L]."""
    index = within(items, offset, values.shape[-1])
    grid = jnp.ix_(*map(jnp.arange, items.shape[:-1])) if items.ndim > 1 else ()
    return values.at[(*(axis[..., None] for axis in grid), index)].set(to, mode="drop")
