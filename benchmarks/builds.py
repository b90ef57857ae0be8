"""This checkout against another one, in turns on one machine: training, ranking and encoding.

    git worktree add ../before COMMIT
    python benchmarks/builds.py --before=../before [--rounds=5] [--data=ml-1m]

Matrix factorisation and SASRec are trained and ranked by ``peers_ours.py`` of each checkout on the
same data (without --data a set of MovieLens-1M's shape is drawn), and item texts are encoded by the
MiniLM encoder. Every round runs both checkouts, each first in every other one. Printed are the
medians of the seconds and of the ratios of a round, this checkout over the other: use an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import ROOT
from benchmarks.peers import generate, prepare
from kd_jax.data.readers import movielens

EPOCHS = {"mf": 12, "sasrec": 1}
ENCODE = """
import json, time
import numpy as np
try:
    from kd_jax.data.text import tokenize
    from kd_jax.models.language.encoding import encode
    from kd_jax.models.language.hf import load_encoder
except ImportError:  # a checkout from before the rooms
    from kd_jax.data.text import encode, tokenize
    from kd_jax.models.hf import load_encoder
how = {"pooling": "mean", "normalize": False, "max_length": 64}
encoder, tokenizer = load_encoder("sentence-transformers/all-MiniLM-L6-v2", **how)
rng = np.random.default_rng(0)
words = ["film", "night", "river", "house", "summer", "war", "love", "city", "dark", "king"]
texts = [" ".join(rng.choice(words, rng.integers(4, 16))) + f" {n}" for n in range(1500)]
table = tokenize(tokenizer, texts, 64)
encode(encoder, table)
times = []
for _ in range(3):
    began = time.perf_counter()
    encode(encoder, table)
    times.append(time.perf_counter() - began)
print(json.dumps({"encode_s": min(times)}))
"""


def measured(checkout: Path, what: str, data: Path, epochs: int) -> dict[str, float]:
    """Name -> seconds of one process that runs the code of ``checkout``."""
    command = [sys.executable, "-c", ENCODE]
    if what in EPOCHS:
        command = [sys.executable, "benchmarks/peers_ours.py", what, f"--data={data}"]
        command.append(f"--epochs={epochs}")
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} of {checkout} failed:\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "encode_s" in found:
        return {"encoding 1,500 texts": found["encode_s"]}
    users = found["users_per_s"]
    return {f"{what}: epoch": found["epoch_s"], f"{what}: ranking 1,000 users": 1000 / users}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="a MovieLens folder")
    parser.add_argument("--only", nargs="+", default=[*EPOCHS, "encode"])
    options = parser.parse_args()
    raw = movielens.read(str(options.data)) if options.data else generate()
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "split.npz"
        prepare(raw).save(data)
        for number in range(options.rounds):
            for what in options.only:
                order = [ROOT, options.before.absolute()]
                found = {
                    checkout: measured(checkout, what, data, EPOCHS.get(what, 0))
                    for checkout in (order if number % 2 else reversed(order))
                }
                for name, value in found[ROOT].items():
                    seconds.setdefault(name, []).append((value, found[order[1]][name]))
                    there = found[order[1]][name]
                    line = f"round {number + 1}: {name}: {value:.4g} s, the other {there:.4g} s"
                    print(line, flush=True)
    print("\n| | this checkout | the other | ratio | from | to |\n|---|---|---|---|---|---|")
    for name, pairs in seconds.items():
        here, there = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [new / old for new, old in pairs]
        middle = statistics.median(ratios)
        print(
            f"| {name} | {here:.4g} s | {there:.4g} s | {middle:.3f} | {min(ratios):.3f} |"
            f" {max(ratios):.3f} |"
        )


if __name__ == "__main__":
    main()
