"""What serving costs: the runtime of an export, and beside it an earlier checkout's recommend().

    python benchmarks/serving.py --workdir=runs/quickstart
    python benchmarks/serving.py --workdir=runs/quickstart --before=FOLDER --before-workdir=WORKDIR

One process per row, on one core: seconds until the runtime is imported and has loaded the export,
its resident memory, and the latency of known users, of histories of 1 to 20 items, of similar items
and of explanations, in milliseconds. Then the lists of all users in one process. With --before the
same histories are asked of ``kd_jax.load(WORKDIR).recommend`` of that checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

RUNTIME = """
import time
began = time.perf_counter()
from kd_jax import runtime
found = runtime.load(sys.argv[1])
ready = time.perf_counter() - began
found.recommend(found.export.user_ids[0])
pages = int(open("/proc/self/statm").read().split()[1])
import numpy as np
rng = np.random.default_rng(0)
users = [found.export.user_ids[i] for i in rng.integers(0, found.num_users, calls)]
items = [f"id:{i}" for i in found.export.item_ids]
histories = [[items[i] for i in rng.integers(0, len(items), n)] for n in rng.integers(1, 21, calls)]
def latency(call, values):
    call(values[0])
    times = []
    for value in values:
        start = time.perf_counter()
        call(value)
        times.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(times)), float(np.quantile(times, 0.99))]
result = {
    "import and load, s": [ready],
    "resident memory, MB": [pages * 4096 / 1e6],
    "known user, ms": latency(lambda user: found.recommend(user), users),
    "history, ms": latency(lambda history: found.recommend(history=history), histories),
    "similar items, ms": latency(lambda h: found.similar(h[0]), histories),
    "explanation, ms": latency(lambda h: found.explain(items[0], history=h), histories),
}
start = time.perf_counter()
for _ in found.many(k=10):
    pass
result["all users, users/s"] = [found.num_users / (time.perf_counter() - start)]
"""
BEFORE = """
import time
import numpy as np
import kd_jax
found = kd_jax.load(sys.argv[1])
ids = found.dataset.item_ids.to_list()
rng = np.random.default_rng(0)
histories = [[ids[i] for i in rng.integers(0, len(ids), n)] for n in rng.integers(1, 21, 12)]
found.recommend(history=histories[0])
times = []
for history in histories:
    start = time.perf_counter()
    found.recommend(history=history)
    times.append(1e3 * (time.perf_counter() - start))
result = {"history, ms": [float(np.median(times)), float(np.max(times))]}
"""


def measured(code: str, checkout: Path, workdir: Path, calls: int) -> dict[str, list[float]]:
    """Name -> figures of one process with the code of ``checkout``."""
    program = f"import json, sys\ncalls = {calls}\n{code}\nprint(json.dumps(result))"
    command = [sys.executable, "-c", program, str(workdir.absolute())]
    if hasattr(os, "sched_getaffinity"):
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env=os.environ | ONE_CORE
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--before-workdir", type=Path, help="a finished run of that checkout")
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    found = measured(RUNTIME, ROOT, options.workdir, options.calls)
    print("| | median | 99th percentile |\n|---|---|---|")
    for name, figures in found.items():
        print(
            f"| {name} | " + " | ".join(f"{value:,.3g}" for value in [*figures, float("nan")][:2])
        )
    if options.before:
        other = measured(BEFORE, options.before, options.before_workdir or options.workdir, 0)
        median, worst = other["history, ms"]
        print(f"| history, the other checkout, ms | {median:,.3g} | {worst:,.3g} (worst of 12) |")
        print(f"\nA history is {median / found['history, ms'][0]:,.0f} times as fast.")


if __name__ == "__main__":
    main()
