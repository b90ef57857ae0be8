"""From a data set to batches: training examples as flat tables, shuffled and batched by Grain.

Grain iterates over *batches*, each looked up in the tables at once, so no Python runs per row.
Where the tables fit on the device the look-up happens there, in the train step, and the host sends
row numbers. The order is a pure function of (seed, position): the iterator's state is one number,
which the checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch


@dataclasses.dataclass(frozen=True)
class Examples:
    """``size`` training examples: tables, and how the batch of some rows is looked up in them
    (``kd_jax/types.py``).

    look_up: (numpy or jax.numpy, tables, rows) -> batch, so that the same lines run on the host
    and, where the tables fit, inside the train step. draw: picks the rows of a batch, (rng, batch
    size) -> rows; None: every example once per epoch. on_device: whether look_up can run there at
    all; not where a table has 64-bit positions, which JAX would cut to 32 bits. one_shape: whether
    batches of a size have the same shapes.
    """

    size: int
    tables: dict[str, np.ndarray]
    look_up: Callable[[Any, dict[str, Any], Any], Batch]
    draw: Callable[[np.random.Generator, int], np.ndarray] | None = None
    on_device: bool = True
    one_shape: bool = True

    def __post_init__(self) -> None:
        if any(table.dtype == np.int64 for table in self.tables.values()):
            object.__setattr__(self, "on_device", False)

    def gather(self, rows: np.ndarray) -> Batch:
        """The batch of these rows, on the host."""
        return self.look_up(np, self.tables, rows)

    @property
    def nbytes(self) -> int:
        """Of the tables."""
        return sum(table.nbytes for table in self.tables.values())


def window(xp: Any, values: Any, first: Any, stop: Any, length: int) -> tuple[Any, Any, Any]:
    """The ``length`` values before ``stop`` [B], PAD before ``first``; where they are, and which
    are there.
    """
    index = stop[:, None] + xp.arange(-length, 0)[None]
    valid = index >= first[:, None]
    index = xp.maximum(index, 0)
    return xp.where(valid, values[index], PAD).astype(xp.int32), index, valid


def last_items(
    indptr: np.ndarray, values: np.ndarray, length: int, drop: int = 0
) -> Int[np.ndarray, "U L"]:
    """Each row's newest ``length`` values before its last ``drop``, right-aligned, padded on the
    left with PAD.
    """
    stop = indptr[1:, None] - drop
    index = stop + np.arange(-length, 0)[None]
    valid = index >= indptr[:-1, None]
    return np.where(valid, values[np.maximum(index, 0)] if len(values) else PAD, PAD).astype(
        np.int32
    )


def compact(positions: np.ndarray) -> np.ndarray:
    """int32 where it fits: half the memory, and what a device takes."""
    return positions.astype(np.int32 if positions.max(initial=0) < 2**31 else np.int64)


def drawn(ends: np.ndarray, shape: int | tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """Items drawn in proportion to the shares whose running sum is ``ends`` [I]; of the batch's
    ``rows`` alone, so that a run that goes on draws the same.
    """
    points = np.random.default_rng(rows).random(shape) * ends[-1]
    return np.minimum(np.searchsorted(ends, points, side="right"), len(ends) - 1)


class BatchRows(grain.sources.RandomAccessDataSource):
    """Batch number -> the rows of that batch. Epoch e visits the examples in a permutation drawn
    from (seed, e); a batch may straddle two epochs, so every batch is full.
    """

    def __init__(self, examples: Examples, batch_size: int, num_batches: int, seed: int):
        self.examples, self.batch_size, self.num_batches, self.seed = (
            examples,
            batch_size,
            num_batches,
            seed,
        )
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_batches

    def _permutation(self, epoch: int) -> np.ndarray:
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            cached = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(self.examples.size),
            )
            self._epoch = cached
        return cached[1]

    def __getitem__(self, index) -> np.ndarray:
        if self.examples.draw is not None:
            rng = np.random.default_rng((self.seed, int(index)))
            return self.examples.draw(rng, self.batch_size).astype(np.int32)
        position = int(index) * self.batch_size + np.arange(self.batch_size)
        epochs, within = np.divmod(position, self.examples.size)
        rows = np.empty(self.batch_size, np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation(int(epoch))[within[here]]
        return rows


def batches(
    examples: Examples,
    *,
    batch_size: int,
    num_batches: int,
    seed: int,
    chunk: int = 1,
    gather: bool = True,
    part: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """A Grain iterator over ``num_batches`` shuffled batches, ``chunk`` of them at a time, stacked:
    every array has the leading axes [chunk, batch size]. Prefetched by threads. Its state is
    checkpointable.

    gather: the batches; False: their rows, int32, for a look-up on the device. part: positions
    within a batch that this process gathers; None: all. Raises InputError if there is no example.
    """
    if examples.size == 0:
        raise InputError(
            "no training example is left: no user has enough train interactions; lower"
            " data.min_rating or change data.split"
        )
    found = grain.MapDataset.source(BatchRows(examples, batch_size, num_batches, seed))
    if part is not None:
        found = found.map(lambda rows: rows[part])
    if gather:
        found = found.map(examples.gather)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(found.batch(chunk).to_iter_dataset(options))
