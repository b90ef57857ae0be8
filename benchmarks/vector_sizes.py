"""Compares user and item vectors of 8 to 64 numbers: distilled, and cut from the teacher's.

    python benchmarks/vector_sizes.py [--workdir=runs/compression] [--dims=8,16,32,64] \\
        [--config=FILE:ARG]

The teacher's vectors are reduced by PCA. Every size has a workdir of its own, ``<workdir>/dim8``
and so on. The first trains the teacher; the others get copies of its data set and soft labels. A
Markdown table is printed, and ``<workdir>/compression.json`` gets its numbers. The same command
again resumes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jaxtyping import Float
from ml_collections import ConfigDict, config_flags

from benchmarks.measuring import ROOT
from kd_jax.core.files import write_json
from kd_jax.data import dataset as datasets
from kd_jax.data.dataset import Dataset
from kd_jax.data.splits import TEST
from kd_jax.distillation import label_cache
from kd_jax.evaluation.evaluator import evaluate_rank
from kd_jax.experiment import pipeline
from kd_jax.experiment.smaller import cut

METRIC = "ndcg@10"
STUDENTS = ("student", "distilled")
Vectors = np.ndarray  # f32 [users or items, d]


def teacher_vectors(path: Path) -> tuple[Vectors, Vectors, Float[np.ndarray, " I"]]:
    """Contexts [U, D], items [I, D] and biases [I] of a folder of labels.

    The mean context is moved into the biases: (c - mean) · v + (b + mean · v) = c · v + b, so that
    the scores are the same and the vectors have less to represent.
    """
    found = label_cache.read(path)
    contexts = found["contexts"][:, -1]
    items = found["items"]
    mean = contexts.mean(0)
    return contexts - mean[None], items, found["bias"] + items @ mean


def evaluate(
    data: Dataset, users: Vectors, items: Vectors, bias: Float[np.ndarray, " I"]
) -> dict[str, float]:
    """NDCG@10 on test, over all items and over warm ones, of the scores users @ items.T + bias."""
    left = jnp.asarray(users)
    right = jnp.asarray(items).T
    offset = jnp.asarray(bias)[None]
    found = evaluate_rank(
        lambda rows: left[rows] @ right + offset, data, TEST, metrics=("ndcg",), ks=(10,)
    )
    return {"all": found.metrics[METRIC], "warm": found.slices["warm"][METRIC]}


def train(config: ConfigDict, workdir: Path, dim: int, first: Path) -> None:
    """Both students of width ``dim``, from the soft labels of the run in ``first``."""
    c = ConfigDict(config.to_dict())
    c.stages = ("data", "labels", *STUDENTS, "evaluate")
    if workdir == first:
        c.stages = ("data", "teacher", "labels", *STUDENTS, "evaluate")
    else:
        for name in ("dataset", "labels"):
            shutil.copytree(first / name, workdir / name, dirs_exist_ok=True)
    for model in STUDENTS:
        # in place of what was tuned
        c.tuned[model].update({"student": {c.student.name: {"dim": dim}}})
    if pipeline.main(c, workdir):
        sys.exit(2)


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def trained(workdir: Path, model: str) -> dict[str, float]:
    """The metrics of ``model`` in the run in ``workdir``, mean over seeds."""
    models = json.loads((workdir / "report/metrics.json").read_text())["models"]
    rows = [row for row in models if row["name"] == model]
    return average(
        [{"all": row["test"][METRIC], "warm": row["slices"]["warm"][METRIC]} for row in rows]
    )


def measure(config: ConfigDict, root: Path, dims: list[int]) -> dict[str, Any]:
    """Trains what is missing and returns all numbers of the table."""
    first = root / f"dim{dims[0]}"
    for dim in dims:
        train(config, root / f"dim{dim}", dim, first)
    data = datasets.load(first / "dataset")
    teachers = [teacher_vectors(first / f"labels/teacher.seed{seed}") for seed in config.seeds]
    width = teachers[0][1].shape[1]

    def size(dim: int) -> int:
        return 4 * (dim * (data.num_users + data.num_items) + data.num_items)

    rows = [
        {
            "dim": dim,
            "bytes": size(dim),
            "rank_of_pca": min(dim, width),
            **{model: trained(root / f"dim{dim}", model) for model in STUDENTS},
            "pca": average(
                [
                    evaluate(data, *cut(contexts, items, dim), bias)
                    for contexts, items, bias in teachers
                ]
            ),
        }
        for dim in dims
    ]
    return {
        "metric": METRIC,
        "split": "test",
        "dataset": data.name,
        "users": data.num_users,
        "items": data.num_items,
        "seeds": list(config.seeds),
        "sizes": rows,
        "popularity": trained(first, "popularity"),
        "teacher_biases": average(
            [evaluate(data, 0 * contexts, items, bias) for contexts, items, bias in teachers]
        ),
        "teacher": (
            average([evaluate(data, *vectors) for vectors in teachers])
            | {
                "dim": width,
                "bytes": size(width),
            }
        ),
        "teacher_reading_validation_too": trained(first, "teacher"),
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown table.

    A cell is NDCG@10 over all items / over warm items and, in brackets, the share of the teacher's
    value without a cut.
    """
    full = found["teacher"]

    def cell(value: dict[str, float]) -> str:
        share = f" ({value['all'] / full['all']:.0%})" if full["all"] else ""
        return f"{value['all']:.4f} / {value['warm']:.4f}{share}"

    lines = [
        "| numbers per vector | MB | plain student | distilled student | teacher cut by PCA |",
        "|---:|---:|---|---|---|",
        (
            f"| 0, biases alone | {4 * found['items'] / 1e6:.2f} | | |"
            f" {cell(found['teacher_biases'])} |"
        ),
    ]
    for row in found["sizes"]:
        cells = " | ".join(cell(row[name]) for name in (*STUDENTS, "pca"))
        lines.append(f"| {row['dim']} | {row['bytes'] / 1e6:.2f} | {cells} |")
    lines += [
        f"| {full['dim']}, uncut | {full['bytes'] / 1e6:.2f} | | | {cell(full)} |",
        "",
        (
            f"Popularity: {cell(found['popularity'])}. The teacher itself, which reads validation"
            f" as history too: {cell(found['teacher_reading_validation_too'])}. Seeds:"
            f" {', '.join(map(str, found['seeds']))}."
        ),
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; give --dims=8,16")
    logging.set_verbosity(logging.ERROR)
    root = Path(flags.FLAGS.workdir).expanduser()
    found = measure(flags.FLAGS.config, root, [int(dim) for dim in flags.FLAGS.dims])
    write_json(root / "compression.json", found)
    print(table(found))


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", str(ROOT / "configs/quickstart.py"), "FILE or FILE:ARG"
    )
    flags.DEFINE_string("workdir", "runs/compression", "where everything is written")
    flags.DEFINE_list("dims", ["8", "16", "32", "64"], "sizes of the vectors")
    app.run(main)
