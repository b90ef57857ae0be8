"""Measures the time and memory to prepare a data set of the shape of ML-25M.

    python benchmarks/data_scale.py [--rows=25_000_000] [--folder=FOLDER] [--rounds=1]
        [--before=../before]

Generates 25 million ratings of 162,541 users and 59,047 of 62,423 films in the format of MovieLens
25M (once, into ``folder``), then reads, filters (5-core), indexes and splits them in a fresh
process, and hashes the file as every run does. One line is printed each time. With ``--before``, a
checkout of an earlier version, both do it in turns, and the ratios of the medians are printed.
"""

import argparse
import os
import re
import resource
import statistics
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
    from kd_jax.data import dataset
    from kd_jax.data.readers import movielens

    start = time.perf_counter()
    raw = movielens.read(str(folder))
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


def hashing(folder: Path) -> float:
    """GB/s at which the content of the ratings is hashed."""
    from kd_jax.core.files import content_hash

    path = folder / "ratings.csv"
    content_hash(path)  # into the page cache
    began = time.perf_counter()
    content_hash(path)
    return path.stat().st_size / 1e9 / (time.perf_counter() - began)


def run(root: Path, folder: Path, rows: int) -> dict[str, float]:
    """The seconds and GiB of the build in ``root``, which prints its line."""
    script = root / "benchmarks/data_scale.py"
    command = [sys.executable, str(script), f"--rows={rows}", f"--folder={folder}", "--measure"]
    env = os.environ | {"PYTHONPATH": str(root)}
    line = subprocess.run(command, check=True, env=env, text=True, stdout=subprocess.PIPE).stdout
    print(f"{root.name}: {line.strip()}", flush=True)
    names = {"read": r"read ([\d.]+)", "total": r"total ([\d.]+)", "memory": r"RSS ([\d.]+)"}
    return {name: float(re.findall(pattern, line)[0]) for name, pattern in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=25_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.gettempdir()) / f"kd_jax-scale-{args.rows}"
    if args.measure:
        return measure(folder)
    if not (folder / "movies.csv").exists():
        generate(folder, args.rows)
    builds = [root.resolve() for root in (args.before, Path(__file__).parents[1]) if root]
    found = [[run(root, folder, args.rows) for root in builds] for _ in range(args.rounds)]
    for name in found[0][0] if args.before else ():
        before, now = (
            statistics.median(one[place][name] for one in found) for place in range(len(builds))
        )
        print(f"{name}: {now:.2f} against {before:.2f}, {now / before:.3f} times")
    sys.path.insert(0, str(builds[-1]))
    print(f"content of the file hashed at {hashing(folder):.2f} GB/s")


if __name__ == "__main__":
    main()
