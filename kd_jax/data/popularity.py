"""Recency-weighted popularity of every item, at the end of training and at earlier times.

Under a temporal split the recent popularity of an item predicts better than its total. A model that
is trained on snapshots of the past, each with the counts of its own time, learns how to weigh them;
at inference it reads the last snapshot.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64

from kd_jax.core.errors import InputError
from kd_jax.data.dataset import Dataset
from kd_jax.data.prepared.folder import PreparedDataset

SCALES = (1.0, 3.0, 7.0, 21.0, 60.0, np.inf)  # days: age at which an interaction counts 1/e
_FLOOR = 0.03  # interactions: keeps the log finite, and is small against one recent interaction


def decayed_counts(dataset: Dataset, *days: float) -> np.ndarray:
    """Train interactions per item, weighted by exp(-age / days) at the end of training.

    Returns f64 [S, I], a row for each of the S ``days``, in two passes over the data.
    """
    parts = dataset.parts if isinstance(dataset, PreparedDataset) else lambda: iter([dataset])
    end = max(part.timestamp[part.split == 0].max(initial=np.iinfo(np.int64).min)
              for part in parts())  # fmt: skip
    counts = np.zeros((len(days), dataset.num_items))
    for part in parts():
        train = part.split == 0
        age = (end - part.timestamp[train]) / dataset.day
        for row, scale in zip(counts, days, strict=True):
            row += np.bincount(part.item[train], np.exp(-age / scale), minlength=len(row))
    return counts


@dataclasses.dataclass(frozen=True)
class Trends:
    """Popularity features of all items at S times.

    times: i64 [S], in ``Dataset.time_unit``, the last being the end of training. features: f32
    [S, I, K], where the K features are the scaled log of 1 + count / floor for each of ``SCALES``,
    whether the item is new (no interaction yet), and a constant.
    """

    times: Int64[np.ndarray, " S"]
    features: Float32[np.ndarray, "S I K"]


def trends(dataset: Dataset, *, snapshots: int = 128, days: float = 1.0) -> Trends:
    """Popularity at the newest ``snapshots`` times, ``days`` apart.

    Only train interactions strictly before each time count. Raises InputError for fewer than two
    snapshots, or for days <= 0.
    """
    if snapshots < 2 or not days > 0:
        raise InputError(
            f"teacher.popularity.snapshots={snapshots}, teacher.popularity.snapshot_days={days}:"
            " give at least 2 and more"
            " than 0"
        )
    train = dataset.split == 0
    time = dataset.timestamp[train]
    order = np.argsort(time, kind="stable")
    time = time[order]
    item = dataset.item[train][order]
    end = int(time[-1]) + 1
    count = int(min(snapshots - 1, (end - time[0]) // (dataset.day * days)))
    times = np.append(end - np.arange(count, 0, -1) * int(dataset.day * days), end).astype(np.int64)
    stops = np.searchsorted(time, times)
    scales = np.array(SCALES) * dataset.day
    counts = np.zeros((dataset.num_items, len(SCALES)))
    features = np.empty((len(times), dataset.num_items, len(SCALES) + 2), np.float32)
    start = 0
    now = times[0]
    for row, (moment, stop) in enumerate(zip(times, stops, strict=True)):
        counts *= np.exp(-(moment - now) / scales)[None]
        worth = np.exp(-(moment - time[start:stop])[:, None] / scales[None])
        for scale in range(len(SCALES)):
            counts[:, scale] += np.bincount(
                item[start:stop], worth[:, scale], minlength=dataset.num_items
            )
        features[row, :, :-2] = 0.3 * np.log1p(counts / _FLOOR)  # 0.3: about unit variance
        features[row, :, -2] = counts[:, -1] < 0.5
        features[row, :, -1] = 1.0
        start = stop
        now = moment
    return Trends(times, features)
