"""Similar items: how often the users of an item choose one of its similar items next.

    python benchmarks/similar.py --workdir=runs/quickstart [--split=test]

For every user with train interactions: the ten items most similar to the newest item before the
split, without the user's other items, against what the user chose in the split (NDCG@10). Compared
are the exported student's similar items with several weights of the average user's score, the
cosine of the vectors, co-occurrence in train histories (counts and cosines), and popularity.
Coverage: the number of different items in all lists.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.vector_bits import trained_vectors
from kd_jax.core.logging import Log
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.experiment.trained import open_workdir
from kd_jax.runtime import topk
from kd_jax.runtime.runtime import Runtime, load

K = 10
WEIGHTS = (0.0, 0.025, 0.05, 0.1, 0.2)

Scores = Callable[[int], np.ndarray]  # item -> scores of all items


def measured(scores: Scores, histories: list[np.ndarray], targets: list[set[int]]) -> str:
    """NDCG@10, coverage."""
    values, listed = [], set[int]()
    discounts = 1 / np.log2(np.arange(K) + 2)
    for history, target in zip(histories, targets, strict=True):
        row = scores(int(history[-1])).astype(np.float32)
        row[history] = -np.inf
        found = topk.best(row, K)
        listed |= set(found.tolist())
        gain = sum(discounts[rank] for rank, item in enumerate(found.tolist()) if item in target)
        values.append(gain / discounts[: len(target)].sum())
    return f"{np.mean(values):.4f} | {len(listed):,}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    options = parser.parse_args()
    split = {"valid": VALID, "test": TEST}[options.split]
    workdir = options.workdir.expanduser()
    exported = load(workdir).export
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        models = open_workdir(workdir, log)
        # as it was trained: the export knows the interactions that are ranked here
        model = next(trained_vectors(models, exported.description["model"]))
    data = models.experiment.dataset
    runtime = Runtime(
        dataclasses.replace(exported, user_vectors=model.contexts, item_bias=model.bias)
    )
    histories, targets = [], []
    (starts, items), (ends, chosen) = data.history(split), data.targets(split)
    for user in range(data.num_users):
        history = items[starts[user] : starts[user + 1]]
        target = set(chosen[ends[user] : ends[user + 1]].tolist()) - set(history.tolist())
        if len(history) and target:
            histories.append(history)
            targets.append(target)
    shape = data.num_users, data.num_items
    first, trained = data.targets(TRAIN)  # all that the student was trained on
    matrix = scipy.sparse.csr_array((np.ones(len(trained)), trained, first), shape=shape)
    by_item = matrix.tocsc()

    def together(item: int) -> np.ndarray:
        """Users who have both items, [I]."""
        found = matrix.T @ by_item[:, [item]]
        return found.toarray()[:, 0]

    norms = np.sqrt(np.maximum(data.item_counts, 1))
    vectors = runtime.export.item_vectors
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    rivals: dict[str, Scores] = {
        "popularity": lambda item: data.item_counts.astype(float),
        "co-occurrence, counts": together,
        "co-occurrence, cosine": lambda item: together(item) / norms / norms[item],
        "cosine of the vectors": lambda item: unit @ unit[item],
    }
    for weight in WEIGHTS:
        rivals[f"kd_jax, weight {weight:g}"] = functools.partial(
            runtime.similarity, popularity=weight
        )
    print(f"{len(histories):,} users\n\n| similar items | NDCG@10 | coverage |\n|---|---|---|")
    for name, scores in rivals.items():
        print(f"| {name} | {measured(scores, histories, targets)} |")


if __name__ == "__main__":
    main()
