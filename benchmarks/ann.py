"""Compares approximate search of the ten best items with exact search: recall and queries/s.

    python benchmarks/ann.py [--workdir=runs/quickstart] [--items=1e6] \\
        [--kinds=trained,unbiased,gaussian] [--indexes=kd_jax]
    pip install usearch
    python benchmarks/ann.py --items=5e4 --kinds=trained --indexes=kd_jax,sphere,hnsw,usearch

**Vectors.** Kind ``trained`` is a smoothed bootstrap of the run's own vectors (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, section 16.4): an item is m + (x + h e - m) /
√(1 + h²), where x is a row [v, bias] drawn with replacement from those of the run, m their mean and
e normal with their covariance, so that mean and covariance are those of the run's; h is 0.5.
Queries are made in the same way from the run's user vectors that are not 0, and get a 1 in the end.
Kind ``unbiased`` is the same with biases of 0. Kind ``gaussian`` is the hard case: items, biases
and users are independent standard normal numbers, in which there is nothing for lists to find.

**Exact** search multiplies blocks of 64 queries with all items (NumPy, BLAS with all threads) and
takes the ten best by ``argpartition``, the rows of a block shared among as many threads. "exact,
group maxima" has ``kd_jax.runtime.topk.best`` in its place.

**Indexes.** ``kd_jax`` is that of the export format ``ann``; ``sphere`` the same with faiss's
default centroids for inner products; ``hnsw`` faiss's graph with 32 links; ``usearch`` usearch's
with 16 links, in float32. Recall@10 is measured on the first 512 queries. Rates are of batches and
all threads, measured in turns with exact search in one process, medians of three rounds; the ratio
is that to "exact, argpartition". A row marked * has the probes that the exporter selects, for a
recall of .99 on 512 other queries.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import faiss
import numpy as np

from benchmarks.measuring import number, table
from kd_jax import runtime
from kd_jax.runtime import topk
from kd_jax.serving.exporters import ann

K = 10
SMOOTHING = 0.5
JUDGED = 512  # queries
ROUNDS = 3
BUDGET = 1.5  # seconds of a round of an index
CORES = len(os.sched_getaffinity(0))
Search = Callable[[np.ndarray], np.ndarray]  # queries [Q, D + 1] -> places [Q, 10]


def smoothed(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` rows that are distributed as ``rows`` are, f32."""
    width = rows.shape[1]
    mean, covariance = rows.mean(0), np.cov(rows.T) + 1e-9 * np.eye(width)
    noise = rng.standard_normal((count, width), np.float32)
    found = rows[rng.integers(len(rows), size=count)] - mean
    found += SMOOTHING * noise @ np.linalg.cholesky(covariance).T.astype(np.float32)
    return (found / np.float32(np.sqrt(1 + SMOOTHING**2)) + mean).astype(np.float32)


def vectors(kind: str, workdir: Path, count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Items [I, D + 1] and queries [Q, D + 1]."""
    rng, export = np.random.default_rng(0), runtime.load(workdir).export
    if kind == "gaussian":
        width = export.item_vectors.shape[1]
        items = rng.standard_normal((count, width + 1), np.float32)
        return items, ann.as_queries(rng.standard_normal((queries, width), np.float32))
    trained = export.user_vectors[export.user_vectors.any(1)]
    items = smoothed(ann.with_bias(export.item_vectors, export.item_bias), count, rng)
    if kind == "unbiased":
        items[:, -1] = 0
    return items, ann.as_queries(smoothed(trained, queries, rng))


def exact(items: np.ndarray, best: Callable[[np.ndarray], np.ndarray]) -> Search:
    """Exact search; best: scores [N, I] to places [N, 10]."""
    pool = ThreadPoolExecutor(CORES)

    def search(queries: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []
        for start in range(0, len(queries), 64):
            scores = queries[start : start + 64] @ items.T
            found += pool.map(best, np.array_split(scores, CORES))
        return np.concatenate(found)

    return search


def partition(scores: np.ndarray) -> np.ndarray:
    return np.argpartition(scores, -K, axis=1)[:, -K:]


def group_maxima(scores: np.ndarray) -> np.ndarray:
    return np.stack([topk.best(row, K) for row in scores])


def sphere(items: np.ndarray) -> Any:
    count, width = items.shape
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(width), width, round(np.sqrt(count)), faiss.METRIC_INNER_PRODUCT
    )
    index.cp.max_points_per_centroid = 2 * ann.PER_LIST
    index.train(items)
    index.add(items)
    return index


def hnsw(items: np.ndarray) -> Any:
    index = faiss.IndexHNSWFlat(items.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(items)
    return index


def usearch(items: np.ndarray) -> Any:
    from usearch.index import Index

    index = Index(ndim=items.shape[1], metric="ip", dtype="f32", connectivity=16)
    index.add(np.arange(len(items)), items, threads=CORES)
    return index


# Name -> how it is built, its parameter of a search, and the values that are tried.
PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
INDEXES: dict[str, tuple[Callable[..., Any], str, tuple[int, ...]]] = {
    "kd_jax": (ann.build, "nprobe", PROBES),
    "sphere": (sphere, "nprobe", PROBES),
    "hnsw": (hnsw, "efSearch", (32, 64, 128, 256)),
    "usearch": (usearch, "expansion_search", (32, 64, 128, 256)),
}


def searching(index: Any, field: str, value: int) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        setattr(index.hnsw if field == "efSearch" else index, field, value)
        if field == "expansion_search":
            return index.search(queries, K, threads=CORES).keys.astype(np.int64)
        return index.search(queries, K)[1]

    return search


def size_of(index: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        if hasattr(index, "nlist") or hasattr(index, "hnsw"):
            ann.write_index(path, index)
        else:
            index.save(str(path))
        return path.stat().st_size


def rate(search: Search, queries: np.ndarray) -> float:
    start = time.perf_counter()
    search(queries)
    return len(queries) / (time.perf_counter() - start)


def in_turns(searches: list[Search], queries: np.ndarray) -> list[float]:
    """Queries/s, medians of the rounds; the first searches are exact."""
    batch = [min(len(queries), max(64, int(BUDGET * rate(s, queries[:64])))) for s in searches]
    rounds = [
        [rate(s, queries[:n]) for s, n in zip(searches, batch, strict=True)] for _ in range(ROUNDS)
    ]
    return np.median(rounds, axis=0).tolist()


def measured(kind: str, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table."""
    items, queries = vectors(kind, options.workdir, options.items, 8192)
    judged, others = queries[:JUDGED], queries[JUDGED : 2 * JUDGED]
    base = exact(items, partition)
    best = base(judged)
    print(f"{kind}: {len(np.unique(best)):,} different items in {JUDGED} exact lists\n")
    rows: list[list[str]] = []
    searches = [base, exact(items, group_maxima)]
    for name in ("argpartition", "group maxima"):
        rows.append([f"{kind}: exact, {name}", "", "", f"{items.nbytes / 1e6:.0f}", "1.0000"])
    for name in options.indexes:
        build, field, values = INDEXES[name]
        start = time.perf_counter()
        index = build(items)
        seconds = time.perf_counter() - start
        size, chosen = size_of(index), 0
        if name == "kd_jax":
            ann.tune(index, items, others, 0.99)
            chosen = index.nprobe
        fixed = f"{index.nlist} lists, " if field == "nprobe" else ""
        for value in sorted({*values, chosen} - {0}):
            search = searching(index, field, value)
            recall = ann.recall_of(search(judged), best)
            mark = " *" if value == chosen else ""
            what = f"{fixed}{field}={value}{mark}"
            row = [f"{kind}: {name}", what, f"{seconds:.0f}", f"{size / 1e6:.0f}", f"{recall:.4f}"]
            rows.append(row)
            searches.append(search)
            print(" | ".join(row), file=sys.stderr, flush=True)
            if recall > 0.999:
                break
    rates = in_turns(searches, queries)
    for row, found in zip(rows, rates, strict=True):
        row += [f"{found:,.0f}", f"{found / rates[0]:.1f}"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--items", type=number, default=1_000_000)
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=["trained", "unbiased", "gaussian"]
    )
    parser.add_argument("--indexes", type=lambda text: text.split(","), default=["kd_jax"])
    options = parser.parse_args()
    faiss.omp_set_num_threads(CORES)
    head = ["vectors: index", "search", "build s", "MB", "recall@10", "queries/s", "ratio"]
    rows = [row for kind in options.kinds for row in measured(kind, options)]
    print(
        f"{options.items:,} items, {CORES} cores, faiss {faiss.__version__}\n\n{table(head, rows)}"
    )


if __name__ == "__main__":
    main()
