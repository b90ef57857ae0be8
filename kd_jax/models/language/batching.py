"""Batches of texts: which texts share a row, the shapes, and who computes which batch.

Short texts share rows of one length, so that nearly no padding is computed and one program is
compiled. An encoder that does not read such rows gets one text a row, in batches of similar length.
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

from kd_jax.data.examples.packed import bins_of
from kd_jax.data.text import SECOND, TokenTable
from kd_jax.devices import sharding

GATHERED = 2**26  # bytes of each process that are exchanged at once
COMPILED = 4000  # tokens that could be encoded while a program compiles
ATTENTION = 1300  # length of a row whose attention takes as long as everything else
LENGTHS = (*range(16, 129, 8), 192, 256)  # of rows with several texts


class TextBatch(NamedTuple):
    """Texts in a batch of ``size`` rows (R or more) of ``length`` tokens.

    texts: int [R, S], those of each row, one after another; -1 where a row has fewer than S.
    """

    texts: np.ndarray
    size: int
    length: int

    @property
    def rows(self) -> np.ndarray:
        """All texts of the batch."""
        return self.texts[self.texts >= 0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches; this process computes ``batches[part::parts]``."""

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


def plan_batches(
    lengths: Int[np.ndarray, " N"], batch_tokens: int | None, shared: bool, packed: bool = True
) -> Plan:
    """The batches of texts with these ``lengths``, in tokens.

    batch_tokens: tokens that one device computes at once; None: by the kind of device. shared:
    whether all processes call this with the same lengths and divide the batches. packed: whether
    texts share rows.
    """
    devices = sharding.local_mesh().size
    if batch_tokens is None:
        batch_tokens = 1024 if jax.default_backend() == "cpu" else 65536
    batches = []
    for texts, size, length in (_packed if packed else _padded)(lengths, batch_tokens, devices):
        size += -size % devices
        for first in range(0, len(texts), size):
            batches.append(TextBatch(texts[first : first + size], size, length))
    if shared:
        return Plan(batches, jax.process_index(), jax.process_count())
    return Plan(batches, 0, 1)


Rows = Iterator[tuple[np.ndarray, int, int]]  # (texts [N, S], rows of a batch, length)


def _padded(lengths: np.ndarray, batch_tokens: int, devices: int) -> Rows:
    order = np.argsort(lengths, kind="stable")
    for start, stop, size, length in batch_shapes(lengths[order], batch_tokens * devices):
        yield order[start:stop, None], size, length


def _packed(lengths: np.ndarray, batch_tokens: int, devices: int) -> Rows:
    lengths = np.maximum(lengths, 1)  # a text without tokens takes a place, too
    counts = np.bincount(lengths, minlength=2)
    sizes = row_lengths(counts, batch_tokens)
    bins = bins_of(counts, sizes)
    flat = np.full(bins.size, -1)
    filled = np.argsort(bins, axis=None, kind="stable")[bins.size - len(lengths) :]
    flat[filled] = np.argsort(lengths, kind="stable")
    texts = flat.reshape(bins.shape)
    of = np.searchsorted(sizes, bins[:, 0])
    for number, size in enumerate(sizes):
        chosen = of == number
        if chosen.any():
            most = int((bins[chosen] > 0).sum(1).max())
            wide = np.full((chosen.sum(), most + -most % 8), -1)  # few programs for many catalogues
            wide[:, :most] = texts[chosen, :most]
            yield wide, _rows_of_batch(len(wide), max(1, batch_tokens * devices // size)), size


def _rows_of_batch(rows: int, most: int) -> int:
    """The size of batches, from 7/8 of ``most`` to ``most``, with the fewest empty rows."""
    sizes = np.arange(most, most - most // 8 - 1, -1) if rows > most else np.array([rows])
    return int(sizes[np.argmin(-(-rows // sizes) * sizes)])


def row_lengths(counts: Int[np.ndarray, " L_1"], batch_tokens: int) -> tuple[int, ...]:
    """The lengths of rows, one or two, at which texts cost least; counts: of texts by length.

    A row of W tokens costs W (1 + W / ATTENTION), and every length ``COMPILED``. The longest text
    fits; a length above ``batch_tokens`` is no choice for others.
    """
    longest = len(counts) - 1
    longest += -longest % 8
    choices: list[tuple[int, ...]] = [(longest,)]
    choices += [(length,) for length in LENGTHS if longest < length <= batch_tokens]
    choices += [(length, longest) for length in LENGTHS if length < min(longest, batch_tokens + 1)]

    def cost(sizes: tuple[int, ...]) -> float:
        rows = np.asarray(sizes)[np.searchsorted(sizes, bins_of(counts, sizes)[:, 0])]
        return float((rows * (1 + rows / ATTENTION)).sum()) + COMPILED * len(sizes)

    return min(choices, key=cost)


class Layout(NamedTuple):
    """The tokens of a batch, int32 [B, L] each.

    segment: the number of a token's text in its row, from 1, and 0 at padding; of pairs, one a row,
    the mask of ``TokenTable.padded``. places: of the tokens in the table, without a meaning at
    padding.
    """

    ids: np.ndarray
    segment: np.ndarray
    places: np.ndarray


def layout(table: TokenTable, texts: Int[np.ndarray, "R S"], size: int, length: int) -> Layout:
    """The tokens of ``texts``, -1 for none, in ``size`` rows of ``length`` tokens."""
    given = np.full((size, texts.shape[1]), -1)
    given[: len(texts)] = texts
    sizes = np.where(given >= 0, table.lengths[given] if len(table) else 0, 0)
    room = np.where(given >= 0, np.maximum(sizes, 1), 0)
    ends = room.cumsum(1)
    at = np.arange(length)[None]
    slot = (ends[:, None] <= at[..., None]).sum(2)
    known = np.minimum(slot, texts.shape[1] - 1)

    def of_text(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, known, 1)

    place = at - of_text(ends - room)
    valid = place < of_text(sizes)
    places = np.where(valid, table.indptr[of_text(given)] + place, 0)
    ids = np.where(valid, table.ids[places], table.pad_id) if len(table.ids) else table.pad_id
    ids = np.broadcast_to(ids, places.shape)
    segment = np.where(valid, slot + 1, 0)
    if table.first is not None:
        segment = np.where(valid & (place >= table.first[of_text(given)]), SECOND, segment)
    return Layout(ids.astype(np.int32), segment.astype(np.int32), places)


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
    ) -> Iterator[tuple[TextBatch, Layout, np.ndarray]]:
        """Yields (batch, its tokens, the result [B, ...])."""
        mesh = sharding.local_mesh()
        graphdef, state = nnx.split(self.encoder)
        state = sharding.put_whole(state, mesh)
        pending: list[tuple[TextBatch, Layout, jax.Array]] = []
        for batch in batches:
            chosen = np.where(batch.texts >= 0, self.chosen[batch.texts], -1)
            tokens = layout(self.table, chosen, batch.size, batch.length)
            given = None if self.states is None else self.states[tokens.places]
            arrays = sharding.put_rows((tokens.ids, tokens.segment, given), mesh)
            result = self.run(graphdef, batch.texts.shape[1], state, *arrays)
            pending.append((batch, tokens, result))
            if len(pending) > 1:
                batch, tokens, result = pending.pop(0)
                yield batch, tokens, np.asarray(result)
        for batch, tokens, result in pending:
            yield batch, tokens, np.asarray(result)


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
    lengths: Int[np.ndarray, " N"], batch_tokens: int, compile_tokens: int = COMPILED
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
