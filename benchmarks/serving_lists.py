"""Lists of all users beside implicit's: a part of ``serving.py``.

    python benchmarks/serving_lists.py --implicit=peers/implicit/bin/python

Data of MovieLens-1M's shape are drawn (``peers.py``). implicit fits 64 factors to them, and an
export is made of the same factors, so that both rank the same scores. Then they take turns on
--threads cores, with a thread of BLAS each: implicit's ``recommend`` of all users, which returns
arrays; ours, ``Runtime.many``, which returns the same; and ``recommend_all`` written to a Parquet
file, with titles. The last lists are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks import peers

HERE = Path(__file__).parent
K = 10


def make_data(folder: Path) -> None:
    """``dataset/`` and ``interactions.npz`` of MovieLens-1M's shape."""
    from kd_jax.data import dataset
    from kd_jax.data.splits import TEST

    data = dataset.build(
        peers.generate(), split="leave_one_out", min_user_interactions=5, min_item_interactions=5
    )
    data.save(folder / "dataset")
    indptr, items = data.history(TEST + 1)
    np.savez(folder / "interactions.npz", indptr=indptr, items=items, num_items=data.num_items)


def make_export(folder: Path) -> None:
    """``export/`` with the vectors of ``factors.npz``; the map of new users is not used here."""
    from kd_jax.data import dataset
    from kd_jax.data.splits import TEST
    from kd_jax.runtime import store
    from kd_jax.runtime.contexts import HistoryMap

    data = dataset.load(folder / "dataset")
    with np.load(folder / "factors.npz") as file:
        users, items = file["users"], file["items"]
    indptr, seen = data.history(TEST + 1)
    dim = items.shape[1]
    export = store.Export(
        {
            "model": "als",
            "student": "mf",
            "dataset": {"name": data.name, "checksum": data.checksum},
        },
        data.user_ids.to_list(),
        data.item_ids.to_list(),
        data.titles,
        items,
        np.zeros(len(items), np.float32),
        users,
        indptr,
        seen,
        HistoryMap(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32), 6.0, 1.0),
    )
    (folder / "export").mkdir(exist_ok=True)
    store.write(folder / "export" / store.FILE, export)


def serve_turns(folder: Path) -> None:
    """Every line on stdin is a turn, 'arrays' or 'parquet'; its seconds, and those of CPU time, are
    a line on stdout."""
    import kd_jax

    found = kd_jax.load(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        if line.strip() == "parquet":
            found.recommend_all(k=K).write_parquet(folder / "lists.parquet")
        else:
            parts = list(found.runtime.many(k=K))
        print(time.perf_counter() - began, time.process_time() - cpu, flush=True)
    items, scores = (np.concatenate([part[place] for part in parts]) for place in (1, 2))
    np.savez(folder / "ours.npz", lists=items, scores=scores)


class Turns:
    """A process that takes a turn for every line on its stdin."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        if self._line() != "ready":
            sys.exit(f"{command[1]} did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def turn(self, name: str) -> tuple[float, float]:
        """Its seconds, and those of CPU time."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        seconds, cpu = map(float, self._line().split())
        return seconds, cpu

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        if self.process.wait():
            sys.exit(f"{self.process.args!r} failed")


def measure(implicit: str, threads: int, turns: int) -> dict[str, Any]:
    """Users/s and CPU seconds of the best turn of each, and how many lists are the same items."""
    if hasattr(os, "sched_setaffinity"):  # the children inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        script = str(HERE / "peer_implicit_lists.py")
        theirs = Turns(
            [implicit, script, f"--data={folder}", f"--threads={threads}"],
            peers.environment(threads, blas_threads=1),
        )
        make_export(folder)
        ours = Turns(
            [sys.executable, __file__, f"--serve={folder}"],
            peers.environment(threads, blas_threads=1) | {"POLARS_MAX_THREADS": str(threads)},
        )
        took: dict[str, list[tuple[float, float]]] = {"arrays": [], "parquet": [], "implicit": []}
        for _ in range(turns + 1):  # the first starts threads and is not counted
            for kind, times in took.items():
                times.append((theirs if kind == "implicit" else ours).turn(kind))
        ours.end()
        theirs.end()
        with np.load(folder / "ours.npz") as one, np.load(folder / "lists.npz") as other:
            pairs = zip(one["lists"].tolist(), other["lists"].tolist(), strict=True)
            same = [set(mine) == set(their) for mine, their in pairs]
            apart = float(np.abs(one["scores"] - other["scores"]).max())
    found: dict[str, Any] = {"users": len(same), "same": sum(same), "scores": apart}
    for kind, times in took.items():
        seconds, cpu = (min(column) for column in zip(*times[1:], strict=True))
        found[kind] = {"users_per_s": len(same) / seconds, "cpu": cpu}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implicit", help="the interpreter of the environment that has implicit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_turns(options.serve)
        return
    found = measure(options.implicit, options.threads, options.turns)
    if options.json:
        print(json.dumps(found))
        return
    for name in ("arrays", "parquet", "implicit"):
        one = found[name]
        print(f"{name}: {one['users_per_s']:,.0f} users/s, {one['cpu']:.2f} s of CPU time")
    print(
        f"{found['same']:,} of {found['users']:,} lists are the same items,"
        f" scores differ by at most {found['scores']:.1e}"
    )


if __name__ == "__main__":
    main()
