"""implicit as a contestant of ``peers.py``: its native CPU solvers and threaded top-k.

    OPENBLAS_NUM_THREADS=1 python benchmarks/peer_implicit.py als|bpr --data=SPLIT.npz --threads=2

implicit has threads of its own and warns if BLAS has, too; hence the variable, which ``peers.py``
sets.
"""

from __future__ import annotations

import time

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from peer_common import K, Split, arguments, best_of, read_split, report
from scipy.sparse import csr_matrix  # implicit takes nothing else

MODELS = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}
ITERATIONS = {"als": 15, "bpr": 100}  # implicit's defaults
FACTORS = 128


def matrix(split: Split, indptr: np.ndarray, items: np.ndarray) -> csr_matrix:
    ones = np.ones(len(items), np.float32)
    return csr_matrix(
        (ones, items, indptr), shape=(split.num_users, split.num_items)
    ).sorted_indices()


def main() -> None:
    options = arguments(__doc__, tuple(MODELS), epochs=0)
    split = read_split(options.data)
    train = matrix(split, *split.fit())
    seen = matrix(split, *split.seen())
    iterations = options.epochs or ITERATIONS[options.model]

    def build(iterations: int):
        return MODELS[options.model](
            factors=FACTORS,
            iterations=iterations,
            num_threads=options.threads,
            random_state=0,
            use_gpu=False,
        )

    build(1).fit(train, show_progress=False)  # loads libraries, starts threads
    times: list[float] = []
    started = 0.0

    def finished(*_: object) -> None:
        nonlocal started
        now = time.perf_counter()
        times.append(now - started)
        started = now

    model = build(iterations)
    started = (
        time.perf_counter()
    )  # the first iteration's time includes the transposed matrix and the first factors
    model.fit(train, show_progress=False, callback=finished)
    users = np.arange(split.num_users)
    rank_s, (top, scores) = best_of(
        3, lambda: model.recommend(users, seen, N=K, filter_already_liked_items=True)
    )
    if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
        raise ValueError("scores that are not finite, or not in order")
    report(
        settings=f"{FACTORS} factors, {iterations} iterations",
        times=times,
        interactions=train.nnz,
        rank_s=rank_s,
        top=top,
        split=split,
        packages="implicit numpy scipy",
    )


if __name__ == "__main__":
    main()
