"""Compares kd_jax with implicit, RecTools and RecBole on data of MovieLens-1M's shape.

    python benchmarks/peers.py --data=ml-1m --implicit=peers/implicit/bin/python \\
        --rectools=peers/rectools/bin/python --recbole=peers/recbole/bin/python [--out=peers.json]

All run on one machine and one split: leave-one-out by time over the 5-core (ML-1M: 6,040 users,
3,416 items, no rating filter), with the 10 best items of the whole catalogue, seen items masked.
Without --data a set of that shape is drawn: its speeds are meaningful, its quality is not. Models
are trained on train and valid, as nothing is selected on valid (--train-only: on train); sequence
models read both as history. With --tune every contestant that is trained by gradients first tries
three learning rates for the full duration, trained on train and evaluated on valid. Libraries that
are not installed are skipped; kd_jax itself runs in this interpreter. Contestants run one after
another, each in a process of its own. Every time is wall clock on --threads threads, so use an idle
machine.

The peers cannot be installed beside kd_jax or beside each other. Their environments, with Python
3.11:

    python3.11 -m venv peers/implicit
    peers/implicit/bin/pip install implicit==0.7.3
    python3.11 -m venv peers/rectools
    peers/rectools/bin/pip install 'rectools[torch]==0.19.0' 'numpy<2'
    python3.11 -m venv peers/recbole
    peers/recbole/bin/pip install recbole==1.2.1 'setuptools<81' numpy==1.26.4 'pandas<3'
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl

from benchmarks.peer_common import FIELDS, Split
from kd_jax.data import dataset
from kd_jax.data.raw import RawData
from kd_jax.data.readers import movielens

HERE = Path(__file__).parent
PEERS = ("implicit", "rectools", "recbole")
# MovieLens-1M after the 5-core
USERS = 6_040
ITEMS = 3_416
ROWS = 1_000_000
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Contestant:
    """A script of this folder, and the model that it runs.

    peer: the library in the environment of which it runs; '' for this one.
    """

    name: str
    script: str
    model: str
    peer: str = ""
    blas_threads: int = 0  # 0: as many as all other threads
    rates: tuple[float, ...] = ()  # learning rates that --tune tries


SASREC_RATES = (1e-3, 3e-3, 6e-3)
CONTESTANTS = (
    Contestant("kd_jax MF", "peers_ours.py", "mf", rates=(3e-3, 1e-2, 2e-2)),
    Contestant("implicit ALS", "peer_implicit.py", "als", "implicit", blas_threads=1),
    Contestant("implicit BPR", "peer_implicit.py", "bpr", "implicit", blas_threads=1),
    Contestant("RecBole BPR", "peer_recbole.py", "bpr", "recbole", rates=(1e-3, 3e-3, 1e-2)),
    Contestant("kd_jax SASRec", "peers_ours.py", "sasrec", rates=SASREC_RATES),
    Contestant(
        "RecTools SASRec, fast path", "peer_rectools.py", "flat", "rectools", rates=SASREC_RATES
    ),
    Contestant("RecTools SASRec", "peer_rectools.py", "model", "rectools", rates=SASREC_RATES),
)


def generate(users: int = USERS, items: int = ITEMS, rows: int = ROWS, seed: int = 0) -> RawData:
    """About ``rows`` distinct pairs of users and items.

    The activity of users varies widely, items follow Zipf's law, and tastes have 8 dimensions.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(0, 1, users)
    lengths = np.clip(20 + lengths * (rows / users - 20) / lengths.mean(), 20, items // 2).astype(
        np.int64
    )
    taste = (
        rng.standard_normal((users, 8), np.float32)
        @ rng.standard_normal((8, items), np.float32)
        / 4
    )
    keys = (
        taste
        - np.log(np.arange(1, items + 1, dtype=np.float32) + 20)[None]
        + rng.gumbel(size=(users, items))
    )
    chosen = np.argsort(-keys, axis=1)  # the first k are k draws without replacement (Gumbel top-k)
    user = np.repeat(np.arange(users), lengths)
    item = np.concatenate(
        [rng.permutation(row[:length]) for row, length in zip(chosen, lengths, strict=True)]
    )
    frame = pl.DataFrame({"user": user, "item": item, "timestamp": np.arange(len(user))})
    return RawData(
        "generated",
        frame,
        frame.select(pl.col("item").unique().sort()).with_columns(title=pl.lit("Item")),
    )


def prepare(raw: RawData, fit_valid: bool = True) -> Split:
    data = dataset.build(
        raw, split="leave_one_out", min_user_interactions=5, min_item_interactions=5
    )
    train, valid, test = (data.targets(split) for split in range(3))
    return Split(*train, valid[1], test[1], data.num_items, fit_valid)


def environment(threads: int, blas_threads: int = 0) -> dict[str, str]:
    limits = dict.fromkeys(THREADS, str(blas_threads or threads)) | {
        "OMP_NUM_THREADS": str(threads)
    }
    return os.environ | limits | {"PYTHONWARNINGS": "ignore"}


def run(
    contestant: Contestant,
    interpreter: str | None,
    split: Path,
    options: argparse.Namespace,
    rate: float | None = None,
) -> dict[str, Any]:
    """The contestant's figures, or {'skipped': why}, or {'failed': why}."""
    if interpreter is None:
        return {"skipped": f"no --{contestant.peer}"}
    command = [
        interpreter,
        str(HERE / contestant.script),
        contestant.model,
        f"--data={split}",
        f"--threads={options.threads}",
    ]
    command += [
        f"--{name}={value}"
        for name in ("epochs", "seconds")
        if (value := getattr(options, name)) is not None
    ]
    command += [f"--learning-rate={rate}"] if rate else []
    try:
        done = subprocess.run(
            command,
            env=environment(options.threads, contestant.blas_threads),
            capture_output=True,
            text=True,
            timeout=options.timeout,
        )
    except OSError as error:
        return {"skipped": f"{interpreter}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {options.timeout:.0f} s"}
    errors = done.stderr.strip().splitlines() or ["no message"]
    if done.returncode == 1 and "Traceback" not in done.stderr:
        return {"skipped": errors[-1]}
    if done.returncode:
        return {"failed": f"exit status {done.returncode}: {errors[-1]}"}
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        wrong = [name for name in FIELDS if name != "settings" and not 0 <= found[name] < math.inf]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        return {"failed": f"its last line is not the figures: {error!r}"}
    return {"failed": f"not a sane figure: {', '.join(wrong)}"} if wrong else found


def tuned_rate(
    contestant: Contestant, interpreter: str | None, earlier: Path, options: argparse.Namespace
) -> tuple[float | None, dict[str, float]]:
    """The learning rate with the best NDCG@10 on valid, and all that were tried.

    Each is trained for the full duration.
    """
    tried: dict[str, float] = {}
    for rate in contestant.rates:
        found = run(contestant, interpreter, earlier, options, rate)
        if "ndcg" in found:
            tried[f"{rate:g}"] = found["ndcg"]
    return (float(max(tried, key=lambda rate: tried[rate])) if tried else None), tried


def ceilings(interpreters: dict[str, str | None], threads: int) -> dict[str, float]:
    """GFLOP/s of a float32 matrix product, by library.

    numpy is measured here, PyTorch in the first peer that has it.
    """
    found: dict[str, float] = {}
    for interpreter in (sys.executable, interpreters["rectools"], interpreters["recbole"]):
        if interpreter is None or "torch" in found:
            continue
        try:
            command = [interpreter, str(HERE / "peer_common.py")]
            done = subprocess.run(
                command, env=environment(threads), capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        found = json.loads(done.stdout) | found
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        (
            "| contestant | settings | fit s | s/epoch | interactions/s | users/s | peak RSS MB |"
            " HR@10 | NDCG@10 | useful GFLOP/s |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "settings" not in row:
            state, why = next(iter(row.items()))
            lines.append(f"| {name} | {state}: {why} | | | | | | | | |")
            continue
        useful = f"{row['useful_gflops']:.0f}" if "useful_gflops" in row else ""
        lines.append(
            f"| {name} | {row['settings']} | {row['fit_s']:.2f} | {row['epoch_s']:.3g} |"
            f" {row['interactions_per_s']:,.0f} | {row['users_per_s']:,.0f} | {row['rss_mb']:,.0f}"
            f" | {row['hr']:.4f} | {row['ndcg']:.4f} | {useful} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="the folder of MovieLens-1M; without it, generated data of its shape",
    )
    for peer in PEERS:
        parser.add_argument(f"--{peer}", help=f"the interpreter of the environment that has {peer}")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        help="contestants whose name holds one of these, in any case",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first choose each contestant's learning rate, of three, on valid",
    )
    parser.add_argument(
        "--train-only", action="store_true", help="learn from train alone, not from valid too"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of every contestant, instead of its own number")
    parser.add_argument(
        "--seconds",
        type=float,
        help="every contestant trained by epochs trains so long (not implicit)",
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds after which a contestant has failed"
    )
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    options = parser.parse_args(arguments)
    interpreters = {peer: getattr(options, peer) for peer in PEERS} | {"": sys.executable}
    chosen = [
        contestant
        for contestant in CONTESTANTS
        if not options.only or any(word.lower() in contestant.name.lower() for word in options.only)
    ]

    raw = movielens.read(str(options.data)) if options.data else generate()
    split = prepare(raw, fit_valid=not options.train_only)
    shape = {
        "users": split.num_users,
        "items": split.num_items,
        "interactions_learned_from": len(split.fit()[1]),
    }
    source = options.data.name if options.data else "generated"
    print(
        f"{source}: "
        + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in shape.items()),
        flush=True,
    )
    rows: dict[str, dict[str, Any]] = {}
    before = ceilings(interpreters, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.npz"
        split.save(path)
        split.earlier().save(Path(folder) / "earlier.npz")
        for contestant in chosen:
            print(f"{contestant.name} …", file=sys.stderr, flush=True)
            interpreter = interpreters[contestant.peer]
            rate = None
            tried: dict[str, float] = {}
            if options.tune:
                rate, tried = tuned_rate(
                    contestant, interpreter, Path(folder) / "earlier.npz", options
                )
            rows[contestant.name] = run(contestant, interpreter, path, options, rate)
            if tried:
                rows[contestant.name]["tried"] = tried
    after = ceilings(interpreters, options.threads)
    print(
        f"{options.threads} threads of {os.cpu_count()}; float32 4096 x 4096 matrix product,"
        " GFLOP/s, start and end: "
        + ", ".join(f"{name} {before[name]:.0f} and {after[name]:.0f}" for name in before)
    )
    print("\n" + table(rows))
    for name, row in rows.items():
        if "tried" in row:
            print(
                f"{name}: NDCG@10 on valid by learning rate: "
                + ", ".join(f"{r} {v:.4f}" for r, v in row["tried"].items())
            )
    if options.out:
        machine = {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": options.threads,
        }
        figures = {
            "data": {"source": source} | shape,
            "machine": machine,
            "ceiling_gflops": {"start": before, "end": after},
        }
        options.out.write_text(
            json.dumps(figures | {"contestants": rows, "fields": FIELDS}, indent=1) + "\n"
        )
    return int(any("failed" in row for row in rows.values()))


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # ends the contestant, removes the folder
    sys.exit(main())
