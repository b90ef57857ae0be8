"""Prepared data: time and memory of the maker by size, and the speed of reading.

python benchmarks/prepared.py --rows=10,30,100 --folder=/tmp/prepared-bench
python benchmarks/prepared.py --read --folder=/tmp/prepared-bench

Synthetic interactions: users and items drawn by Zipf-like weights, the rarest of which have too few
for the 5-core, times at random. A size is in millions of rows; each is written, then prepared in a
process of its own, which prints the seconds, processor seconds and peak memory (resident) of each
stage. --discard removes a size before the next.

--read compares batches of SASRec's and MF's examples that are gathered from shards with those that
are gathered from memory, in turns.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

CHUNK = 2_000_000


def draw(rng: np.random.Generator, number: int, size: int, head: float) -> np.ndarray:
    """Of ``number`` ids, more the first ones (all the more the smaller ``head``), few the last."""
    place = 1 - (1 - rng.random(size)) ** 0.6
    return (number * head * ((1 + 1 / head) ** place - 1)).astype(np.int64)


def write(folder: Path, millions: int) -> None:
    """Interactions in files of two million rows: 50 per user, and 500 per item."""
    folder.mkdir(parents=True)
    rows = millions * 1_000_000
    users, items = rows // 50, rows // 500
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, CHUNK)):
        size = min(CHUNK, rows - start)
        frame = pl.DataFrame(
            {
                "user": draw(rng, users, size, 0.1),
                "item": draw(rng, items, size, 0.02),
                "timestamp": rng.integers(1_500_000_000, 1_600_000_000, size),
            }
        )
        frame.write_parquet(folder / f"part-{number}.parquet", statistics=False)
    table = pl.DataFrame({"item": np.arange(items), "title": [f"item {n}" for n in range(items)]})
    table.write_parquet(folder.with_suffix(".items.parquet"))


def make(folder: Path, millions: int, discard: bool) -> None:
    """Prepares one size in a fresh process; prints its stages and its peak."""
    source = folder / f"source-{millions}"
    if not source.exists():
        write(source, millions)
    command = [sys.executable, __file__, f"--one={millions}", f"--folder={folder}"]
    subprocess.run(command, check=True)
    if discard:
        shutil.rmtree(source)
        source.with_suffix(".items.parquet").unlink()
        shutil.rmtree(folder / f"prepared-{millions}")


def source_options(folder: Path, millions: int) -> dict[str, Any]:
    """The options of ``kd_jax.data.prepare`` for a source that ``write`` has written."""
    source = folder / f"source-{millions}"
    return {
        "interactions": str(source), "items": str(source.with_suffix(".items.parquet")),
        "rating": "", "split": "leave_one_out", "min_interactions": 5, "min_item_interactions": 5,
    }  # fmt: skip


class Stages:
    """Prints what a maker notes, with the processor seconds and peak memory of that stage."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.cpu = 0.0
        self.start()

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        self.cpu = time.process_time()

    def __call__(self, line: str) -> None:
        status = Path("/proc/self/status").read_text().split("\n")
        found = {key: value for key, _, value in (row.partition(":") for row in status)}
        peak = int(found["VmHWM"].split()[0]) / 2**20
        self.peak = max(self.peak, peak)
        cpu = time.process_time() - self.cpu
        print(f"{line}: processor {cpu:.1f} s, peak {peak:.2f} GiB", flush=True)
        self.start()


def one(folder: Path, millions: int) -> None:
    from kd_jax.data.prepared import streaming
    from kd_jax.data.prepared.options import PrepareOptions

    options = PrepareOptions(**source_options(folder, millions))
    began, cpu, stages = time.perf_counter(), time.process_time(), Stages()
    streaming.prepare(options, folder / f"prepared-{millions}", note=stages)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{millions}M rows: {seconds:.1f} s, processor {cpu:.1f} s, peak {stages.peak:.2f} GiB")


def read(folder: Path, batch_size: int = 1024, steps: int = 300, rounds: int = 3) -> None:
    """Batches a second, from shards and from memory, in turns."""
    from kd_jax.data.examples.base import batches
    from kd_jax.data.examples.sequence import sequence_examples
    from kd_jax.data.examples.shards import shard_examples
    from kd_jax.data.examples.user import user_examples
    from kd_jax.data.prepared.folder import open_folder

    path = sorted(folder.glob("prepared-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    shards, memory = open_folder(path, 1000), open_folder(path, 0)
    kinds = {
        "sasrec": (
            shard_examples(shards, history=50, example_kind="all"),
            sequence_examples(memory, history=50, example_kind="all"),
        ),
        "mf": (
            shard_examples(shards, history=50, example_kind="user", decay=20.0),
            user_examples(memory, history=50, decay=20.0),
        ),
    }
    for name, (mine, theirs) in kinds.items():
        speeds: list[list[float]] = [[], []]
        for turn in range(rounds):
            for place, examples in enumerate((mine, theirs)):
                data = batches(examples, batch_size=batch_size, num_batches=10**6, seed=turn)
                next(data)
                began = time.perf_counter()
                for _ in range(steps):
                    next(data)
                speeds[place].append(steps / (time.perf_counter() - began))
        one, other = (float(np.median(values)) for values in speeds)
        print(f"{name} ({path.name}): {one:.0f} batches/s from shards, {other:.0f} from memory,"
              f" {one / other:.2f} of it")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10,30,100", help="millions of rows")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--discard", action="store_true", help="remove each size after its run")
    parser.add_argument("--one", type=int)
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    if options.read:
        read(options.folder)
    elif options.one:
        one(options.folder, options.one)
    else:
        for millions in map(int, options.rows.split(",")):
            make(options.folder, millions, options.discard)


if __name__ == "__main__":
    main()
