"""Compares the trained vectors in 32, 16, 8, 4 and 1 bit: NDCG@10 on test, and bytes.

    python benchmarks/vector_bits.py [--workdir=runs/quickstart] [--role=distilled]

The vectors of a finished run are packed and decoded as in the export formats ``compressed`` and
``runtime`` (``kd_jax/runtime/quantized.py``), users in at least 8 bits, and biases are rounded to
float16; the run's own evaluator ranks the whole catalogue without the seen items. Two rows more:
users in 1 bit, too, and users and items as signs without scales. NDCG@10 is the mean of the run's
seeds, with the range of its change against float32. Bytes are those of safetensors files without
ids: users, items and biases of this run, and a million items of 64 dimensions with biases, which
are written to a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.measuring import table
from kd_jax.core.files import write_tensors
from kd_jax.core.logging import Log
from kd_jax.data.splits import TEST
from kd_jax.evaluation.evaluator import evaluate_rank
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import TrainedModels, open_workdir
from kd_jax.runtime import quantized
from kd_jax.serving.exporters.bundle import Bundle, Vectors

METRIC = "ndcg@10"
BOTH, SIGNS = "1, users too", "1, signs alone"
ROWS = ("32", *map(str, quantized.BITS), BOTH, SIGNS)


def trained_vectors(models: TrainedModels, role_name: str) -> Iterator[Vectors]:
    """The vectors of each seed."""
    experiment, role = models.experiment, ROLES[role_name]
    for seed in experiment.seeds:
        trained = models.open(role, seed)
        description = {"task": experiment.config.task, "history": trained.parts.history}
        found = Bundle(experiment.dataset, trained.model, description, until=TEST).vectors
        if found is None:
            sys.exit("error: the scores of this student do not factorise")
        yield found


def bits_of(row: str, name: str) -> int:
    """The bits of 'user' or 'item' vectors in a row of the table."""
    bits = int(row.partition(",")[0])
    return quantized.user_bits(bits) if name == "user" and row not in (BOTH, SIGNS) else bits


def decoded(vectors: np.ndarray, row: str, name: str) -> np.ndarray:
    if row == "32":
        return vectors
    if row == SIGNS:
        return np.where(vectors >= 0, np.float32(1), np.float32(-1))
    return quantized.unpack(quantized.pack(vectors, bits_of(row, name)))


def quality(data: Any, found: Vectors, row: str) -> float:
    users, items = decoded(found.contexts, row, "user"), decoded(found.items, row, "item")
    bias = found.bias if row == "32" else found.bias.astype(np.float16).astype(np.float32)
    result = evaluate_rank(
        lambda rows: users[rows] @ items.T + bias, data, TEST, metrics=("ndcg",), ks=(10,)
    )
    return result.metrics[METRIC]


def written(folder: Path, row: str, parts: dict[str, np.ndarray], bias: np.ndarray) -> int:
    """Bytes of a safetensors file of the parts and the biases."""
    path = folder / "vectors.safetensors"
    if row == "32":
        tensors = parts | {"item_bias": bias}
    else:
        tensors = {"item_bias": quantized.half(bias, "bias")}
        for name, rows in parts.items():
            tensors |= quantized.tensors(quantized.pack(rows, bits_of(row, name)), name)
            if row == SIGNS:
                del tensors[f"{name}_scales"]
    write_tensors(path, tensors)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--role", default="distilled")
    options = parser.parse_args()
    workdir = options.workdir.expanduser()
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        models = open_workdir(workdir, log)
        seeds = list(trained_vectors(models, options.role))
    data = models.experiment.dataset
    ndcg = {row: np.array([quality(data, found, row) for found in seeds]) for row in ROWS}
    first = seeds[0]
    rng = np.random.default_rng(0)
    million = rng.standard_normal((1_000_000, 64), np.float32)
    rows: list[list[str]] = []
    full: dict[str, int] = {}
    for row in ROWS:
        change = ndcg[row] / ndcg["32"] - 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sizes = {
                "run": written(
                    folder, row, {"item": first.items, "user": first.contexts}, first.bias
                ),
                "million": written(folder, row, {"item": million}, million[:, 0]),
            }
        full = full or sizes
        rows.append(
            [
                row,
                f"{ndcg[row].mean():.4f}",
                f"{change.mean():+.2%}",
                f"{change.min():+.2%} … {change.max():+.2%}",
                f"{sizes['run'] / 1e6:.2f}",
                f"{sizes['million'] / 1e6:.1f}",
                f"{sizes['million'] / full['million']:.1%}",
            ]
        )
    head = ["bits", "NDCG@10", "change", "of each seed", "MB", "MB, 1M items", "share"]
    print(f"{options.role}, seeds {models.experiment.seeds}\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
