"""Prepared data: time and memory of the maker by size, and the speed of reading.

python benchmarks/prepared.py --rows=10,30,100 --folder=/tmp/prepared-bench
python benchmarks/prepared.py --spark --rows=20 --folder=/tmp/prepared-bench
python benchmarks/prepared.py --read --folder=/tmp/prepared-bench

Synthetic interactions: users and items drawn by Zipf-like weights, the rarest of which have too few
for the 5-core, times at random. A size is in millions of rows; each is written, then prepared in a
process of its own, which prints the seconds, processor seconds and peak memory (resident) of each
stage. --discard removes a size before the next.

--spark prepares with Spark, too, and compares the files. --read compares SASRec and MF with data
from shards and from memory, in turns and by processor time: batches that are gathered, and whole
train steps. It takes the smallest size in the folder.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl

CHUNK = 2_000_000
HISTORY = 50


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


def spark(folder: Path, millions: int) -> None:
    """Prepares one size with Spark on this machine, and compares the files with the other maker's.

    It needs Java and pyspark (extra 'spark').
    """
    root = Path(__file__).resolve().parents[1]
    mine, theirs = folder / f"prepared-{millions}", folder / f"spark-{millions}"
    if not (mine / "prepared.json").exists():
        make(folder, millions, discard=False)
    scratch = {"SPARK_LOCAL_DIRS": str(folder / "scratch"), "PYSPARK_PYTHON": sys.executable}
    command = [
        str(Path(sys.executable).parent / "spark-submit"), "--master=local[2]",
        "--driver-memory=4g", "--conf=spark.ui.showConsoleProgress=false",
        str(root / "cluster/prepare_spark.py"), f"--out={theirs}",
        *(f"--{name}={value}" for name, value in source_options(folder, millions).items()),
    ]  # fmt: skip
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | scratch | {"PYTHONPATH": str(root)}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    names = sorted(path.name for path in mine.iterdir())
    assert names == sorted(path.name for path in theirs.iterdir())
    other = [name for name in names if (mine / name).read_bytes() != (theirs / name).read_bytes()]
    print(f"{millions}M rows with Spark: {seconds:.1f} s, processor {cpu:.1f} s;"
          f" {len(names)} files, of which {len(other)} differ {other}")  # fmt: skip


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


def both_examples(folder: Path) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The smallest prepared data, and the examples of two students from shards and from memory."""
    from kd_jax.data.examples.packed import packed_examples
    from kd_jax.data.examples.shards import shard_examples
    from kd_jax.data.examples.user import user_examples
    from kd_jax.data.prepared.folder import open_folder

    sizes = sorted(folder.glob("prepared-*"), key=lambda path: int(path.name.split("-")[1]))
    if not sizes:
        raise SystemExit(
            f"{folder} has no prepared data; first make some, without --discard:"
            f" python benchmarks/prepared.py --rows=10 --folder={folder}"
        )
    shards, memory = open_folder(sizes[0], 1000), open_folder(sizes[0], 0)
    return memory, {
        "sasrec": (
            shard_examples(shards, history=HISTORY, example_kind="all", packed=True),
            packed_examples(memory, history=HISTORY),
        ),
        "mf": (
            shard_examples(shards, history=HISTORY, example_kind="user", decay=20.0),
            user_examples(memory, history=HISTORY, decay=20.0),
        ),
    }


def in_turns(title: str, runs: Sequence[Callable[[], Any]], steps: int, rounds: int = 3) -> None:
    """Prints the median processor milliseconds of each of two runs, and the speed of the first."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            began = time.process_time()
            runs[place]()
            times[place].append(1e3 * (time.process_time() - began) / steps)
    one, other = (float(np.median(values)) for values in times)
    ratios = sorted(there / here for here, there in zip(*times, strict=True))
    speed = f"{np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{title}: processor {one:.2f} ms from shards, {other:.2f} from memory; speed {speed}")


def read(folder: Path, batch_size: int = 1024, steps: int = 100) -> None:
    """Batches that are gathered on the host, and nothing else."""
    from kd_jax.data.examples.base import batches

    def run(data: Any) -> Callable[[], Any]:
        next(data)
        return lambda: collections.deque(itertools.islice(data, steps), maxlen=0)

    _, examples = both_examples(folder)
    for name, pair in examples.items():
        data = (
            batches(each, batch_size=each.rows_of(batch_size), num_batches=10**6, seed=0)
            for each in pair
        )
        in_turns(f"{name}, a batch of {batch_size} users", [run(each) for each in data], steps)


def train(folder: Path, batch_size: int = 128, chunk: int = 4, programs: int = 3) -> None:
    """Train steps as the training loop runs them: data in memory are gathered in the step."""
    import jax
    from flax import nnx

    from kd_jax.data.examples.base import batches
    from kd_jax.devices import sharding
    from kd_jax.distillation.term import Term
    from kd_jax.losses.softmax import CrossEntropy
    from kd_jax.models.scorer import split
    from kd_jax.models.students import STUDENTS, student_spec
    from kd_jax.training.compiled import compiled_step
    from kd_jax.training.recipe import Recipe
    from kd_jax.training.step import StepSpec

    data, examples = both_examples(folder)
    mesh = sharding.make_mesh(1, 1)
    recipe = Recipe(steps=10**6, batch_size=batch_size, learning_rate=1e-3)
    counts = np.log1p(data.item_counts).astype(np.float32)
    sizes = {"num_users": data.num_users, "num_items": data.num_items, "num_classes": 0}

    def run(name: str, found: Any) -> Callable[[], None]:
        section = {"history": HISTORY} if name == "sasrec" else {}
        spec = student_spec(name, section, **sizes, item_bias=counts, warm=None)
        graphdef, params, constants = split(STUDENTS[name](spec, {}, rngs=nnx.Rngs(0)))
        resident, rows = found.on_device, found.rows_of(batch_size)
        step, state = compiled_step(
            StepSpec(graphdef, (Term("clicks", CrossEntropy()),), recipe.tx(), recipe.steps),
            params, mesh=mesh, seed=0, look_up=found.look_up if resident else None,
        )  # fmt: skip
        tables = sharding.put_whole(found.tables, mesh) if resident else None
        stream = batches(
            found, batch_size=rows, num_batches=10**6, seed=0, chunk=chunk, gather=not resident,
        )  # fmt: skip
        kept = [state]

        def advance() -> None:
            for _ in range(programs):
                stacked = sharding.put_batches(next(stream), mesh, rows)
                kept[0], metrics = step(kept[0], stacked, tables, constants, {})
            jax.block_until_ready(metrics)

        advance()
        return advance

    for name, pair in examples.items():
        runs = [run(name, each) for each in pair]
        in_turns(f"{name}, a train step of {batch_size} users", runs, chunk * programs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10,30,100", help="millions of rows")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--spark", action="store_true", help="with Spark, and compare")
    parser.add_argument("--discard", action="store_true", help="remove each size after its run")
    parser.add_argument("--one", type=int)
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    if options.read:
        read(options.folder)
        train(options.folder)
    elif options.one:
        one(options.folder, options.one)
    else:
        for millions in map(int, options.rows.split(",")):
            if options.spark:
                spark(options.folder, millions)
            else:
                make(options.folder, millions, options.discard)


if __name__ == "__main__":
    main()
