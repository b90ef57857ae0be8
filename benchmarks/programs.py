r"""The exported programs (``jax_export``, ``onnx``) against the runtime: lists, scores, latency.

    python launch.py --config.stages="('data','export')" \
        --config.export.formats="('runtime','jax_export','onnx')"
    python benchmarks/programs.py --workdir=runs/quickstart

For all users, and for their histories: how many lists of 10 items are those of the runtime, and the
greatest difference of a score. Then the median of 300 calls for one user or history. onnxruntime
has one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.export
import numpy as np
import onnxruntime

from kd_jax import runtime
from kd_jax.runtime.contexts import PAD

K = np.array([10])
AT_ONCE = 256
CALLS = 300


def lists(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, : K[0]]


def programs(folder: Path, name: str) -> dict:
    """Form -> a function of users or histories that returns (scores, lists)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{name}_scores.onnx", options)
    content = bytearray((folder / f"{name}_scores.jax_export").read_bytes())
    compiled = jax.jit(jax.export.deserialize(content).call)
    best = jax.jit(lambda value: jax.lax.top_k(compiled(value), int(K[0]))[1])
    return {
        "onnx": (
            lambda value: session.run(["scores", "top_items"], {name: value, "k": K}),
            lambda value: session.run(["top_items"], {name: value, "k": K}),
        ),
        "jax_export": (
            lambda value: (np.asarray(compiled(value)), np.asarray(best(value))),
            lambda value: np.asarray(best(value)),
        ),
    }


def latency(call, value: np.ndarray) -> float:
    """Milliseconds, the median."""
    call(value)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call(value)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def padded(histories: list[np.ndarray], length: int) -> np.ndarray:
    found = np.full((len(histories), length), PAD, np.int32)
    for row, history in zip(found, histories, strict=True):
        newest = history[-length:]
        row[length - len(newest) :] = newest
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    folder = parser.parse_args().workdir / "export"
    found = runtime.load(folder)
    blocks = np.array_split(np.arange(found.num_users), -(-found.num_users // AT_ONCE))
    seen = [[found.seen(user) for user in users] for users in blocks]
    length = found.export.context.length
    asked = {
        "user": [
            (users.astype(np.int32), found.vectors(users.tolist(), histories))
            for users, histories in zip(blocks, seen, strict=True)
        ],
        "history": [(padded(some, length), found.contexts(some)) for some in seen],
    }
    for name, pairs in asked.items():
        for form, (call, best) in programs(folder, name).items():
            same, worst = 0, 0.0
            for value, contexts in pairs:
                want = found.scores(contexts)
                scores, items = call(value)
                same += int((items == lists(want)).all(axis=1).sum())
                worst = max(worst, float(np.abs(scores - want).max()))
            print(
                f"{form}, {name}: {same} of {found.num_users} lists are the same, scores differ by"
                f" at most {worst:.1e}, {latency(best, pairs[0][0][:1]):.2f} ms"
            )


if __name__ == "__main__":
    main()
