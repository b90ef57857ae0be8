"""Pairs of users and items in batches of fixed shapes, and a loop over batches of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax.devices.sharding import fetch

CSR = tuple[np.ndarray, np.ndarray]  # (indptr [U + 1], items)
NO_ITEM = np.iinfo(np.int32).max  # the item of a padding pair
NO_PAIRS = (np.zeros(0, np.int32), np.zeros(0, np.int32))
SMALLEST = 512  # pairs of a batch, padding included
# Batches in flight: the device is never idle, and memory is limited to a few blocks of scores.
LOOK_AHEAD = 2


def gather(csr: CSR, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of ``users`` and their items, as (index into ``users``, item), both int32 [P]."""
    indptr, items = csr
    length = indptr[users + 1] - indptr[users]
    rows = np.repeat(np.arange(len(users), dtype=np.int32), length)
    shift = np.repeat(indptr[users] - (np.cumsum(length) - length), length)
    return rows, items[np.arange(len(rows)) + shift].astype(np.int32)


def distinct(rows: np.ndarray, items: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs, in their order."""
    first = np.sort(np.unique(rows.astype(np.int64) * num_items + items, return_index=True)[1])
    return rows[first], items[first]


def pad(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """[N] -> [size], padded at the end with ``fill``."""
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])


class RowItemBatches:
    """Pairs (row, item), sorted by row, in batches of ``batch_size`` rows.

    All batches are padded to the same number of pairs, with row = ``batch_size``.
    """

    def __init__(self, pairs: tuple[np.ndarray, np.ndarray], num_rows: int, batch_size: int):
        self.rows, self.items = pairs
        self.batch_size = batch_size
        self.edges = np.searchsorted(self.rows, np.arange(0, num_rows + batch_size, batch_size))
        # Powers of two, so that most splits and targets share a compiled program.
        self.size = max(SMALLEST, 1 << (int(np.diff(self.edges).max(initial=1)) - 1).bit_length())

    def batch(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of batch ``b``, with rows relative to the batch."""
        part = slice(self.edges[b], self.edges[b + 1])
        rows = self.rows[part] - np.int32(b * self.batch_size)
        return pad(rows, self.size, self.batch_size), pad(self.items[part], self.size, NO_ITEM)

    def collect(self, batches: list[np.ndarray]) -> np.ndarray:
        """The values of all pairs, without padding, from those of each batch."""
        return np.concatenate([v[:n] for v, n in zip(batches, np.diff(self.edges), strict=True)])


def stream(step: Callable[[int, np.ndarray], Any], users: np.ndarray, batch_size: int) -> list[Any]:
    """The results of ``step(b, users [B])`` for all batches, on the host.

    The last batch is padded with its last user. Results are fetched once, at the end.
    """
    results: list[Any] = []
    for b, start in enumerate(range(0, len(users), batch_size)):
        block = users[start : start + batch_size].astype(np.int32)
        results.append(step(b, pad(block, batch_size, block[-1])))
        if b >= LOOK_AHEAD:
            jax.block_until_ready(results[b - LOOK_AHEAD])
    return fetch(results)
