"""A faiss index of the items, for approximate search of the best ones of a user.

An item is the vector [v, bias] and a user the query [u, 1], so that their inner product is the
score. The index is an inverted file (Jégou, Douze and Schmid, "Product Quantization for Nearest
Neighbor Search", TPAMI 2011) of vectors in float32: k-means puts every item in the list of its
nearest centroid, and a search reads the lists of the ``probes`` centroids of greatest inner product
with the query. Items with a great bias are thereby in lists of their own, which most users' best
items come from. faiss's default for inner products, centroids on the unit sphere, mixes items of
all biases and needs many more lists for the same recall (docs/compression.md).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, write_json
from kd_jax.serving.exporters.bundle import Bundle
from kd_jax.serving.exporters.packages import needed

INDEX, DESCRIPTION = "items.faiss", "items.json"
K = 10  # of the recall that selects ``probes``
USERS = 512  # that it is measured on
USERS_AT_ONCE = 64
PER_LIST = 39  # items per centroid below which faiss warns of too few
ITERATIONS = 10


def check(recall: float, lists: int) -> None:
    """Raises InputError if faiss is not installed, or for a value out of range."""
    needed("ann", "faiss", "faiss-cpu")
    if not 0 < recall <= 1:
        raise InputError(f"export.ann.recall={recall!r} must be above 0 and at most 1")
    if lists < 0:
        raise InputError(f"export.ann.lists={lists!r} must be 0 (the default) or more")


def write(bundle: Bundle, folder: Path, recall: float = 0.99, lists: int = 0) -> tuple[Path, ...]:
    """Writes ``items.faiss`` and ``items.json``; returns the files written.

    The places in the index are rows of 'items', the ids in ``items.json``, which also has the
    parameters, and the recall measured with them. Nothing is written for a model with scores that
    do not factorise.

    recall: of the ten best items, the least that is sought on up to 512 of the users; the index has
    the fewest probes, a power of 2, that reach it. lists: number of centroids; 0: the square root
    of the number of items. Raises InputError for vectors that are not finite.
    """
    found, dataset = bundle.vectors, bundle.dataset
    if found is None:
        return ()
    items, queries = with_bias(found.items, found.bias), as_queries(found.contexts)
    if not (np.isfinite(items).all() and np.isfinite(queries).all()):
        raise InputError(
            f"{folder / INDEX}: vectors are not finite; lower the learning rate and train again"
        )
    index = build(items, lists)
    sample = queries[:: math.ceil(len(queries) / USERS)]
    reached = tune(index, items, sample, recall)
    write_index(folder / INDEX, index)
    description = {
        "dim": items.shape[1] - 1,
        "lists": index.nlist,
        "probes": index.nprobe,
        f"recall@{K}": reached,
        "recall_users": len(sample),
        "items": dataset.item_ids.to_list(),
    }
    write_json(folder / DESCRIPTION, description)
    return folder / INDEX, folder / DESCRIPTION


def with_bias(vectors: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Items as the index has them: [v, bias], f32 [I, D + 1]."""
    return np.concatenate([vectors, bias[:, None]], axis=1).astype(np.float32)


def as_queries(users: np.ndarray) -> np.ndarray:
    """Users as the index is asked: [u, 1], f32 [U, D + 1]."""
    return with_bias(users, np.ones(len(users)))


def build(items: np.ndarray, lists: int = 0) -> Any:
    """A faiss index of items f32 [I, D + 1] with inner products as scores."""
    import faiss

    count, width = items.shape
    fits = max(1, count // PER_LIST)
    nlist = min(lists or max(1, round(math.sqrt(count))), fits)
    nearest = faiss.IndexFlatL2(width)
    index: Any = faiss.IndexIVFFlat(nearest, width, nlist, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = False
    index.cp.niter = ITERATIONS
    index.cp.min_points_per_centroid = 1  # fewer only with a single list
    index.cp.max_points_per_centroid = 2 * PER_LIST
    index.train(items)
    index.add(items)
    # From here on lists are chosen by the inner product; the index does not keep it alive itself.
    greatest = faiss.IndexFlatIP(width)
    greatest.add(nearest.reconstruct_n(0, nlist))
    index.quantizer = greatest
    index.referenced_objects = (greatest,)
    return index


def tune(index: Any, items: np.ndarray, queries: np.ndarray, recall: float) -> float:
    """Sets the fewest probes, a power of 2 or all lists, that reach ``recall``; returns theirs."""
    best = exact(items, queries, min(K, len(items)))
    probes = 1
    while True:
        index.nprobe = min(probes, index.nlist)
        found = index.search(queries, best.shape[1])[1]
        reached = recall_of(found, best)
        if reached >= recall or index.nprobe == index.nlist:
            return reached
        probes *= 2


def exact(items: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The places int64 [Q, k] of the k greatest inner products, in any order."""
    parts = [
        np.argpartition(queries[start : start + USERS_AT_ONCE] @ items.T, -k, axis=1)[:, -k:]
        for start in range(0, len(queries), USERS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, k), np.int64)


def recall_of(found: np.ndarray, best: np.ndarray) -> float:
    """The share of ``best`` [Q, k] that is in the same row of ``found`` [Q, n]."""
    return float((best[:, :, None] == found[:, None, :]).any(axis=2).mean())


def write_index(path: Path, index: Any) -> None:
    """Writes a faiss index atomically."""
    import faiss

    with atomic(path) as temporary:
        faiss.write_index(index, str(temporary))
