"""Training examples as flat tables, shuffled and batched by Grain.

Grain iterates over *batches*, each looked up in the tables at once, so no Python runs per row.
Where the tables fit on the device, the look-up happens in the train step, and the host sends row
numbers only. The order is a pure function of (seed, batch number): the state of the iterator is one
number, which the checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training examples: tables, and the function that looks up a batch in them.

    size: the number of examples. look_up: (numpy or jax.numpy, tables, rows) -> batch
    (``core/types.py``); the same code runs on the host and, where the tables fit, in the train
    step. draw: (rng, batch size) -> the rows of a batch; None: every example once per epoch.
    on_device: whether look_up can run on a device; never with 64-bit tables, which JAX would cut to
    32 bits. one_shape: whether all batches of the same size have the same shapes. arrange: rng ->
    the rows of all examples of an epoch, in its order, [size, ...], for examples that hold several
    windows each (``packed.py``); windows: the number of these. None: an example is one row. order:
    (seed, batch number, batch size) -> the rows of a batch, in an order of its own; None: see
    ``BatchRows``. lanes: into how many equal parts it divides a batch where it can.
    """

    size: int
    tables: dict[str, np.ndarray]
    look_up: Callable[[Any, dict[str, Any], Any], Batch]
    draw: Callable[[np.random.Generator, int], np.ndarray] | None = None
    on_device: bool = True
    one_shape: bool = True
    arrange: Callable[[np.random.Generator], np.ndarray] | None = None
    windows: int | None = None
    order: Callable[[int, int, int], np.ndarray] | None = None
    lanes: int = 1

    def __post_init__(self) -> None:
        if any(table.dtype == np.int64 for table in self.tables.values()):
            object.__setattr__(self, "on_device", False)

    def gather(self, rows: np.ndarray) -> Batch:
        """The batch of these rows, on the host."""
        return self.look_up(np, self.tables, rows)

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of every example once, in random order."""
        return rng.permutation(self.size) if self.arrange is None else self.arrange(rng)

    def sample(self, count: int) -> Batch:
        """A batch of ``count`` random examples, always the same, on the host."""
        return self.gather(BatchRows(self, count, 1, 0)[0])

    def rows_of(self, batch_size: int, parts: int = 1) -> int:
        """The number of examples of a batch with ``batch_size`` windows on average.

        It is a multiple of ``parts``, and of ``lanes`` unless it would be less than twice that.
        Where an example is one window, it is ``batch_size``.
        """
        if self.windows is None:
            return batch_size
        rows = batch_size / self.per_row
        both = math.lcm(parts, self.lanes)
        step = both if rows >= 2 * both else parts
        return max(1, round(rows / step)) * step

    @property
    def per_row(self) -> float:
        """The mean number of windows of an example."""
        return 1.0 if self.windows is None else self.windows / max(1, self.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return sum(table.nbytes for table in self.tables.values())


def window(xp: Any, values: Any, first: Any, stop: Any, length: int) -> tuple[Any, Any, Any]:
    """The ``length`` values before index ``stop`` [B], and not before index ``first`` [B].

    Returns three arrays [B, length]: the values, int32, padded on the left with PAD; their indices;
    and a mask, False at the padding. xp: numpy or jax.numpy.
    """
    index = stop[:, None] + xp.arange(-length, 0)[None]
    valid = index >= first[:, None]
    index = xp.maximum(index, 0)
    return xp.where(valid, values[index], PAD).astype(xp.int32), index, valid


def last_items(
    indptr: np.ndarray, values: np.ndarray, length: int, drop: int = 0
) -> Int[np.ndarray, "U L"]:
    """The newest ``length`` values of each row of a CSR array, padded on the left with PAD.

    drop: the number of values at the end of each row to leave out.
    """
    stop = indptr[1:, None] - drop
    index = stop + np.arange(-length, 0)[None]
    valid = index >= indptr[:-1, None]
    found = values[np.maximum(index, 0)] if len(values) else PAD
    return np.where(valid, found, PAD).astype(np.int32)


def compact(indices: np.ndarray) -> np.ndarray:
    """The indices as int32 where they fit, else as int64."""
    return indices.astype(np.int32 if indices.max(initial=0) < 2**31 else np.int64)


def draw_items(
    cumulative: np.ndarray, shape: int | tuple[int, ...], rows: np.ndarray
) -> np.ndarray:
    """Items drawn in proportion to the shares with the running sum ``cumulative`` [I].

    The seed is the batch's ``rows``, so that a resumed run draws the same items.
    """
    points = np.random.default_rng(rows).random(shape) * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, points, side="right"), len(cumulative) - 1)


class BatchRows(grain.sources.RandomAccessDataSource):
    """The rows of each batch, by batch number.

    Epoch e visits the examples in an order drawn from (seed, e). A batch may span two epochs, so
    every batch is full.
    """

    def __init__(self, examples: Examples, batch_size: int, num_batches: int, seed: int):
        self.examples = examples
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_batches

    def _rows(self, epoch: int) -> np.ndarray:
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            cached = (epoch, self.examples.epoch(rng))
            self._epoch = cached
        return cached[1]

    def __getitem__(self, index) -> np.ndarray:
        if self.examples.draw is not None:
            rng = np.random.default_rng((self.seed, int(index)))
            return self.examples.draw(rng, self.batch_size).astype(np.int32)
        if self.examples.order is not None:
            return self.examples.order(self.seed, int(index), self.batch_size).astype(np.int32)
        places = int(index) * self.batch_size + np.arange(self.batch_size)
        epochs, within = np.divmod(places, self.examples.size)
        parts = [self._rows(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts).astype(np.int32)


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
    """A Grain iterator over shuffled batches, prefetched by a thread; its state is checkpointable.

    chunk: batches that are stacked; every array has the leading axes [chunk, batch size]. gather:
    whether to look up the batches; False: return their rows, int32, for a look-up on the device.
    part: the rows within a batch that this process gathers (``sharding.local_rows``); None: all.
    Raises InputError if there is no example.
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
