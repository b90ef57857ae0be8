"""Compares training on 1 to 8 virtual devices, in 1 to 4 processes: losses and bytes sent.

    python benchmarks/scaling.py [--devices=1,2,4,8] [--processes=2,4] [--models=mf,sasrec] \\
        [--axes=data,model] [--teacher]

Weak scaling: over ``data`` every device gets ``--batch`` rows, over ``model`` ``--items`` items and
users; then one item and user less, since the sizes of real data sets are rarely divisible. The
losses of the first steps must be those of one device on the same problem, up to a relative 1e-4
from another order of sums. The devices are virtual (JAX_NUM_CPU_DEVICES) and share the cores, and
so do processes, each of which has one device and communicates through gloo. So the time of a step,
the best after the first, is that of the same work in parts; only its overhead over one device has a
meaning.

Bytes: sent by each device in one step, in a ring: of an array of S bytes among n devices an
all-reduce sends 2 S (n - 1) / n, an all-gather (S gathered), a reduce-scatter (S before) and an
all-to-all S (n - 1) / n, a permutation S. They are read from the compiled program, with loops
counted by iterations. Least, over ``data``: an all-reduce of the gradient of every parameter;
'sparse' has only the batch's rows of a table that is only looked up (MF's users), which are
gathered. Least, over ``model``, where tables are split: the vectors that the batch looks up (S =
looked-up rows x width x 4) are all-gathered, the gradients of the contexts are added (MF:
reduce-scattered, as only the device with a user's row needs them; SASRec: all-reduced), and per row
and softmax the maximum and the sum, and per row the target's logit, are all-reduced; a teacher adds
three more numbers. All other work needs no communication.
"""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import measuring

HEAD = (
    "model",
    "axis",
    "devices",
    "processes",
    "batch",
    "items",
    "loss differs by",
    "ms, one device",
    "ms",
    "collectives",
    "MB sent",
    "MB least",
    "ratio",
    "MB least, sparse",
)
STEPS = 4


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    import jax
    import numpy as np
    from flax import nnx
    from hlo import collectives

    from kd_jax.core.scores import Factors, TeacherScores
    from kd_jax.devices import sharding
    from kd_jax.devices.processes import initialize
    from kd_jax.distillation.term import OWN, Term
    from kd_jax.losses.softmax import KL, CrossEntropy
    from kd_jax.models.scorer import split
    from kd_jax.models.students import build_student, student_spec
    from kd_jax.training.compiled import compiled_step
    from kd_jax.training.recipe import Recipe
    from kd_jax.training.step import StepSpec

    count, batch, items, dim, length = (
        spec[k] for k in ("count", "batch", "items", "dim", "length")
    )
    if spec.get("processes", 1) > 1:
        initialize(spec["coordinator"], spec["processes"], spec["process"])
    mesh = sharding.make_mesh(**{"data": 1, "model": 1, spec["axis"]: count})
    rng = np.random.default_rng(0)
    users = items
    warm = np.ones(items, bool)
    section = {"dim": dim, "dropout": 0.2}
    if spec["model"] == "sasrec":
        section["history"] = length
    sizes = {
        "num_users": users,
        "num_items": items,
        "num_classes": 0,
        "item_bias": np.zeros(items, np.float32),
        "warm": warm,
    }
    model_spec = student_spec(spec["model"], section, **sizes)
    graphdef, params, constants = split(
        build_student(spec["model"], model_spec, {}, rngs=nnx.Rngs(0))
    )
    positions, targets = (length, 1) if spec["model"] == "sasrec" else (1, 16)
    made = {
        "user": rng.integers(0, users, (STEPS, 1, batch)),
        "history": rng.integers(0, items, (STEPS, 1, batch, length)),
        "targets": rng.integers(0, items, (STEPS, 1, batch, positions, targets)),
        "row": np.broadcast_to(np.arange(batch), (STEPS, 1, batch)),
    }
    batches = {name: value.astype(np.int32) for name, value in made.items()}
    batches["target_weights"] = np.full(made["targets"].shape, 1 / targets, np.float32)
    batches["weights"] = np.ones((STEPS, 1, batch, positions), np.float32)
    teacher: dict[str, Any] = {}
    if spec["teacher"]:
        teacher[OWN] = {
            "contexts": rng.standard_normal((batch, positions, dim), np.float32),
            "items": rng.standard_normal((items, dim), np.float32) * 0.1,
            "bias": np.zeros(items, np.float32),
        }

    def labels(teacher: Any, batch: Any) -> TeacherScores:
        return TeacherScores(
            Factors(teacher["contexts"][batch["row"]], teacher["items"], teacher["bias"])
        )

    objective = [Term("clicks", CrossEntropy())]
    teacher_fns = {}
    if spec["teacher"]:
        objective.append(Term("soft", KL()))
        teacher_fns = {OWN: labels}
    tx = Recipe(STEPS, batch, 0.01).tx()
    step, state = compiled_step(
        StepSpec(graphdef, tuple(objective), tx, STEPS, teacher_fns), params, mesh=mesh, seed=0
    )
    constants = sharding.put(constants, mesh)
    teacher = sharding.put_labels(teacher, mesh)
    sizes = {
        jax.tree_util.keystr(p, simple=True): x.size
        for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    mine = sharding.local_rows(mesh, batch)
    local = {name: x if mine is None else x[:, :, mine] for name, x in batches.items()}
    parts = [
        sharding.put_batches({name: x[i] for name, x in local.items()}, mesh, batch)
        for i in range(STEPS)
    ]
    compiled = step.lower(state, parts[0], None, constants, teacher).compile()
    sent = collectives(compiled.as_text()) if count > 1 else []
    losses = []
    times = []
    for part in parts:
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, part, None, constants, teacher))
        times.append(time.perf_counter() - start)
        terms = metrics.pop("terms")
        losses.append({name: float(value) for name, value in (metrics | terms).items()})
    return (
        {
            "values": losses,
            "time": min(times[1:]),
            "sent": sum(c["bytes"] for c in sent),
            "collectives": sent,
        }
        | least(spec, sizes, positions)
        | measuring.machine()
    )


def least(spec: dict[str, Any], sizes: dict[str, int], positions: int) -> dict[str, float]:
    """Bytes that a device must send in a step; see above."""
    count, batch, dim, length = (spec[k] for k in ("count", "batch", "dim", "length"))
    share = (
        4 * (count - 1) / count
    )  # of one f32 that is gathered or scattered; an all-reduce is both
    if spec["axis"] == "data":
        looked_up = 0 if spec["model"] == "sasrec" else sizes["user"]
        dense = 2 * share * sum(sizes.values())
        return {
            "least": dense,
            "sparse": dense - 2 * share * looked_up + share * min(looked_up, batch * dim),
        }
    rows = batch * positions
    per_row = 3 + 3 * spec["teacher"]
    contexts = batch * dim if spec["model"] == "mf" else 2 * rows * dim
    arriving = batch * dim if spec["model"] == "mf" else batch * length * dim
    found = share * (arriving + contexts + 2 * rows * per_row)
    return {"least": found, "sparse": found}


def in_processes(spec: dict[str, Any], count: int) -> dict[str, Any]:
    """The measurements of process 0 of ``count``, with one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        spec = spec | {
            "count": count,
            "processes": count,
            "coordinator": f"localhost:{free.getsockname()[1]}",
        }
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with ThreadPoolExecutor(count) as pool:
        found = list(
            pool.map(
                lambda i: measuring.child(__file__, spec | {"process": i}, **env), range(count)
            )
        )
    return next((one for one in found if "failed" in one), found[0])


def _cut(text: str) -> str:
    return text if len(text) < 90 else text[:80] + " …"


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/scaling.json")
    parser.add_argument("--devices", type=measuring.numbers, default=[1, 2, 4, 8])
    parser.add_argument(
        "--processes",
        type=measuring.numbers,
        default=[],
        help="each with one device (default: none)",
    )
    parser.add_argument("--models", type=lambda text: text.split(","), default=["mf", "sasrec"])
    parser.add_argument("--axes", type=lambda text: text.split(","), default=["data", "model"])
    parser.add_argument("--batch", type=int, default=64, help="rows; over 'data' of each device")
    parser.add_argument(
        "--items",
        type=measuring.number,
        default=8192,
        help="and users; over 'model' of each device",
    )
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--length", type=int, default=20, help="of SASRec's histories")
    parser.add_argument(
        "--teacher", action="store_true", help="CE + KL against cached labels, instead of CE"
    )
    parser.add_argument(
        "--largest", type=int, default=3, help="instructions shown for every program"
    )
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure)))
    rows = []
    notes = []
    print(measuring.table(HEAD, []), flush=True)
    for model in args.models:
        for axis in args.axes:
            sizes = [
                (count, less, 1)
                for count in args.devices
                for less in ((0, 1) if axis == "model" and count > 1 else (0,))
            ]
            sizes += [(count, 0, count) for count in args.processes]
            for count, less, processes in sizes:
                scale = {"batch": args.batch, "items": args.items}
                scale["batch" if axis == "data" else "items"] *= count
                scale["items"] -= less
                spec = {
                    "model": model,
                    "axis": axis,
                    **scale,
                    "dim": args.dim,
                    "length": args.length,
                }
                spec["teacher"] = args.teacher

                def on(devices: int, spec: dict[str, Any] = spec) -> dict[str, Any]:
                    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
                    return measuring.child(__file__, spec | {"count": devices}, **env)

                alone = on(1)
                row = on(count) if processes == 1 else in_processes(spec, processes)
                if "failed" in alone or "failed" in row:
                    raise SystemExit(f"{spec}: failed")
                pairs = zip(alone["values"], row["values"], strict=True)
                row["difference"] = max(abs(b["loss"] / a["loss"] - 1) for a, b in pairs)
                rows.append(row | {"one_device": alone["time"]})
                cells = [
                    model,
                    axis,
                    count,
                    processes,
                    row["batch"],
                    f"{row['items']:,}",
                    f"{row['difference']:.1e}",
                    f"{1e3 * alone['time']:.1f}",
                    f"{1e3 * row['time']:.1f}",
                    sum(c["times"] for c in row["collectives"]),
                    f"{row['sent'] / 1e6:.3f}",
                    f"{row['least'] / 1e6:.3f}",
                    f"{row['sent'] / row['least']:.2f}" if row["least"] else "",
                    f"{row['sparse'] / 1e6:.3f}",
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
                for one in sorted(row["collectives"], key=lambda c: -c["bytes"])[: args.largest]:
                    what = (
                        f"{one['kind']} {_cut(one['shape'])}, {one['times']} x: {_cut(one['op'])}"
                    )
                    notes.append(
                        (
                            f"{model}, {axis} {count} in {processes}",
                            f"{one['bytes'] / 1e6:.3f}",
                            what,
                        )
                    )
    print(f"\nThe largest\n\n{measuring.table(('program', 'MB sent', 'instruction'), notes)}")
    measuring.write(args.out, rows)
    wrong = [r for r in rows if r["difference"] > 1e-4]
    if wrong:
        raise SystemExit(
            f"losses differ from one device's by more than 1e-4 in {len(wrong)} of {len(rows)} rows"
        )


if __name__ == "__main__":
    main()
