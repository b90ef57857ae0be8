"""Live items: the items of a batch that a language model encodes while it is trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.core.types import PAD, Batch
from kd_jax.data.examples.base import BatchRows, Examples, draw_items


@dataclasses.dataclass(frozen=True)
class LiveItems:
    """Chooses the items of a batch to encode: its distinct items, and further drawn ones.

    lengths: int [I], tokens of each item's text. groups: ((items, width), …): the longest texts
    come first, and a text is padded to the width of its group only; an item beyond the last group
    keeps its stored vector. negatives: the number of drawn items. cumulative: see ``draw_items``.
    """

    lengths: np.ndarray
    groups: tuple[tuple[int, int], ...]
    negatives: int
    cumulative: np.ndarray

    def of(self, batch: Batch, rows: np.ndarray) -> dict[int, np.ndarray]:
        """width -> items of the batch of these rows, int32, padded with PAD."""
        found = _distinct_items(batch, self.negatives, self.cumulative, rows)
        found = found[np.argsort(-self.lengths[found], kind="stable")]
        live = {}
        start = 0
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
    """The LiveItems for batches of ``rows`` examples, estimated from 32 sampled batches.

    There are at most three groups, chosen for the fewest padded tokens. A group holds a multiple of
    ``rows`` items, so that it can be split over devices wherever a batch can. lengths: [I], tokens
    of each item's text. share: [I], the weights by which negatives are drawn.
    """
    sample = BatchRows(examples, rows, 32, seed)
    cumulative = share.cumsum()
    found = [
        _distinct_items(examples.gather(sample[i]), negatives, cumulative, sample[i])
        for i in range(len(sample))
    ]
    units = -(-min(len(lengths), int(1.05 * max(map(len, found)) + 1)) // rows)
    # The n-th longest text of a batch has at most longest[n] tokens, in the sample.
    longest = np.zeros(units * rows, np.int64)
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
    return LiveItems(lengths, _joined(spans(best)), negatives, cumulative)


def _joined(groups: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Joins the groups of the same width."""
    sizes: dict[int, int] = {}
    for size, width in groups:
        sizes[width] = sizes.get(width, 0) + size
    return tuple((size, width) for width, size in sizes.items())


def _distinct_items(
    batch: Batch, negatives: int, cumulative: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    keys = ("history", "item") if "item" in batch else ("history", "targets")
    parts = [batch[key].ravel() for key in keys]
    if negatives:
        parts.append(draw_items(cumulative, negatives, rows))
    found = np.unique(np.concatenate(parts))
    return found[found != PAD]


def with_live_items(examples: Examples, live: LiveItems) -> Examples:
    """``examples`` with ``live_items`` in their batches."""

    def look_up(_: Any, tables: dict[str, Any], rows: Any) -> Batch:
        batch = examples.look_up(np, tables, rows)
        return batch | {"live_items": live.of(batch, rows)}

    return dataclasses.replace(examples, look_up=look_up, on_device=False)
