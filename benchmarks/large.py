"""Measures time and peak memory by stage for 100 million interactions and a million items.

    python benchmarks/large.py [--interactions=1e6] [--users=1e5] [--items=1e5] [--folder=FOLDER]

Generates a log in the order of time (users and items by Zipf's law, once, into ``folder``), then
runs the library on it in one fresh process: read; filter, index and split; save; load; training
examples; train MF (d=64, full-catalogue CE); top-10 lists and ranking metrics of some users;
export. A table is printed; ``--out`` gets its numbers. peak: the highest resident memory within the
stage, including what earlier stages keep. At full size the folder takes about 2.5 GB of disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring

PART = 2_000_000  # interactions generated at once
START = 1_500_000_000
SPAN = 3 * 365 * 86_400


def generate(folder: Path, interactions: int, users: int, items: int) -> None:
    """Writes interactions.parquet/, a folder of parts, and items.parquet.

    Weights are 1 / (rank + q), where q is a tenth of the users, and 100 items: a long tail, but no
    item that every user has.
    """
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    (folder / "interactions.parquet").mkdir(parents=True, exist_ok=True)
    shares = [
        np.cumsum(1 / (np.arange(1, n + 1) + q))
        for n, q in ((users, users / 10), (items, min(100, items)))
    ]
    names = [rng.permutation(len(share)) for share in shares]
    for start in range(0, interactions, PART):
        size = min(PART, interactions - start)
        drawn = (
            name[np.minimum(np.searchsorted(share, rng.random(size) * share[-1]), len(share) - 1)]
            for share, name in zip(shares, names, strict=True)
        )
        moment = START + (start + np.arange(size)) * SPAN // interactions
        frame = pl.DataFrame(
            dict(zip(("user", "item"), drawn, strict=True)) | {"timestamp": moment}
        )
        frame.write_parquet(folder / f"interactions.parquet/{start // PART:05d}.parquet")
    pl.DataFrame({"item": np.arange(items)}).with_columns(
        title=pl.format("Item number {}", "item")
    ).write_parquet(folder / "items.parquet")


class Stages:
    """Time and peak memory of what is done within ``with stages(name)``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        measuring.reset_peak()
        row: dict[str, Any] = {"stage": name}
        start = time.perf_counter()
        yield row
        row |= {"seconds": time.perf_counter() - start, "peak": measuring.memory("VmHWM")}
        row["left"] = measuring.reset_peak()
        self.rows.append(row)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    from kd_jax.core.process import keep_freed_memory

    keep_freed_memory()
    import jax
    import numpy as np
    from flax import nnx

    from kd_jax.core.tiling import tile_shape, tile_size
    from kd_jax.data import dataset
    from kd_jax.data.examples import base, user
    from kd_jax.data.readers import files
    from kd_jax.devices import sharding
    from kd_jax.distillation.term import Term
    from kd_jax.evaluation import evaluator
    from kd_jax.evaluation.scoring import score_function
    from kd_jax.losses.softmax import CrossEntropy
    from kd_jax.models.scorer import split
    from kd_jax.models.students.base import UserSpec
    from kd_jax.models.students.mf import MatrixFactorization
    from kd_jax.serving import exporters
    from kd_jax.training.compiled import compiled_step
    from kd_jax.training.recipe import Recipe
    from kd_jax.training.step import StepSpec

    folder = Path(spec["folder"])
    stage = Stages()
    with stage("read"):
        raw = files.read(str(folder / "interactions.parquet"), str(folder / "items.parquet"))
    with stage("filter, index, split") as row:
        data = dataset.build(raw, min_user_interactions=5)
        row["note"] = ", ".join(
            f"{data.counts[name]:,} {name}" for name in ("users", "items", "interactions")
        )
    del raw
    with stage("save"):
        data.save(folder / "dataset")
    del data
    with stage("load"):
        data = dataset.load(folder / "dataset")
    with stage("training examples") as row:
        examples = user.user_examples(data, history=spec["history"], decay=20.0)
        row["note"] = f"{examples.size:,} users, tables {examples.nbytes / 1e9:.2f} GB"

    steps = spec["steps"]
    chunk = 2
    batch = spec["batch"]
    mesh = sharding.make_mesh()
    with stage("model, optimiser and compilation"):
        bias = np.log1p(data.item_counts).astype(np.float32)
        sizes = UserSpec(
            data.num_users, data.num_items, 0, bias, data.warm, dim=spec["dim"], dropout=0.1
        )
        graphdef, params, constants = split(MatrixFactorization(sizes, {}, rngs=nnx.Rngs(0)))
        tx = Recipe(steps, batch, 0.01).tx()
        step, state = compiled_step(
            StepSpec(graphdef, (Term("clicks", CrossEntropy()),), tx, steps),
            params,
            mesh=mesh,
            seed=0,
            look_up=examples.look_up,
        )
        del params
        tables = sharding.put_whole(examples.tables, mesh)
        constants = sharding.put(constants, mesh)
        stream = base.batches(
            examples, batch_size=batch, num_batches=steps, seed=0, chunk=chunk, gather=False
        )
        compiled = step.lower(state, next(stream), tables, constants, None).compile()
    with stage(f"train, {steps} steps") as row:
        stream = base.batches(
            examples, batch_size=batch, num_batches=steps, seed=0, chunk=chunk, gather=False
        )
        times = []
        for rows in stream:
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, rows, tables, constants, None))
            times.append((time.perf_counter() - start) / chunk)
        one = float(np.median(times[1:] or times))
        length = float(
            np.minimum(np.diff(data.targets(0)[0]), user.MAX_TARGETS).sum() / examples.size
        )
        tiled = tile_shape(batch, data.num_items, tile_size())[1] < data.num_items
        flops = (
            (3 + tiled) * 2 * batch * data.num_items * spec["dim"] / one
        )  # tiles of items make the logits twice
        row |= {
            "steps_per_second": 1 / one,
            "interactions_per_second": batch * length / one,
            "flops_per_second": flops,
        }
        buffers = compiled.memory_analysis().temp_size_in_bytes / 1e9
        row["note"] = (
            f"batch {batch}: {one:.3g} s a step, {batch / one:,.0f} users/s,"
            f" {batch * length / one:,.0f} interactions/s, {flops / 1e9:.0f} GFLOP/s, loss"
            f" {float(metrics['loss']):.3f}, XLA's buffers {buffers:.2f} GB"
        )
    params = state.params
    del state, compiled, tables, examples
    known = evaluator.eval_users(data, 2)
    chosen = np.random.default_rng(0).choice(
        known, min(spec["ranked_users"], len(known)), replace=False
    )
    chosen.sort()
    score = score_function(data, graphdef, 2, spec["history"])(params, constants)
    block = spec["eval_batch"]
    seen = data.history(2)
    with stage(f"top-10 of {len(chosen)} users") as row:

        def lists() -> float:
            start = time.perf_counter()
            evaluator.top_k(score, chosen, 10, seen, batch_size=block)
            return time.perf_counter() - start

        first = lists()
        seconds = lists()
        row |= {"users_per_second": len(chosen) / seconds, "first": first}
        row["note"] = (
            f"{len(chosen) / seconds:,.1f} users/s in blocks of {block}; {first:.1f} s with"
            " compilation"
        )
    with stage(f"ranking metrics of {len(chosen)} users") as row:
        left_out = (data.split == 2) & ~np.isin(data.user, chosen)
        some = dataclasses.replace(
            data, split=np.where(left_out, np.int8(4), data.split)
        )  # 4: in no split
        del left_out
        found = evaluator.evaluate_rank(
            score, some, 2, metrics=("ndcg", "recall"), ks=(10,), batch_size=block
        )
        row["note"] = (
            f"{found.counts['all']['targets']:,} targets, ndcg@10 {found.metrics['ndcg@10']:.4f}"
        )
    with stage("export"):
        description = {
            "model": "student", "student": "mf", "task": "rank", "history": spec["history"],
            "spec": sizes.plain(),
        }  # fmt: skip
        model = nnx.merge(graphdef, params, constants)
        bundle = exporters.Bundle(data, model, description)
        exporters.write(bundle, folder / "export", ("weights", "vectors"))
    kept = {"users": data.num_users, "items": data.num_items, "interactions": len(data.item)}
    return {"stages": stage.rows, "kept": kept} | measuring.machine()


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/large.json")
    parser.add_argument("--interactions", type=measuring.number, default=100_000_000)
    parser.add_argument("--users", type=measuring.number, default=1_000_000)
    parser.add_argument("--items", type=measuring.number, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where data are generated to, and kept (default: temporary)"
    )
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument(
        "--steps", type=int, default=8, help="an even number; the first two are not timed"
    )
    parser.add_argument("--ranked-users", type=int, default=512, help="users that are ranked for")
    parser.add_argument("--eval-batch", type=int, default=256)
    args = parser.parse_args()
    if args.measure and "folder" in args.measure:
        return print(json.dumps(measure(args.measure)))
    if args.measure:
        made = Stages()
        with made("generate"):
            generate(Path(args.measure["into"]), *args.measure["sizes"])
        return print(json.dumps(made.rows[0]))
    sizes = args.interactions, args.users, args.items
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / "-".join(map(str, sizes))
        stages = []
        if not (folder / "items.parquet").exists():
            stages.append(measuring.child(__file__, {"into": str(folder), "sizes": sizes}))
        names = ("dim", "history", "batch", "steps", "ranked_users", "eval_batch")
        found = measuring.child(
            __file__, {name: getattr(args, name) for name in names} | {"folder": str(folder)}
        )
    if "failed" in found:
        raise SystemExit(f"error: {found['failed']}")
    stages += found["stages"]
    cells = [
        (
            s["stage"],
            f"{s['seconds']:.1f}",
            f"{s['peak'] / 1e9:.2f}",
            f"{s['left'] / 1e9:.2f}",
            s.get("note", ""),
        )
        for s in stages
    ]
    print(
        f"{args.interactions:,} interactions, {found['cores']} cores, {found['device']}, JAX"
        f" {found['jax']}\n"
    )
    print(measuring.table(("stage", "s", "peak GB", "left GB", ""), cells))
    measuring.write(args.out, found | {"stages": stages, "sizes": sizes})


if __name__ == "__main__":
    main()
