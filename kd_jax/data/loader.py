"""From a data set to batches: training examples as flat tables, shuffled and batched by Grain.

Grain iterates over *batches*, each looked up in the tables at once, so no Python runs per row. Where the tables fit on
the device the look-up happens there, in the train step, and the host sends row numbers. The order is a pure function of
(seed, position): the iterator's state is one number, which the checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int

from kd_jax.data.dataset import Dataset
from kd_jax.data.splits import FOLD_IN
from kd_jax.data.text import history_text
from kd_jax.data.trends import DAY
from kd_jax.errors import InputError
from kd_jax.types import PAD, Batch

TRAIN, VALID, TEST = 0, 1, 2
MAX_TARGETS = 256  # the newest targets of a user that matrix factorisation learns from


@dataclasses.dataclass(frozen=True)
class Examples:
    """``size`` training examples: tables, and how the batch of some rows is looked up in them (``kd_jax/types.py``).

    look_up: (numpy or jax.numpy, tables, rows) -> batch, so that the same lines run on the host and, where the tables
    fit, inside the train step. draw: picks the rows of a batch, (rng, batch size) -> rows; None: every example once per
    epoch. on_device: whether look_up can run there at all; not where a table has 64-bit positions, which JAX would cut
    to 32 bits. one_shape: whether batches of a size have the same shapes.
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


def _window(xp: Any, values: Any, first: Any, stop: Any, length: int) -> tuple[Any, Any, Any]:
    """The ``length`` values before ``stop`` [B], PAD before ``first``; where they are, and which are there."""
    index = stop[:, None] + xp.arange(-length, 0)[None]
    valid = index >= first[:, None]
    index = xp.maximum(index, 0)
    return xp.where(valid, values[index], PAD).astype(xp.int32), index, valid


def last_items(indptr: np.ndarray, values: np.ndarray, length: int, drop: int = 0) -> Int[np.ndarray, "U L"]:
    """Each row's newest ``length`` values before its last ``drop``, right-aligned, padded on the left with PAD."""
    stop = indptr[1:, None] - drop
    index = stop + np.arange(-length, 0)[None]
    valid = index >= indptr[:-1, None]
    return np.where(valid, values[np.maximum(index, 0)] if len(values) else PAD, PAD).astype(np.int32)


def recency_weights(age: np.ndarray, decay: float) -> np.ndarray:
    """exp(-age / decay); 0 where the age is inf."""
    if not decay > 0:
        raise InputError(f"student.decay={decay} must be positive")
    return np.exp(-age / decay)


def target_ages(dataset: Dataset, indptr: np.ndarray, width: int, unit: str) -> Float[np.ndarray, " N"]:
    """How old each train interaction is, by user; inf beyond the newest ``width`` of its user.

    unit: 'interactions' (0 for the user's newest) or 'days' (before the end of training, whoever acted last).
    """
    if unit not in ("interactions", "days"):
        raise InputError(f"student.decay_unit={unit!r} is unknown; known: interactions, days")
    age = np.repeat(indptr[1:] - 1.0, np.diff(indptr)) - np.arange(indptr[-1])
    if unit == "days":
        time = dataset.timestamp[dataset.split == TRAIN]
        return np.where(age < width, (time.max(initial=0) - time) / DAY, np.inf)
    return np.where(age < width, age, np.inf)


def history_texts(dataset: Dataset, texts: Sequence[str], history: int) -> list[str]:
    """Histories as texts, U of each kind: all but the last train item, the train items, train and valid items.

    ``context_row`` = kind * U + user, where kind is the split whose targets follow (0: the last train item).
    """
    written: list[str] = []
    for split, drop in ((VALID, 1), (VALID, 0), (TEST, 0)):
        for row in last_items(*dataset.history(split), history, drop=drop):
            written.append(history_text([texts[item] for item in row if item != PAD], history))
    return written


def user_examples(
    dataset: Dataset, *, history: int, decay: float, decay_unit: str = "interactions", user_power: float = 0.5
) -> Examples:
    """One example per user: all train items are targets of the user's one context, the newest the most.

    decay: age at which a target counts 1/e, in ``decay_unit``. user_power: an example weighs (sum of its target
    weights) ** user_power; 0 weighs all users alike.
    """
    indptr, items = dataset.targets(TRAIN)
    counts = np.diff(indptr)
    width = int(min(MAX_TARGETS, counts.max(initial=1)))
    ages = target_ages(dataset, indptr, width, decay_unit)
    owner = np.repeat(np.arange(len(counts)), counts)
    totals = np.bincount(owner, recency_weights(ages, decay), len(counts))
    newest = np.full(len(counts), np.inf)
    np.minimum.at(newest, owner, ages)
    shares = recency_weights(ages - newest[owner], decay)  # of a user who left long ago, too
    shares /= np.bincount(owner, shares, len(counts))[owner]
    users = np.flatnonzero(counts).astype(np.int32)
    weights = (totals**user_power / np.mean(totals[users] ** user_power)).astype(np.float32)
    num_users = len(counts)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        first, stop = tables["indptr"][user], tables["indptr"][user + 1]
        targets, index, valid = _window(xp, tables["items"], first, stop, width)
        return {
            "user": user,
            "history": _window(xp, tables["items"], first, stop, history)[0],
            "targets": targets[:, None],
            "target_weights": xp.where(valid, tables["shares"][index], 0)[:, None],
            "weights": tables["weights"][user][:, None],
            "context_row": num_users + user,
            "row": user,
        }

    tables = {
        "users": users, "indptr": _compact(indptr), "items": items.astype(np.int32),
        "shares": shares.astype(np.float32), "weights": weights,
    }  # fmt: skip
    return Examples(len(users), tables, look_up)


def _compact(positions: np.ndarray) -> np.ndarray:
    """int32 where it fits: half the memory, and what a device takes."""
    return positions.astype(np.int32 if positions.max(initial=0) < 2**31 else np.int64)


def sequence_examples(dataset: Dataset, *, history: int, positions: str) -> Examples:
    """One example per user with two or more train items: the newest window, and the next item as the target.

    positions: 'all', a target after every item of the window [B, L, 1], or 'last', after the whole of it [B, 1, 1].
    """
    indptr, items = dataset.targets(TRAIN)
    users = np.flatnonzero(np.diff(indptr) >= 2).astype(np.int32)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user = tables["users"][rows]
        first, stop = tables["indptr"][user], tables["indptr"][user + 1] - 1
        inputs, index, valid = _window(xp, tables["items"], first, stop, history)
        target = xp.where(valid, tables["items"][index + 1], PAD).astype(xp.int32)[..., None]
        if positions == "last":
            target = target[:, -1:]
        return {
            "user": user,
            "history": inputs,
            "targets": target,
            "target_weights": xp.ones(target.shape, xp.float32),
            "weights": (target[..., 0] != PAD).astype(xp.float32),
            "context_row": user,
            "row": user,
        }

    return Examples(len(users), {"users": users, "indptr": _compact(indptr), "items": items.astype(np.int32)}, look_up)


def snapshot_examples(
    dataset: Dataset,
    times: np.ndarray,
    *,
    history: int,
    horizon_days: float = 14.0,
    window_days: float = 60.0,
    max_targets: int = 16,
    user_power: float = 0.5,
) -> Examples:
    """The past as a model in service would have seen it: what had a user done before a moment, and what came next?

    One example per moment of ``times`` and user with a history before it and targets within ``horizon_days`` after it.
    A batch belongs to one moment, drawn with probability proportional to exp(-age / ``window_days``).
    """
    indptr, items = dataset.targets(TRAIN)
    train = dataset.split == TRAIN
    time, user = dataset.timestamp[train], dataset.user[train]
    if len(times) < 2:
        raise InputError(
            "teacher.trend=True needs timestamps in seconds that span more than one day of training; set it to False"
        )
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for snapshot, moment in enumerate(times[:-1]):  # after the last one nothing may be known
        before = np.bincount(user[time < moment], minlength=dataset.num_users)
        soon = np.bincount(user[(time >= moment) & (time < moment + horizon_days * DAY)], minlength=dataset.num_users)
        users = np.flatnonzero((before > 0) & (soon > 0))
        border = indptr[users] + before[users]
        parts.append((np.full(len(users), snapshot), users, border, border + np.minimum(soon[users], max_targets)))
    snapshots, users, borders, stops = (np.concatenate(part) for part in zip(*parts, strict=True))
    bounds = np.searchsorted(snapshots, np.arange(len(times)))
    chance = np.exp((times[:-1] - times[-1]) / (window_days * DAY)) * (np.diff(bounds) > 0)
    if not len(snapshots):
        raise InputError(
            "teacher.trend=True finds no moment with a history before and a target after it; set it to False"
        )
    chance /= chance.sum()

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        snapshot = rng.choice(len(chance), p=chance)
        return rng.integers(bounds[snapshot], bounds[snapshot + 1], size)

    def look_up(xp: Any, tables: dict[str, Any], rows: Any) -> Batch:
        user, border, stop = tables["users"][rows], tables["borders"][rows], tables["stops"][rows]
        future = border[:, None] + xp.arange(max_targets)[None]
        wanted = future < stop[:, None]
        items, count = tables["items"], (stop - border).astype(xp.float32)
        return {
            "user": user,
            "history": _window(xp, items, tables["indptr"][user], border, history)[0],
            "targets": xp.where(wanted, items[xp.minimum(future, len(items) - 1)], PAD).astype(xp.int32)[:, None],
            "target_weights": (wanted / count[:, None]).astype(xp.float32)[:, None],
            "weights": (count**user_power)[:, None],
            "snapshot": tables["snapshots"][rows],
            "row": rows.astype(xp.int32),
        }

    tables = {
        "users": users.astype(np.int32), "borders": _compact(borders), "stops": _compact(stops),
        "snapshots": snapshots.astype(np.int32), "indptr": _compact(indptr), "items": items.astype(np.int32),
    }  # fmt: skip
    return Examples(len(snapshots), tables, look_up, draw)


def rate_examples(dataset: Dataset, classes: np.ndarray, split: int, *, history: int) -> Examples:
    """One example per interaction of ``split``: user, item and the class of its rating (int [N], all interactions).

    The history holds what the user did before that interaction, and of earlier splits only (for training
    examples: of the training split), so neither the target nor anything later is in it.
    """
    context = (dataset.split < max(split, 1)) | (dataset.split == FOLD_IN)
    before = np.concatenate([[0], np.cumsum(context)])
    items, rated = dataset.item[context], classes[context]
    warm_user = before[dataset.indptr[1:]] > before[dataset.indptr[:-1]]
    rows = np.flatnonzero((dataset.split == split) & warm_user[dataset.user])

    def look_up(xp: Any, tables: dict[str, Any], chosen: Any) -> Batch:
        row = tables["rows"][chosen]
        user = tables["user"][row]
        first, stop = tables["before"][tables["indptr"][user]], tables["before"][row]
        seen, index, valid = _window(xp, tables["items"], first, stop, history)
        target = tables["classes"][row][:, None, None]
        return {
            "user": user,
            "item": tables["item"][row],
            "history": seen,
            "history_class": xp.where(valid, tables["rated"][index], PAD).astype(xp.int32),
            "targets": target,
            "target_weights": xp.ones(target.shape, xp.float32),
            "weights": xp.ones((len(row), 1), xp.float32),
            "row": chosen.astype(xp.int32),
            "interaction": row,
        }

    tables = {
        "rows": rows, "user": dataset.user, "item": dataset.item, "indptr": dataset.indptr, "before": before,
        "items": np.append(items, 0), "rated": np.append(rated, 0), "classes": classes,  # never empty
    }  # fmt: skip
    return Examples(len(rows), {name: _compact(table) for name, table in tables.items()}, look_up)


@dataclasses.dataclass(frozen=True)
class LiveItems:
    """Which items of a batch a language model in training encodes: the distinct ones, and ``negatives`` drawn ones.

    lengths: int [I], tokens of each item's text. groups: ((rows, width), …): the longest texts first, each padded to
    its group's width alone; an item for which no place is left keeps the vector it has. ends: of the negatives' shares,
    see ``drawn``.
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
    examples: Examples, lengths: np.ndarray, share: np.ndarray, *, rows: int, negatives: int, seed: int
) -> LiveItems:
    """The groups that batches of ``rows`` need, from 32 sampled batches: at most three, as few padded tokens as can be.

    A group holds a multiple of ``rows`` items, so that it divides over devices wherever a batch does. share: [I], what
    negatives are drawn in proportion to.
    """
    tried, ends = _Rows(examples, rows, 32, seed), share.cumsum()
    found = [_distinct_items(examples.gather(tried[i]), negatives, ends, tried[i]) for i in range(len(tried))]
    units = -(-min(len(lengths), int(1.05 * max(map(len, found)) + 1)) // rows)
    longest = np.zeros(units * rows, np.int64)  # of the text at each place, over the sampled batches
    for items in found:
        ordered = np.sort(lengths[items])[::-1]
        longest[: len(ordered)] = np.maximum(longest[: len(ordered)], ordered)
    widths = np.maximum(longest[::rows], 1)
    widths[0] = lengths.max()

    def spans(cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        return [((stop - start) * rows, int(widths[start])) for start, stop in itertools.pairwise((0, *cuts, units))]

    choices = [cuts for n in range(3) for cuts in itertools.combinations(range(1, units), n)]
    best = min(choices, key=lambda cuts: sum(size * width for size, width in spans(cuts)))
    return LiveItems(lengths, _joined(spans(best)), negatives, ends)


def _joined(groups: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Groups of the same width are one."""
    sizes: dict[int, int] = {}
    for size, width in groups:
        sizes[width] = sizes.get(width, 0) + size
    return tuple((size, width) for width, size in sizes.items())


def drawn(ends: np.ndarray, shape: int | tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """Items drawn in proportion to the shares whose running sum is ``ends`` [I]; of the batch's ``rows`` alone, so that
    a run that goes on draws the same."""
    points = np.random.default_rng(rows).random(shape) * ends[-1]
    return np.minimum(np.searchsorted(ends, points, side="right"), len(ends) - 1)


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


class _Rows(grain.sources.RandomAccessDataSource):
    """Batch number -> the rows of that batch. Epoch e visits the examples in a permutation drawn from (seed, e); a
    batch may straddle two epochs, so every batch is full."""

    def __init__(self, examples: Examples, batch_size: int, num_batches: int, seed: int):
        self.examples, self.batch_size, self.num_batches, self.seed = examples, batch_size, num_batches, seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_batches

    def _permutation(self, epoch: int) -> np.ndarray:
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            cached = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.examples.size))
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
    """A Grain iterator over ``num_batches`` shuffled batches, ``chunk`` of them at a time, stacked: every array has the
    leading axes [chunk, batch size]. Prefetched by threads. Its state is checkpointable.

    gather: the batches; False: their rows, int32, for a look-up on the device. part: positions within a batch that this
    process gathers; None: all. Raises InputError if there is no example.
    """
    if examples.size == 0:
        raise InputError(
            "no training example is left: no user has enough train interactions; lower data.min_rating "
            "or change data.split"
        )
    found = grain.MapDataset.source(_Rows(examples, batch_size, num_batches, seed))
    if part is not None:
        found = found.map(lambda rows: rows[part])
    if gather:
        found = found.map(examples.gather)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(found.batch(chunk).to_iter_dataset(options))
