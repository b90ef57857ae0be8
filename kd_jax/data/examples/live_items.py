"""The items of a batch whose texts a language model in training encodes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.core.types import PAD, Batch
from kd_jax.data.examples.base import BatchRows, Examples, drawn


@dataclasses.dataclass(frozen=True)
class LiveItems:
    """Which items of a batch a language model in training encodes: the distinct ones, and
    ``negatives`` drawn ones.

    lengths: int [I], tokens of each item's text. groups: ((rows, width), …): the longest texts
    first, each padded to its group's width alone; an item for which no place is left keeps the
    vector it has. ends: of the negatives' shares, see ``drawn``.
    """

    lengths: np.ndarray
    groups: tuple[tuple[int, int], ...]
    negatives: int
    ends: np.ndarray

    def of(self, batch: Batch, rows: np.ndarray) -> dict[int, np.ndarray]:
        """width -> items of the batch of these rows, int32, filled up with PAD."""
        found = _distinct_items(batch, self.negatives, self.ends, rows)
        found = found[np.argsort(-self.lengths[found], kind="stable")]
        live, start = {}, 0
        for size, width in self.groups:
            part = found[start : start + size]
            part = np.where(self.lengths[part] <= width, part, PAD)
            live[width] = np.pad(part, (0, size - len(part)), constant_values=PAD).astype(np.int32)
            start += size
        return live


def live_items(
    examples: Examples,
    lengths: np.ndarray,
    share: np.ndarray,
    *,
    rows: int,
    negatives: int,
    seed: int,
) -> LiveItems:
    """The groups that batches of ``rows`` need, from 32 sampled batches: at most three, as few
    padded tokens as can be.

    A group holds a multiple of ``rows`` items, so that it divides over devices wherever a batch
    does. share: [I], what negatives are drawn in proportion to.
    """
    tried, ends = BatchRows(examples, rows, 32, seed), share.cumsum()
    found = [
        _distinct_items(examples.gather(tried[i]), negatives, ends, tried[i])
        for i in range(len(tried))
    ]
    units = -(-min(len(lengths), int(1.05 * max(map(len, found)) + 1)) // rows)
    longest = np.zeros(
        units * rows, np.int64
    )  # of the text at each place, over the sampled batches
    for items in found:
        ordered = np.sort(lengths[items])[::-1]
        longest[: len(ordered)] = np.maximum(longest[: len(ordered)], ordered)
    widths = np.maximum(longest[::rows], 1)
    widths[0] = lengths.max()

    def spans(cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        return [
            ((stop - start) * rows, int(widths[start]))
            for start, stop in itertools.pairwise((0, *cuts, units))
        ]

    choices = [cuts for n in range(3) for cuts in itertools.combinations(range(1, units), n)]
    best = min(choices, key=lambda cuts: sum(size * width for size, width in spans(cuts)))
    return LiveItems(lengths, _joined(spans(best)), negatives, ends)


def _joined(groups: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Groups of the same width are one."""
    sizes: dict[int, int] = {}
    for size, width in groups:
        sizes[width] = sizes.get(width, 0) + size
    return tuple((size, width) for width, size in sizes.items())


def _distinct_items(batch: Batch, negatives: int, ends: np.ndarray, rows: np.ndarray) -> np.ndarray:
    keys = ("history", "item") if "item" in batch else ("history", "targets")
    parts = [batch[key].ravel() for key in keys]
    if negatives:
        parts.append(drawn(ends, negatives, rows))
    found = np.unique(np.concatenate(parts))
    return found[found != PAD]


def with_live_items(examples: Examples, live: LiveItems) -> Examples:
    """Adds ``live_items`` to the batches."""

    def look_up(_: Any, tables: dict[str, Any], rows: Any) -> Batch:
        batch = examples.look_up(np, tables, rows)
        return batch | {"live_items": live.of(batch, rows)}

    return dataclasses.replace(examples, look_up=look_up, on_device=False)
