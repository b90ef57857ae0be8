"""Training examples of prepared data, read from one shard of users after another.

A batch is made of lanes, each with shards of its own, so processes that look up different parts of
a batch read different shards. A lane visits all examples of a shard before the next shard; which
comes next, and the order within, is drawn from (seed, epoch, lane). The number of lanes depends on
the batch size and the shards alone, so any number of processes gives the same batches, on a mesh of
the same size where the examples are bins (``Examples.rows_of``).
"""

from __future__ import annotations

import collections
import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.packed import fixed_bins, packed_examples
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.user import (
    Whole,
    recency_weights,
    target_ages,
    user_examples,
    widest,
)
from kd_jax.data.prepared.folder import PreparedDataset, Shards
from kd_jax.data.splits import TRAIN

LANES = 8  # at most
COLUMNS = ("item", "split")
TIMED = (*COLUMNS, "timestamp")


def shard_examples(
    dataset: PreparedDataset,
    *,
    history: int,
    example_kind: str,
    packed: bool = False,
    **weighting: Any,
) -> Examples:
    """The examples of ``user_examples`` ('user') or ``sequence_examples``, from the shards.

    packed: those of the kind 'all' are ``packed_examples``, in bins of users of one shard that are
    the same in all epochs. Row numbers go through the shards in order; everything else is as if all
    were in memory.
    """
    shards = dataset.shards
    assert shards is not None
    windows = None
    if example_kind == "user":
        columns = TIMED if weighting.get("decay_unit") == "days" else COLUMNS
        whole, sizes = _whole(shards, columns, **weighting)
        how: dict[str, Any] = {"history": history, "whole": whole, **weighting}
        make: Callable[[Dataset], Examples] = functools.partial(user_examples, **how)
    else:
        columns = COLUMNS
        make = functools.partial(sequence_examples, history=history, example_kind=example_kind)
        count = make
        if packed and example_kind == "all":
            make, count = (functools.partial(one, history=history)
                           for one in (fixed_bins, packed_examples))  # fmt: skip
        parts = (count(shards.part(number, columns)) for number in range(shards.number))
        held = [(part.size, part.windows or 0) for part in parts]
        sizes, windows = [size for size, _ in held], sum(number for _, number in held) or None
    shift = shards.users if example_kind == "user" else 0
    reader = _Reader(shards, make, columns, np.asarray(sizes), shift)
    order = ShardOrder(np.asarray(sizes))
    lanes = math.gcd(LANES, shards.number)
    return Examples(
        sum(sizes), {}, reader, on_device=False, order=order, windows=windows, lanes=lanes
    )


def _whole(
    shards: Shards,
    columns: tuple[str, ...],
    *,
    decay: float,
    decay_unit: str = "interactions",
    user_power: float = 0.5,
) -> tuple[Whole, list[int]]:
    """What the examples of one shard depend on in the others, and the examples of each."""
    width, end, sizes = 1, 0, []
    for number in range(shards.number):
        part = shards.part(number, columns)
        counts = np.diff(part.targets(TRAIN)[0])
        width, end = (
            max(width, widest(counts)),
            max(end, int(part.timestamp[part.split == TRAIN].max(initial=0))),
        )
        sizes.append(int((counts > 0).sum()))
    totals = np.zeros(shards.users)
    for number in range(shards.number):
        part = shards.part(number, columns)
        indptr, _ = part.targets(TRAIN)
        ages = target_ages(part, indptr, width, decay_unit, end)
        owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        found = np.bincount(owner, recency_weights(ages, decay), len(indptr) - 1)
        totals[number :: shards.number] = np.where(np.diff(indptr) > 0, found, np.nan)
    totals = totals[~np.isnan(totals)]
    return Whole(width, end, float(np.mean(totals**user_power))), sizes


class ShardOrder:
    """The rows of each batch; sizes: examples of each shard [S]."""

    def __init__(self, sizes: np.ndarray):
        self.sizes = sizes
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._epochs: collections.OrderedDict[tuple[int, ...], np.ndarray] = (
            collections.OrderedDict()
        )

    def lanes(self, batch_size: int) -> int:
        """The number of lanes: it divides batch and shards, and every lane has examples."""
        lanes = math.gcd(batch_size, len(self.sizes), LANES)
        while any(not self.sizes[lane::lanes].any() for lane in range(lanes)):
            lanes //= 2
        return lanes

    def __call__(self, seed: int, number: int, batch_size: int) -> np.ndarray:
        """The rows [batch size] of batch ``number``."""
        lanes = self.lanes(batch_size)
        share = batch_size // lanes
        rows = np.empty((lanes, share), np.int64)
        for lane in range(lanes):
            places = number * share + np.arange(share)
            epochs, within = np.divmod(places, self.sizes[lane::lanes].sum())
            for epoch in np.unique(epochs):
                here = epochs == epoch
                rows[lane, here] = self.epoch(seed, int(epoch), lane, lanes)[within[here]]
        return rows.reshape(-1)

    def epoch(self, seed: int, epoch: int, lane: int, lanes: int) -> np.ndarray:
        """The rows of a lane in the order of an epoch."""
        key = seed, epoch, lane, lanes
        if key not in self._epochs:
            rng = np.random.default_rng((seed, epoch, lane))
            shards = rng.permutation(np.arange(lane, len(self.sizes), lanes))
            rows = [self.offsets[one] + rng.permutation(self.sizes[one]) for one in shards]
            self._epochs[key] = np.concatenate(rows).astype(np.int32)
            while len(self._epochs) > 2 * lanes:
                self._epochs.popitem(last=False)
        return self._epochs[key]


class _Reader:
    """Looks rows up in the shards, of which the newest few stay in memory."""

    def __init__(
        self,
        shards: Shards,
        make: Callable[[Dataset], Examples],
        columns: tuple[str, ...],
        sizes: np.ndarray,
        shift: int,
    ):
        self.shards, self.make, self.columns, self.shift = shards, make, columns, shift
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes
        self._kept: collections.OrderedDict[int, Examples] = collections.OrderedDict()
        self._lock = threading.Lock()  # the thread that prefetches, and that of a first batch

    def __call__(self, xp: Any, tables: dict[str, Any], rows: np.ndarray) -> Batch:
        rows = np.asarray(rows)
        shard = np.searchsorted(self.ends, rows, side="right")
        numbers = np.unique(shard)
        if len(numbers) == 1:
            return self._batch(int(numbers[0]), rows)
        found: Batch = {}
        for number in numbers:
            at: Any = np.flatnonzero(shard == number)
            if at[-1] - at[0] == len(at) - 1:  # a lane: a slice is copied faster
                at = slice(at[0], at[-1] + 1)
            for name, values in self._batch(int(number), rows[at]).items():
                if name not in found:
                    found[name] = np.empty((len(rows), *values.shape[1:]), values.dtype)
                found[name][at] = values
        return found

    def _batch(self, number: int, rows: np.ndarray) -> Batch:
        batch = self._examples(number).gather(rows - self.starts[number])
        user = batch["row"] * np.int32(self.shards.number) + np.int32(number)
        if "segment" in batch:
            return batch | {"row": np.where(batch["history"] == PAD, 0, user)}
        return batch | {"user": user, "context_row": user + np.int32(self.shift), "row": user}

    def _examples(self, number: int) -> Examples:
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self.make(self.shards.part(number, self.columns))
                while len(self._kept) > 2 * LANES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]
