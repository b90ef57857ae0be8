"""Measures the size of soft labels on disk, and the error of top-k lists against exact labels.

    python benchmarks/label_sizes.py [--items=10_000,100_000] [--contexts=10_000] [--dim=64] \\
        [--k=20,64,256]

The teacher is artificial: random contexts and item vectors of ``--dim`` numbers with products of
standard deviation 2, and biases log(1 / rank), as popularity has. Exact labels are one vector per
context, and the item vectors and biases; a list has k items and their logits per context, with a
softmax over the list. Both are written by ``distillation/label_cache.py``; the time to write
includes the search of the top k, a product with the catalogue.

The loss is KL(teacher || student) at temperature 1. The student is the teacher with its products
halved: similar, and flatter. The error of a list is that of the mean loss and of its gradient with
respect to the contexts, relative to the exact ones. The share is the teacher's probability of the
listed items.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

ROWS = 512  # contexts that the losses are compared on
HEAD = (
    "labels",
    "items",
    "bytes per context",
    "of the catalogue, MB",
    "write, s",
    "read, s",
    "share listed",
    "loss",
    "its error",
    "gradient's error",
)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """All labels of one catalogue."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from kd_jax.core.scores import Factors, Listed, TeacherScores
    from kd_jax.data.examples.base import Examples
    from kd_jax.distillation import label_cache
    from kd_jax.distillation.objective import StepInputs, mean_loss
    from kd_jax.distillation.term import OWN, Term
    from kd_jax.losses.candidates import top_items
    from kd_jax.losses.softmax import KL

    items = spec["items"]
    dim = spec["dim"]
    number = spec["contexts"]
    rng = np.random.default_rng(0)
    contexts = rng.standard_normal((number, 1, dim), np.float32)
    vectors = rng.standard_normal((items, dim), np.float32) * np.float32(2 / dim**0.5)
    bias = -np.log(1.0 + rng.permutation(items)).astype(np.float32)
    examples = Examples(
        number,
        {"contexts": contexts},
        lambda xp, tables, rows: {"row": rows, "contexts": tables["contexts"][rows]},
    )

    def exact() -> label_cache.Labeller:
        return label_cache.Labeller(
            {"items": vectors, "bias": bias}, lambda batch: {"contexts": batch["contexts"]}
        )

    def lists(k: int) -> label_cache.Labeller:
        @jax.jit
        def find(*factors: Any) -> dict[str, Any]:
            scores = Factors(*factors)
            top = top_items(scores, k)
            near = (
                jnp.einsum("bpd,bpkd->bpk", scores.contexts, scores.vectors[top]) + scores.bias[top]
            )
            return {"top": top, "top_logits": near}

        catalogue = jnp.asarray(vectors), jnp.asarray(bias)
        return label_cache.Labeller({}, lambda batch: find(batch["contexts"], *catalogue))

    part = jnp.asarray(contexts[:ROWS])
    student = Factors(part / 2, jnp.asarray(vectors), jnp.asarray(bias))
    batch = {"weights": jnp.ones((ROWS, 1)), "targets": jnp.zeros((ROWS, 1, 1), jnp.int32),
             "target_weights": jnp.ones((ROWS, 1, 1))}  # fmt: skip

    @jax.jit
    def loss(student: Any, soft: Any) -> Any:
        def value(contexts: Any) -> Any:
            scores = student._replace(contexts=contexts)
            return mean_loss((Term("soft", KL()),), scores, StepInputs(batch, {OWN: soft}))[0]

        return jax.value_and_grad(value)(student.contexts)

    true_loss, true_slope = loss(
        student, TeacherScores(Factors(part, student.vectors, student.bias))
    )
    normaliser = jax.nn.logsumexp(Factors(part, student.vectors, student.bias).dense(), axis=-1)
    found = []
    for kind, k in (("exact", 0), *(("top", k) for k in spec["k"])):
        labeller = exact() if kind == "exact" else lists(k)
        jax.block_until_ready(labeller.label(examples.gather(np.arange(ROWS))))  # compile apart
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter()
            label_cache.write(folder, labeller, examples)
            written = time.perf_counter()
            cache = label_cache.read(folder)
            read = time.perf_counter()
            shared = (folder / label_cache.ITEMS).stat().st_size
            size = label_cache.size_of(folder) - shared
        row = {
            "labels": "exact vectors" if kind == "exact" else f"top {k}",
            "items": items,
            "bytes": size / number,
            "shared": shared,
            "write": written - start,
            "read": read - written,
        }
        if kind == "top":
            listed = Listed(*(jnp.asarray(cache[name][:ROWS]) for name in ("top", "top_logits")))
            value, slope = loss(student, TeacherScores(listed))
            share = jnp.exp(jax.nn.logsumexp(listed.logits, axis=-1) - normaliser).mean()
            row |= {
                "share": float(share),
                "loss": float(value),
                "error": float(value / true_loss - 1),
                "slope": float(jnp.linalg.norm(slope - true_slope) / jnp.linalg.norm(true_slope)),
            }
        else:
            row |= {"share": 1.0, "loss": float(true_loss), "error": 0.0, "slope": 0.0}
        found.append(row)
    return {"rows": found, **measuring.machine()}


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/label_sizes.json")
    parser.add_argument("--items", type=measuring.numbers, default=[10_000, 100_000])
    parser.add_argument("--contexts", type=measuring.number, default=10_000)
    parser.add_argument("--dim", type=measuring.number, default=64)
    parser.add_argument("--k", type=measuring.numbers, default=[20, 64, 256])
    args = parser.parse_args()
    if args.measure:
        print(measuring.json.dumps(measure(args.measure)))
        return
    specs = [
        {"items": items, "contexts": args.contexts, "dim": args.dim, "k": args.k}
        for items in args.items
    ]
    results = [measuring.child(__file__, spec) for spec in specs]
    cells = [
        (
            row["labels"],
            f"{row['items']:,}",
            f"{row['bytes']:,.0f}",
            f"{row['shared'] / 1e6:.1f}",
            *(f"{row[name]:.2f}" for name in ("write", "read")),
            f"{row['share']:.0%}",
            f"{row['loss']:.3f}",
            *(f"{row[name]:+.0%}" for name in ("error", "slope")),
        )
        for result in results
        for row in result.get("rows", ())
    ]
    print(f"\n{args.contexts:,} contexts of {args.dim} numbers\n\n{measuring.table(HEAD, cells)}")
    measuring.write(args.out, results)


if __name__ == "__main__":
    main()
