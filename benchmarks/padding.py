"""What padding costs SASRec: positions computed per real one, and training beside an older build.

    git worktree add ../before 23fc1f6
    python benchmarks/padding.py --before=../before beauty=BEAUTY sports=SPORTS ml-1m=ML-1M

A data set is a folder with interactions.parquet (columns user, item, position) or of MovieLens-1M.
Of large ones, speeds are those of --users random users over all items. SASRec has d=64, 2 blocks,
the last 50 items, the full softmax and 128 users a step. Both builds run their own
``peers_ours.py``, in turns, each in a process of its own; the figures are medians over the rounds.
--rectools=PYTHON, of an environment of ``peers.py``, takes its turns with RecTools' fast path at
the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl

from benchmarks.measuring import ROOT
from benchmarks.peer_common import Split
from benchmarks.peers import environment, prepare
from kd_jax.data.examples.packed import bins_of
from kd_jax.data.raw import RawData
from kd_jax.data.readers import movielens

LENGTH = 50


def split_of(folder: Path) -> Split:
    """Train and valid of leave-one-out over the 5-core, to learn from."""
    path = folder / "interactions.parquet"
    if not path.exists():
        return prepare(movielens.read(str(folder)))
    rows = pl.read_parquet(path).rename({"position": "timestamp"})
    items = rows.select(pl.col("item").unique().sort()).with_columns(title=pl.lit("Item"))
    return prepare(RawData(folder.name, rows.select("user", "item", "timestamp"), items))


def some_users(split: Split, number: int) -> Split:
    """The split with ``number`` random users and all items."""
    if split.num_users <= number:
        return split
    users = np.sort(np.random.default_rng(0).permutation(split.num_users)[:number])
    lengths = np.diff(split.indptr)[users]
    items = [split.items[split.indptr[user] : split.indptr[user + 1]] for user in users]
    indptr = np.concatenate([[0], lengths.cumsum()])
    valid, test = split.valid[users], split.test[users]
    return Split(indptr, np.concatenate(items), valid, test, split.num_items, split.fit_valid)


def positions(split: Split) -> tuple[float, float]:
    """Positions computed per real one: padded, and in bins."""
    lengths = np.minimum(np.diff(split.fit()[0]) - 1, LENGTH)
    bins = bins_of(np.bincount(lengths, minlength=LENGTH + 1))
    return LENGTH * len(lengths) / lengths.sum(), LENGTH * len(bins) / lengths.sum()


Contestant = tuple[Path, list[str]]  # a repository, and the command that measures in it


def contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """The contestants by name, this build last."""
    ours = [sys.executable, "benchmarks/peers_ours.py", "sasrec"]
    found: dict[str, Contestant] = {}
    if options.before is not None:
        found["before"] = options.before.absolute(), ours
    if options.rectools:
        python = str(Path(options.rectools).absolute())
        found["RecTools"] = ROOT, [python, "benchmarks/peer_rectools.py", "flat"]
    return found | {"now": (ROOT, ours)}


def users_per_second(
    contestant: Contestant, split: Path, users: int, options: argparse.Namespace
) -> float:
    """The training speed of a contestant's SASRec."""
    repo, command = contestant
    settings = [f"--data={split}", f"--threads={options.threads}", f"--epochs={options.epochs}"]
    done = subprocess.run(
        [*command, *settings],
        cwd=repo,
        env=environment(options.threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{repo}: {done.stderr[-2000:]}")
    return users / json.loads(done.stdout.splitlines()[-1])["epoch_s"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--before", type=Path, help="the older build; without it only positions")
    parser.add_argument("--rectools", help="the Python of an environment with RecTools")
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = contestants(options)
    *others, ours = found
    ratios = [f"now / {name}" for name in others]
    head = ["data", "positions per real one: padded; bins"]
    head += [f"users/s {name}" for name in found] * bool(others) + ratios
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name, folder in (entry.split("=", 1) for entry in options.data):
        split = split_of(Path(folder))
        row = [name, "{:.2f}; {:.2f}".format(*positions(split))]
        if others:
            few = some_users(split, options.users)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "split.npz"
                few.save(path)
                speeds: dict[str, list[float]] = {key: [] for key in found}
                for _ in range(options.rounds):
                    for key, contestant in found.items():
                        speeds[key].append(
                            users_per_second(contestant, path, few.num_users, options)
                        )
            row += [f"{statistics.median(values):,.0f}" for values in speeds.values()]
            for other in others:
                pairs = zip(speeds[other], speeds[ours], strict=True)
                row.append(f"{statistics.median(b / a for a, b in pairs):.2f}")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
