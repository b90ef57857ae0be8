"""The price of diverse lists: NDCG@10, distances within lists and coverage, by ``diversity``.

    python benchmarks/diversity.py --workdir=runs/quickstart

Lists of ten for every user of the test split with a train interaction, without the items of their
history, from the first seed of a student as it was trained (maximal marginal relevance,
``runtime.topk.diversified``).
Intra-list distance: the mean of 1 - cosine over the pairs of a list's item vectors. Coverage: the
share of the catalogue that is in at least one list.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.measuring import table
from benchmarks.vector_bits import trained_vectors
from kd_jax.core.logging import Log
from kd_jax.data.splits import TEST, TRAIN
from kd_jax.experiment.trained import open_workdir
from kd_jax.runtime import topk
from kd_jax.runtime.runtime import POOL
from kd_jax.serving.exporters.bundle import Vectors

K = 10
DIVERSITIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
DISCOUNTS = 1 / np.log2(np.arange(K) + 2)


def ndcg(found: np.ndarray, chosen: set[int]) -> float:
    gain = sum(DISCOUNTS[rank] for rank, item in enumerate(found.tolist()) if item in chosen)
    return float(gain / DISCOUNTS[: len(chosen)].sum())


def distance(vectors: np.ndarray) -> float:
    """The mean of 1 - cosine over the pairs of rows f32 [N, D]."""
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    total = np.square(rows.sum(0, dtype=np.float64)).sum() - np.square(rows, dtype=np.float64).sum()
    return float(1 - total / max(1, len(rows) * (len(rows) - 1)))


def measure(
    model: Vectors, users: np.ndarray, histories: list[np.ndarray], chosen: list[set[int]]
) -> list[tuple[float, float, float, float]]:
    """For each of DIVERSITIES: it, NDCG@10, intra-list distance and coverage."""
    vectors = model.items
    quality = np.zeros((len(DIVERSITIES), len(users)))
    apart = np.zeros_like(quality)
    listed = np.zeros((len(DIVERSITIES), len(vectors)), bool)
    for place, user in enumerate(users.tolist()):
        scores = vectors @ model.contexts[user] + model.bias
        scores[histories[place]] = -np.inf
        for row, diversity in enumerate(DIVERSITIES):
            found = topk.diversified(scores, vectors, K, diversity, POOL * K)
            quality[row, place] = ndcg(found, chosen[place])
            apart[row, place] = distance(vectors[found])
            listed[row, found] = True
    return list(zip(DIVERSITIES, quality.mean(1), apart.mean(1), listed.mean(1), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--role", default="distilled")
    options = parser.parse_args()
    workdir = options.workdir.expanduser()
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        models = open_workdir(workdir, log)
        model = next(trained_vectors(models, options.role))
    data = models.experiment.dataset
    (starts, items), (bounds, targets) = data.history(TEST), data.targets(TEST)
    trained = np.diff(data.targets(TRAIN)[0]) > 0
    users = np.flatnonzero((np.diff(bounds) > 0) & trained)
    histories = [items[starts[user] : starts[user + 1]] for user in users]
    chosen = [set(targets[bounds[user] : bounds[user + 1]].tolist()) for user in users]
    rows = measure(model, users, histories, chosen)
    print(f"{len(users):,} users, {data.num_items:,} items\n")
    head = ("diversity", "NDCG@10", "intra-list distance", "coverage")
    print(table(head, [(f"{d:g}", f"{n:.4f}", f"{a:.3f}", f"{c:.2%}") for d, n, a, c in rows]))


if __name__ == "__main__":
    main()
