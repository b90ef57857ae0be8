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
from kd_jax.data.text import history_text
from kd_jax.errors import InputError
from kd_jax.types import PAD, Batch

TRAIN, VALID, TEST = 0, 1, 2
MAX_TARGETS = 256  # the newest targets of a user that matrix factorisation learns from


@dataclasses.dataclass(frozen=True)
class Examples:
    """``size`` training examples; ``gather(rows)`` builds the batch of those rows (see ``kd_jax/types.py``)."""

    size: int
    gather: Callable[[np.ndarray], Batch]


def last_items(indptr: np.ndarray, values: np.ndarray, length: int, drop: int = 0) -> Int[np.ndarray, "U L"]:
    """Each row's newest ``length`` values before its last ``drop``, right-aligned, padded on the left with PAD."""
    stop = indptr[1:, None] - drop
    index = stop + np.arange(-length, 0)[None]
    valid = index >= indptr[:-1, None]
    return np.where(valid, values[np.maximum(index, 0)] if len(values) else PAD, PAD).astype(np.int32)


def recency_weights(counts: np.ndarray, width: int, decay: float) -> np.ndarray:
    """Target shares [U, M], right-aligned like ``last_items``: exp(-age / decay), normalised; age 0 is the newest.

    decay: in interactions; ``inf`` weighs all equally.
    """
    age = np.arange(width - 1, -1, -1)[None]
    weights = np.where(age < counts[:, None], np.exp(-age / decay), 0.0)
    return (weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)).astype(np.float32)


def history_texts(dataset: Dataset, texts: Sequence[str], history: int) -> list[str]:
    """Histories as texts, U of each kind: all but the last train item, the train items, train and valid items.

    ``context_row`` = kind * U + user, where kind is the split whose targets follow (0: the last train item).
    """
    written: list[str] = []
    for split, drop in ((VALID, 1), (VALID, 0), (TEST, 0)):
        for row in last_items(*dataset.history(split), history, drop=drop):
            written.append(history_text([texts[item] for item in row if item != PAD], history))
    return written


def user_examples(dataset: Dataset, *, history: int, decay: float, user_power: float) -> Examples:
    """One example per user: all train items are targets of the user's one context, the newest the most.

    user_power: an example weighs (number of train items) ** user_power.
    """
    indptr, items = dataset.targets(TRAIN)
    counts = np.diff(indptr)
    width = int(min(MAX_TARGETS, counts.max(initial=1)))
    targets = last_items(indptr, items, width)
    shares = recency_weights(counts, width, decay)
    windows = last_items(indptr, items, history)
    users = np.flatnonzero(counts).astype(np.int32)
    weights = (counts**user_power / np.mean(counts[users] ** user_power)).astype(np.float32)

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


def rate_examples(dataset: Dataset, classes: np.ndarray, split: int, *, history: int) -> Examples:
    """One example per interaction of ``split``: user, item and the class of its rating (int [N], all interactions).

    The history holds what the user did before that interaction, and of earlier splits only (for training
    examples: of the training split), so neither the target nor anything later is in it.
    """
    context = dataset.split < max(split, 1)
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
        keys = ("history", "item") if "item" in batch else ("history", "targets")
        found = np.unique(np.concatenate([batch[key].ravel() for key in keys]))
        found = found[found != PAD]
        return batch | {"live_items": np.pad(found, (0, size - len(found)), constant_values=PAD).astype(np.int32)}

    return Examples(examples.size, gather)


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
        raise InputError("no training example is left: no user has enough train interactions; lower data.min_rating "
                         "or change data.split")
    source = _Batches(examples, batch_size, num_batches, seed)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
