"""Batches of texts of similar length: their shapes, their order, and who computes which.

Several processes compute the batches that one process would, each every n-th one, so that the
vectors are the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Int

from kd_jax.data.text import TokenTable
from kd_jax.devices import sharding

GATHERED = 2**26  # bytes of each process that are exchanged at once


class TextBatch(NamedTuple):
    """The texts ``rows`` [R], in a batch of ``size`` texts (R or more) and ``length`` tokens."""

    rows: np.ndarray
    size: int
    length: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches, in order of length; this process computes ``batches[part::parts]``."""

    batches: list[TextBatch]
    part: int
    parts: int

    @property
    def own(self) -> list[TextBatch]:
        """The batches of this process."""
        return self.batches[self.part :: self.parts]

    def rows_by_part(self) -> list[np.ndarray]:
        """The texts of each process."""
        none = np.zeros(0, np.int64)
        return [
            np.concatenate([none, *(batch.rows for batch in self.batches[part :: self.parts])])
            for part in range(self.parts)
        ]


def plan_batches(lengths: Int[np.ndarray, " N"], batch_tokens: int | None, shared: bool) -> Plan:
    """The batches of texts with these ``lengths``, in tokens.

    batch_tokens: tokens that one device computes at once; None: by the kind of device. shared:
    whether all processes call this with the same lengths and divide the batches.
    """
    devices = sharding.local_mesh().size
    if batch_tokens is None:
        batch_tokens = 1024 if jax.default_backend() == "cpu" else 65536
    order = np.argsort(lengths, kind="stable")
    batches = []
    for start, stop, size, length in batch_shapes(lengths[order], batch_tokens * devices):
        size += -size % devices
        for first in range(start, stop, size):
            batches.append(TextBatch(order[first : min(first + size, stop)], size, length))
    if shared:
        return Plan(batches, jax.process_index(), jax.process_count())
    return Plan(batches, 0, 1)


@dataclasses.dataclass(frozen=True)
class Runs:
    """Calls ``run`` on batches of the texts ``chosen`` of a table, on all devices of this process.

    states: hidden states of the tokens of the table after the frozen layers, or None.
    """

    encoder: Any
    table: TokenTable
    chosen: np.ndarray
    run: Callable[..., jax.Array]
    states: np.ndarray | None = None

    def __call__(
        self, batches: Sequence[TextBatch]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (indices into ``chosen`` [R], mask [R, L], result [R, ...])."""
        mesh = sharding.local_mesh()
        graphdef, state = nnx.split(self.encoder)
        state = sharding.put_whole(state, mesh)
        pending: list[tuple[np.ndarray, np.ndarray, jax.Array]] = []
        for rows, size, length in batches:
            # The last batch repeats its first text, so that its shape, and with it the compiled
            # program, is the same.
            filled = self.chosen[np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])]
            ids, mask = self.table.padded(filled, length)
            given = None
            if self.states is not None:
                given = self.states[self.table.token_indices(filled, length)]
            result = self.run(graphdef, state, *sharding.put_rows((ids, mask, given), mesh))
            pending.append((rows, mask[: len(rows)] > 0, result))
            if len(pending) > 1:
                rows, mask, result = pending.pop(0)
                yield rows, mask, np.asarray(result)[: len(rows)]
        for rows, mask, result in pending:
            yield rows, mask, np.asarray(result)[: len(rows)]


def gather_rows(values: np.ndarray, owned: Sequence[np.ndarray]) -> None:
    """Fills in the rows of ``values`` [N, D] that other processes have computed.

    owned: the rows of each process. Every process must call this.
    """
    most = max(len(rows) for rows in owned)
    own = owned[jax.process_index()]
    step = max(1, GATHERED // max(1, values[:1].nbytes))
    for start in range(0, most, step):
        mine = own[start : start + step]
        block = np.zeros((min(step, most - start), *values.shape[1:]), values.dtype)
        block[: len(mine)] = values[mine]
        blocks = np.asarray(multihost_utils.process_allgather(block))
        for rows, found in zip(owned, blocks, strict=True):
            rows = rows[start : start + step]
            values[rows] = found[: len(rows)]


def batch_shapes(
    lengths: Int[np.ndarray, " N"], batch_tokens: int, compile_tokens: int = 4000
) -> list[tuple[int, int, int, int]]:
    """The cheapest shapes of batches for sorted ``lengths``, as (start, stop, rows, length).

    A shape costs ``compile_tokens`` (the tokens that could be encoded while its program compiles),
    and a text costs the length of its shape. The minimum is found by dynamic programming over the
    distinct lengths.
    """
    widths, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], counts.cumsum()])
    best = np.zeros(len(widths) + 1)
    cut = np.zeros(len(widths) + 1, np.int64)
    for stop in range(1, len(widths) + 1):
        cost = best[:stop] + compile_tokens + widths[stop - 1] * (ends[stop] - ends[:stop])
        cut[stop] = cost.argmin()
        best[stop] = cost.min()
    shapes = []
    stop = len(widths)
    while stop > 0:
        start = int(cut[stop])
        width = int(widths[stop - 1])
        texts = int(ends[stop] - ends[start])
        batches = -(-texts // max(1, batch_tokens // width))
        shapes.append((int(ends[start]), int(ends[stop]), -(-texts // batches), width))
        stop = start
    return shapes[::-1]
