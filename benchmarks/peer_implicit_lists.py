"""implicit's top-k lists of all users, as the peer of ``serving_lists.py``.

    python benchmarks/peer_implicit_lists.py --data=FOLDER --threads=2

It runs in the environment of implicit (``peers.py`` describes how to make it). The folder has
``interactions.npz``; alternating least squares is fitted to it, and its factors are written to
``factors.npz`` beside it. Then every line on stdin ranks all users once; the seconds, and those of
CPU time, are a line on stdout. The lists of the last pass are in ``lists.npz`` when stdin ends.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

K = 10


def interactions(path: Path) -> csr_matrix:
    """Users x items, of arrays indptr and items and the number num_items."""
    with np.load(path) as file:
        indptr, items, columns = file["indptr"], file["items"], int(file["num_items"])
    ones = np.ones(len(items), np.float32)
    return csr_matrix((ones, items, indptr), shape=(len(indptr) - 1, columns)).sorted_indices()


def fitted(matrix: csr_matrix, factors: int, threads: int) -> AlternatingLeastSquares:
    model = AlternatingLeastSquares(
        factors=factors, num_threads=threads, random_state=0, use_gpu=False
    )
    model.fit(matrix, show_progress=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--factors", type=int, default=64)
    options = parser.parse_args()
    matrix = interactions(options.data / "interactions.npz")
    model = fitted(matrix, options.factors, options.threads)
    np.savez(options.data / "factors.npz", users=model.user_factors, items=model.item_factors)
    users = np.arange(matrix.shape[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        lists, scores = model.recommend(users, matrix, N=K, filter_already_liked_items=True)
        print(time.perf_counter() - began, time.process_time() - cpu, flush=True)
    np.savez(options.data / "lists.npz", lists=lists, scores=scores)


if __name__ == "__main__":
    main()
