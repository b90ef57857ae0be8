"""Shared parts of all contestants of ``peers.py``.

It needs only numpy, since it is imported in the environments of the peers. A contestant is a
script: ``python SCRIPT MODEL --data=SPLIT.npz --threads=2 [--epochs=N | --seconds=S]
[--learning-rate=R]``. The last line it prints is one JSON object with the FIELDS below. A
contestant that cannot run raises ``SystemExit("reason")`` and is skipped. ``python
benchmarks/peer_common.py`` prints the machine's peak rate of matrix products.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = {
    "settings": "what was trained, in words",
    "fit_s": "s of training, without compilation and evaluation; wall clock, like every time here",
    "epochs": "passes over the training data in fit_s",
    "epoch_s": "s of one epoch: the median",
    "interactions_per_s": "training interactions that an epoch learns from, divided by epoch_s",
    "users_per_s": (
        "users whose 10 best unseen items were found in a second, the best of three passes over all"
        " users"
    ),
    "rss_mb": "peak resident memory of the process in MB (2**20 bytes)",
    "hr": "HR@10 on test",
    "ndcg": "NDCG@10 on test",
}
K = 10


@dataclass(frozen=True)
class Split:
    """Leave-one-out by time: U users, I items.

    indptr, items: the train interactions of user u, oldest first, are items[indptr[u]:indptr[u +
    1]]. valid, test: the held-out item of each user. fit_valid: whether models learn from valid
    too, as nothing is selected on it.
    """

    indptr: np.ndarray  # int64 [U + 1]
    items: np.ndarray  # int32 [N]
    valid: np.ndarray  # int32 [U]
    test: np.ndarray  # int32 [U]
    num_items: int
    fit_valid: bool

    @property
    def num_users(self) -> int:
        return len(self.valid)

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """(indptr, items) of the interactions that models are trained on."""
        return self.seen() if self.fit_valid else (self.indptr, self.items)

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """(indptr, items) of the history before test: train, then valid, oldest first."""
        indptr = self.indptr + np.arange(self.num_users + 1)
        return indptr, np.insert(self.items, self.indptr[1:], self.valid)

    def earlier(self) -> Split:
        """The same split one step earlier, for selection: train is train, valid is test."""
        last = self.indptr[1:] - 1
        indptr = self.indptr - np.arange(self.num_users + 1)
        return Split(
            indptr, np.delete(self.items, last), self.items[last], self.valid, self.num_items, True
        )

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))


def read_split(path: Path) -> Split:
    with np.load(path) as file:  # allow_pickle is off
        arrays = {name: file[name] for name in file.files}
    return Split(**{name: array if array.ndim else array.item() for name, array in arrays.items()})


def users_of(indptr: np.ndarray) -> np.ndarray:
    """int64 [N]: the user of each interaction."""
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def hit_ndcg(top: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Mean HR@K and NDCG@K of the lists ``top`` [U, K], best first.

    target: [U], the one relevant item of each user.
    """
    hits = top == target[:, None]
    return float(hits.any(1).mean()), float(
        (hits / np.log2(np.arange(2, top.shape[1] + 2))).sum(1).mean()
    )


def evaluate(top: np.ndarray, split: Split) -> tuple[float, float]:
    """HR@10 and NDCG@10 on test.

    Raises ValueError unless each user has 10 different items, none of them seen.
    """
    if top.shape != (split.num_users, K) or top.min() < 0 or top.max() >= split.num_items:
        raise ValueError(
            f"lists of shape {top.shape}, items {top.min()} to {top.max()}: not {K} items for each"
            " user"
        )
    indptr, items = split.seen()
    pairs = np.arange(split.num_users)[:, None] * split.num_items + top
    if len(np.unique(pairs)) != pairs.size:
        raise ValueError("an item stands twice in a user's list")
    if np.isin(pairs, users_of(indptr) * split.num_items + items).any():
        raise ValueError("a list holds an item that its user has seen")
    return hit_ndcg(top, split.test)


def best_of(count: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """(the least seconds of ``count`` calls, the last one's value)."""
    seconds = math.inf
    value = None
    for _ in range(count):
        start = time.perf_counter()
        value = call()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, value


def timed_epochs(options: argparse.Namespace, epoch: Callable[[], None]) -> list[float]:
    """Seconds of each epoch.

    There are ``options.epochs``, or as many as start within ``options.seconds``, if given.
    """

    def epochs() -> Iterator[None]:
        if options.seconds is None:
            yield from [None] * options.epochs
        else:
            while sum(times) < options.seconds:
                yield None

    times: list[float] = []
    for _ in epochs():
        times.append(best_of(1, epoch)[0])
    return times


def peak_rss_mb() -> float:
    """The peak resident memory of this process in MB.

    On Linux the ``ru_maxrss`` of a child starts at the memory of its parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )


def arguments(doc: str | None, models: tuple[str, ...], epochs: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=models)
    parser.add_argument("--data", type=Path, required=True, help="the .npz that peers.py wrote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument(
        "--seconds",
        type=float,
        help="train for so long instead; the epoch in which they end is finished",
    )
    parser.add_argument("--learning-rate", type=float, help="instead of the script's own")
    return parser.parse_args()


def report(
    *,
    settings: str,
    times: list[float],
    interactions: int,
    rank_s: float,
    top: np.ndarray,
    split: Split,
    packages: str,
    **more: Any,
) -> None:
    """Evaluates and prints.

    times: seconds of each epoch. interactions: of one epoch. rank_s: seconds to rank for all users.
    """
    hr, ndcg = evaluate(top, split)
    values = {
        "settings": settings,
        "fit_s": sum(times),
        "epochs": len(times),
        "epoch_s": float(np.median(times)),
        "interactions_per_s": interactions / float(np.median(times)),
        "users_per_s": split.num_users / rank_s,
        "rss_mb": peak_rss_mb(),
        "hr": hr,
        "ndcg": ndcg,
        "versions": (
            {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in packages.split()}
        ),
        "epoch_times": times,
    }
    print(json.dumps(values | more, allow_nan=False), flush=True)


def ceiling(size: int = 4096) -> dict[str, float]:
    """GFLOP/s of a float32 product of two square matrices, by library.

    The libraries are 'numpy' and, where it is installed, 'torch'.
    """
    left, right = np.random.default_rng(0).random((2, size, size), np.float32)
    out = np.empty_like(left)
    flops = 2 * size**3 / 1e9
    left[:512] @ right  # starts the threads
    found = {"numpy": flops / best_of(3, lambda: np.matmul(left, right, out=out))[0]}
    try:
        import torch
    except ImportError:
        return found
    operands = torch.from_numpy(left), torch.from_numpy(right)
    torch.mm(operands[0][:512], operands[1])
    return found | {
        "torch": flops / best_of(3, lambda: torch.mm(*operands, out=torch.from_numpy(out)))[0]
    }


if __name__ == "__main__":
    print(json.dumps(ceiling()))
