"""Measures the time and memory to prepare a data set of the shape of ML-25M.

    python benchmarks/data_scale.py [--rows=25_000_000] [--folder=FOLDER]

Generates 25 million ratings of 162,541 users and 59,047 of 62,423 films in the format of MovieLens
25M (once, into ``folder``), then reads, filters (5-core), indexes and splits them in a fresh
process. One line is printed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

USERS = 162_541
RATED = 59_047
FILMS = 62_423


def generate(folder: Path, rows: int) -> None:
    """Distinct user-film pairs, sorted by user as in the original; films have a long tail."""
    rng = np.random.default_rng(0)
    weight = 1 / (np.arange(1, USERS + 1) + 200.0)
    users = np.concatenate(
        [np.arange(USERS), rng.choice(USERS, int(rows * 1.35), p=weight / weight.sum())]
    )
    films = np.concatenate(
        [np.arange(USERS) % RATED, (RATED * rng.random(int(rows * 1.35)) ** 3).astype(np.int64)]
    )
    pairs = np.unique(users * RATED + films)
    pairs = np.sort(rng.choice(pairs, min(rows, len(pairs)), replace=False))
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "userId": pairs // RATED + 1,
            "movieId": pairs % RATED + 1,
            "rating": rng.integers(1, 11, len(pairs)) / 2,
            "timestamp": rng.integers(789_652_009, 1_574_327_703, len(pairs)),
        }
    ).write_csv(folder / "ratings.csv")
    numbers = np.arange(1, FILMS + 1)
    pl.DataFrame({"movieId": numbers}).with_columns(
        title=pl.format("Film, number {} (1995)", "movieId"), genres=pl.lit("Action|Drama")
    ).write_csv(folder / "movies.csv")


def measure(folder: Path) -> None:
    from kd_jax.data import dataset, readers

    start = time.perf_counter()
    raw = readers.read("movielens", {"path": str(folder)})
    read = time.perf_counter()
    data = dataset.build(raw, split="temporal", min_user_interactions=5, min_item_interactions=5)
    built = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{raw.interactions.height:,} ratings -> {data.num_users:,} users, {data.num_items:,}"
        f" items, {len(data.user):,} interactions: read {read - start:.1f} s, filter, index and"
        f" split {built - read:.1f} s, total {built - start:.1f} s, peak RSS {peak:.2f} GiB,"
        f" {len(os.sched_getaffinity(0))} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=25_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.gettempdir()) / f"kd_jax-scale-{args.rows}"
    if args.measure:
        return measure(folder)
    if not (folder / "movies.csv").exists():
        generate(folder, args.rows)
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, __file__, f"--rows={args.rows}", f"--folder={folder}", "--measure"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


if __name__ == "__main__":
    main()
