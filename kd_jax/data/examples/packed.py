"""Training examples of next-item prediction without padding: windows of several users in one row.

A *bin* is a row of L positions with whole windows of ``sequence_examples``, each contiguous and
oldest first. Which lengths share a bin is planned once, so the number of bins is the same in every
epoch; which users do is drawn anew, or once (``fixed_bins``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from kd_jax.core.types import PAD, Batch
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import Examples
from kd_jax.data.examples.sequence import sequence_tables


def bins_of(counts: np.ndarray, sizes: Sequence[int] = ()) -> Int[np.ndarray, "N S"]:
    """The lengths of the windows in each bin, longest first, padded with 0.

    counts: the number of windows of each length; the first, of length 0, is not read. sizes: of the
    bins, in positions, ascending; () is len(counts) - 1 alone. A bin is the smallest in which its
    first window fits. Best fit decreasing (Johnson et al., "Worst-case performance bounds for
    simple one-dimensional packing algorithms", SIAM J. Comput. 1974), with bins of equal content
    filled at once: the time does not depend on the number of windows.
    """
    sizes = sizes or (len(counts) - 1,)
    # By the positions that are left: (number of bins, lengths of the windows in each).
    opened: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(sizes[-1] + 1)]
    for length in range(len(counts) - 1, 0, -1):
        size = next(size for size in sizes if size >= length)
        left = int(counts[length])
        while left:
            found = next((room for room in range(length, sizes[-1]) if opened[room]), None)
            room = size if found is None else found
            each = min(room // length, left)
            number, content = (left // each, ()) if found is None else opened[room].pop()
            filled = min(number, left // each)
            if filled < number:
                opened[room].append((number - filled, content))
            opened[room - each * length].append((filled, content + (length,) * each))
            left -= filled * each
    groups = [group for alike in opened for group in alike]
    bins = np.zeros((len(groups), max((len(c) for _, c in groups), default=1)), np.int32)
    for row, (_, content) in zip(bins, groups, strict=True):
        row[: len(content)] = content
    return np.repeat(bins, [number for number, _ in groups], axis=0)


def packed_examples(dataset: Dataset, *, history: int) -> Examples:
    """``sequence_examples`` of the kind 'all', in bins: one example is a bin of ``history`` = L.

    A batch has [B, L] positions: 'history', 'targets', 'target_weights' and 'weights' as there,
    'segment', the number of the window in its bin, and 'row' and 'place', the example and the
    position that it is in the padded form. Every window is in one bin of an epoch.
    """
    tables = sequence_tables(dataset)
    counts = np.diff(tables["indptr"])[tables["users"]] - 1
    lengths = np.minimum(counts, history).astype(np.int16 if history < 2**15 else np.int32)
    bins = bins_of(np.bincount(lengths, minlength=history + 1))
    places = np.argsort(bins, axis=None, kind="stable")[bins.size - len(lengths) :]

    def arrange(rng: np.random.Generator) -> Int[np.ndarray, "N S"]:
        """The windows of every bin in one epoch; len(lengths) where there is none."""
        windows = rng.permutation(len(lengths)).astype(np.int32)
        rows = np.full(bins.size, len(lengths), np.int32)
        rows[places] = windows[np.argsort(lengths[windows], kind="stable")]
        return rng.permutation(rows.reshape(bins.shape))

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        length, user = tables["lengths"][rows], tables["users"][rows]
        ends = length.cumsum(1)
        at = xp.arange(history, dtype=np.int32)[None]
        segment = (ends[:, None] <= at[..., None]).sum(2).astype(np.int32)
        valid = at < ends[:, -1:]

        def of_window(values: Any) -> Any:
            """[B, S] -> [B, L], the values of each position's window."""
            return xp.take_along_axis(values, xp.minimum(segment, rows.shape[1] - 1), 1)

        after = of_window(ends) - at  # positions from this one to the end of its window
        index = xp.where(valid, of_window(tables["indptr"][user + 1]) - 1 - after, 0)
        weights = valid.astype(np.float32)
        if "weights" in tables:
            weights = xp.where(valid, tables["weights"][index + 1], 0).astype(np.float32)
        targets = xp.where(valid, tables["items"][index + 1], PAD).astype(np.int32)[..., None]
        return {
            "history": xp.where(valid, tables["items"][index], PAD).astype(np.int32),
            "targets": targets,
            "target_weights": xp.ones(targets.shape, np.float32),
            "weights": weights,
            "segment": segment,
            "row": xp.where(valid, of_window(user), 0),
            "place": xp.where(valid, history - after, 0).astype(np.int32),
        }

    tables |= {
        "users": np.append(tables["users"], np.int32(0)),
        "lengths": np.append(lengths, 0).astype(np.int32),
    }
    return Examples(len(bins), tables, look_up, arrange=arrange, windows=len(lengths))


def fixed_bins(dataset: Dataset, *, history: int) -> Examples:
    """``packed_examples`` whose bins have the same windows in all epochs: a row is their number."""
    found = packed_examples(dataset, history=history)
    assert found.arrange is not None
    bins, look_up = found.arrange(np.random.default_rng(0)), found.look_up
    return dataclasses.replace(
        found, look_up=lambda xp, tables, rows: look_up(xp, tables, bins[rows]), arrange=None
    )
