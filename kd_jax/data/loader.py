"""From a data set to batches: training examples as flat tables, shuffled and batched by Grain.

Grain iterates over *batches*, each gathered with a few vectorised look-ups, so no Python runs per row. The order
is a pure function of (seed, position): the iterator's state is one number, which the checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int

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
    """``size`` training examples; ``gather(rows)`` builds the batch of those rows (see ``kd_jax/types.py``).

    draw: picks the rows of a batch, (rng, batch size) -> rows; None: every example once per epoch.
    """

    size: int
    gather: Callable[[np.ndarray], Batch]
    draw: Callable[[np.random.Generator, int], np.ndarray] | None = None


def last_items(indptr: np.ndarray, values: np.ndarray, length: int, drop: int = 0) -> Int[np.ndarray, "U L"]:
    """Each row's newest ``length`` values before its last ``drop``, right-aligned, padded on the left with PAD."""
    stop = indptr[1:, None] - drop
    index = stop + np.arange(-length, 0)[None]
    valid = index >= indptr[:-1, None]
    return np.where(valid, values[np.maximum(index, 0)] if len(values) else PAD, PAD).astype(np.int32)


def recency_weights(age: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Target shares [U, M] that sum to 1 and their totals [U] before that: exp(-age / decay); 0 where age is inf."""
    if not decay > 0:
        raise InputError(f"student.decay={decay} must be positive")
    weights = np.exp(-age / decay)
    totals = weights.sum(1)
    return (weights / np.maximum(totals, 1e-30)[:, None]).astype(np.float32), totals


def target_ages(dataset: Dataset, indptr: np.ndarray, width: int, unit: str) -> np.ndarray:
    """How old each of a user's newest ``width`` train items is, right-aligned, inf where there is none; [U, width].

    unit: 'interactions' (0 for the user's newest) or 'days' (before the end of training, whoever acted last).
    """
    if unit == "interactions":
        age = np.broadcast_to(np.arange(width - 1.0, -1, -1)[None], (len(indptr) - 1, width))
        return np.where(age < np.diff(indptr)[:, None], age, np.inf)
    if unit != "days":
        raise InputError(f"student.decay_unit={unit!r} is unknown; known: interactions, days")
    time = dataset.timestamp[dataset.split == TRAIN]
    index = indptr[1:, None] + np.arange(-width, 0)[None]
    valid = index >= indptr[:-1, None]
    return np.where(valid, (time.max() - time[np.maximum(index, 0)]) / DAY, np.inf)


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
    targets = last_items(indptr, items, width)
    shares, totals = recency_weights(target_ages(dataset, indptr, width, decay_unit), decay)
    windows = last_items(indptr, items, history)
    users = np.flatnonzero(counts).astype(np.int32)
    weights = (totals**user_power / np.mean(totals[users] ** user_power)).astype(np.float32)

    def gather(rows: np.ndarray) -> Batch:
        user = users[rows]
        return {
            "user": user,
            "history": windows[user],
            "targets": targets[user][:, None],
            "target_weights": shares[user][:, None],
            "weights": weights[user][:, None],
            "context_row": len(counts) + user,
            "row": user,
        }

    return Examples(len(users), gather)


def sequence_examples(dataset: Dataset, *, history: int, positions: str) -> Examples:
    """One example per user with two or more train items: the newest window, and the next item as the target.

    positions: 'all', a target after every item of the window [B, L, 1], or 'last', after the whole of it [B, 1, 1].
    """
    indptr, items = dataset.targets(TRAIN)
    users = np.flatnonzero(np.diff(indptr) >= 2).astype(np.int32)
    inputs = last_items(indptr, items, history, drop=1)
    targets = np.where(inputs == PAD, PAD, last_items(indptr, items, history))
    if positions == "last":
        targets = targets[:, -1:]

    def gather(rows: np.ndarray) -> Batch:
        user = users[rows]
        target = targets[user][..., None]
        return {
            "user": user,
            "history": inputs[user],
            "targets": target,
            "target_weights": np.ones(target.shape, np.float32),
            "weights": (target[..., 0] != PAD).astype(np.float32),
            "context_row": user,
            "row": user,
        }

    return Examples(len(users), gather)


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

    def gather(rows: np.ndarray) -> Batch:
        border, stop = borders[rows], stops[rows]
        past = border[:, None] + np.arange(-history, 0)[None]
        future = border[:, None] + np.arange(max_targets)[None]
        known, wanted = past >= indptr[users[rows]][:, None], future < stop[:, None]
        count = (stop - border).astype(np.float32)
        return {
            "user": users[rows].astype(np.int32),
            "history": np.where(known, items[np.maximum(past, 0)], PAD).astype(np.int32),
            "targets": np.where(wanted, items[np.minimum(future, len(items) - 1)], PAD).astype(np.int32)[:, None],
            "target_weights": (wanted / count[:, None]).astype(np.float32)[:, None],
            "weights": (count**user_power)[:, None],
            "snapshot": snapshots[rows].astype(np.int32),
            "row": rows.astype(np.int32),
        }

    return Examples(len(snapshots), gather, draw)


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

    def gather(chosen: np.ndarray) -> Batch:
        row = rows[chosen]
        user = dataset.user[row]
        index = before[row][:, None] + np.arange(-history, 0)[None]
        valid = index >= before[dataset.indptr[user]][:, None]
        index = np.where(valid, index, 0)
        target = classes[row][:, None, None].astype(np.int32)
        return {
            "user": user,
            "item": dataset.item[row],
            "history": np.where(valid, items[index], PAD).astype(np.int32),
            "history_class": np.where(valid, rated[index], PAD).astype(np.int32),
            "targets": target,
            "target_weights": np.ones(target.shape, np.float32),
            "weights": np.ones((len(row), 1), np.float32),
            "row": chosen.astype(np.int32),
            "interaction": row,
        }

    return Examples(len(rows), gather)


def with_live_items(examples: Examples, batch_size: int, num_items: int) -> Examples:
    """Adds ``live_items`` int32 [K]: the distinct items of the batch, which a language model in training encodes."""

    def gather(rows: np.ndarray) -> Batch:
        batch = examples.gather(rows)
        size = min(num_items, batch_size * (batch["history"].shape[1] + batch["targets"][0].size))
        size = -(-size // batch_size) * batch_size  # divides over devices wherever the batch does
        keys = ("history", "item") if "item" in batch else ("history", "targets")
        found = np.unique(np.concatenate([batch[key].ravel() for key in keys]))
        found = found[found != PAD]
        return batch | {"live_items": np.pad(found, (0, size - len(found)), constant_values=PAD).astype(np.int32)}

    return dataclasses.replace(examples, gather=gather)


class _Batches(grain.sources.RandomAccessDataSource):
    """Batch number -> batch. Epoch e visits the examples in a permutation drawn from (seed, e); a batch may straddle
    two epochs, so every batch is full."""

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

    def __getitem__(self, index) -> Batch:
        if self.examples.draw is not None:
            rng = np.random.default_rng((self.seed, int(index)))
            return self.examples.gather(self.examples.draw(rng, self.batch_size))
        position = int(index) * self.batch_size + np.arange(self.batch_size)
        epochs, within = np.divmod(position, self.examples.size)
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation(int(epoch))[within[here]]
        return self.examples.gather(rows)


def batches(examples: Examples, *, batch_size: int, num_batches: int, seed: int) -> grain.DatasetIterator:
    """A Grain iterator of ``num_batches`` shuffled batches, prefetched by threads. Its state is checkpointable.

    Raises InputError if there is no example.
    """
    if examples.size == 0:
        raise InputError(
            "no training example is left: no user has enough train interactions; lower data.min_rating "
            "or change data.split"
        )
    source = _Batches(examples, batch_size, num_batches, seed)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
