"""Compares tiled catalogue losses with whole [rows, items] logits as the catalogue grows.

    python benchmarks/streamed_loss.py [--rows=512] [--items=10_000,100_000]

Measures time, memory and FLOPs for value and gradient of CE, and of CE + KL against a teacher, from
random factors; every line of the table in a process of its own. By default (4096 rows, up to 1M
items) that takes some ten minutes on two cores, on any device of JAX. A table is printed; ``--out``
gets its numbers and, with the ending .svg, a plot of memory and time.

s: the best of the runs after the first that fit in ``--seconds``, at least one. extra: the memory
peak of the first run, without the memory in use before (inputs included) and without the gradients;
on a CPU resident memory, with XLA's scratch space. temp: the buffers in XLA's plan
(``temp_size_in_bytes``). FLOPs: of the matrix products, each 2 x rows x items x width. Useful are 3
for the student (logits, gradients of contexts and of items) and 1 for the teacher; tiles of items
compute both logits twice: 4 and 2. ceiling: the best product of two 4096 x 4096 matrices before,
between and after the runs, in the same process. The last column is the time relative to that of the
FLOPs done at the ceiling.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import measuring

LOSSES = {"ce": ("ce",), "ce+kl": ("ce", "kl")}
PRODUCTS = {
    "useful": (3, 1),
    "rows": (3, 1),
    "items": (4, 2),
    "plain": (3, 1),
}  # of the student, of the teacher
LIVE = 6  # arrays of [rows, items] in f32 that the plain version has at once, about
HEAD = (
    "version",
    "losses",
    "items",
    "tiling",
    "s",
    "extra MB",
    "temp MB",
    "TFLOP useful",
    "TFLOP done",
    "GFLOP/s ceiling",
    "of ceiling, useful",
    "of ceiling, done",
    "time / (done / ceiling)",
)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from kd_jax.core.process import keep_freed_memory
    from kd_jax.core.scores import Factors
    from kd_jax.core.tiling import tile_shape, tile_size
    from kd_jax.losses.dense import per_row as dense
    from kd_jax.losses.softmax import KL, CrossEntropy
    from kd_jax.losses.streamed import mean_losses
    from kd_jax.losses.terms import Inputs, Rows, SoftmaxTerm

    rows = spec["rows"]
    items = spec["items"]
    width = spec["width"]
    names = LOSSES[spec["losses"]]
    rng = np.random.default_rng(0)
    kinds = {"ce": CrossEntropy(), "kl": KL()}
    terms = tuple(SoftmaxTerm(kinds[name]) for name in names)
    coefficients = jnp.ones(len(names))

    def factors() -> Factors:
        vectors, contexts = (
            rng.standard_normal((n, width), np.float32) * width**-0.25 for n in (items, rows)
        )
        return Factors(
            jnp.asarray(contexts, spec["dtype"]),
            jnp.asarray(vectors, spec["dtype"]),
            jnp.zeros(items),
        )

    student = factors()
    teacher = factors() if "kl" in names else None
    targets = jnp.asarray(rng.integers(0, items, (rows, 1)), jnp.int32)
    given = Rows(targets, jnp.ones((rows, 1)), jnp.full(rows, 1 / rows))

    def plain(contexts: Any, vectors: Any, bias: Any, teacher: Factors | None, given: Rows) -> Any:
        logits = Factors(contexts, vectors, bias).dense()
        per_row = dense(CrossEntropy(), logits, (given.targets, given.target_weights))
        if teacher is not None:
            per_row = per_row + dense(KL(), logits, teacher.dense())
        return jnp.sum(per_row * given.weights)

    def streamed(
        contexts: Any, vectors: Any, bias: Any, teacher: Factors | None, given: Rows
    ) -> Any:
        inputs = Inputs(given, coefficients, teacher)
        return mean_losses(terms, Factors(contexts, vectors, bias), inputs)[0]

    function = {"plain": plain, "streamed": streamed}[spec["version"]]
    arguments = (*student[:3], teacher, given)
    compiled = jax.jit(jax.value_and_grad(function, (0, 1, 2))).lower(*arguments).compile()
    jax.block_until_ready(arguments)
    on_device = jax.devices()[0].memory_stats()
    before = on_device["bytes_in_use"] if on_device else measuring.reset_peak()
    value, gradients = jax.block_until_ready(compiled(*arguments))
    peak = (
        jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        if on_device
        else measuring.memory("VmHWM")
    )
    extra = peak - before - sum(g.nbytes for g in gradients)
    del gradients

    keep_freed_memory()  # as every run does
    rate = measuring.ceiling(spec["dtype"])
    rates = [rate()]
    times = list[float]()
    started = time.perf_counter()
    while not times or time.perf_counter() - started < spec["seconds"]:
        size = len(times)
        while size == len(times) or sum(times[size:]) < 0.5:
            times.append(measuring.seconds(lambda: compiled(*arguments)))
        rates.append(rate())

    tiling = "rows" if tile_shape(rows, items, tile_size())[1] == items else "items"
    done = tiling if spec["version"] == "streamed" else "plain"
    memory = compiled.memory_analysis()
    found: dict[str, Any] = {
        "value": float(value),
        "tiling": done,
        "time": min(times),
        "runs": len(times),
        "ceiling": max(rates),
    }
    found |= {"extra": extra, "temp": memory.temp_size_in_bytes if memory else None}
    for kind, (own, soft) in (("useful", PRODUCTS["useful"]), ("done", PRODUCTS[done])):
        products = own + soft if "kl" in names else own
        found[kind] = 2 * rows * items * width * products
        found[f"{kind}_share"] = found[kind] / found["time"] / found["ceiling"]
    return found | {"ratio": 1 / found["done_share"]} | measuring.machine()


def cells(row: dict[str, Any]) -> list[str]:
    start = [row["version"], row["losses"], f"{row['items']:,}"]
    if "time" not in row:
        return [*start, row["failed"], *("" for _ in HEAD[4:])]
    return [
        *start, row["tiling"], f"{row['time']:.3g}", f"{row['extra'] / 1e6:.0f}",
        "" if row["temp"] is None else f"{row['temp'] / 1e6:.0f}", f"{row['useful'] / 1e12:.3f}",
        f"{row['done'] / 1e12:.3f}", f"{row['ceiling'] / 1e9:.0f}", f"{row['useful_share']:.0%}",
        f"{row['done_share']:.0%}", f"{row['ratio']:.2f}",
    ]  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    with measuring.plot(
        path, [("items", "extra memory, MB"), ("items", "time, s")], (9, 3.6)
    ) as axes:
        for axis, key, scale in ((axes[0], "extra", 1e6), (axes[1], "time", 1)):
            for version, style in (("plain", "--"), ("streamed", "-")):
                for kind, colour in (("ce", "#0068a6"), ("ce+kl", "#d35400")):
                    chosen = [
                        r
                        for r in rows
                        if (r["version"], r["losses"]) == (version, kind) and "time" in r
                    ]
                    points = [r["items"] for r in chosen], [r[key] / scale for r in chosen]
                    axis.plot(
                        *points,
                        style,
                        marker="o",
                        markersize=4,
                        color=colour,
                        label=f"{version}, {kind}",
                    )


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/streamed_loss.json")
    parser.add_argument("--rows", type=measuring.number, default=4096)
    parser.add_argument(
        "--items", type=measuring.numbers, default=[10_000, 30_000, 100_000, 300_000, 1_000_000]
    )
    parser.add_argument(
        "--width", type=int, default=128, help="of the student's vectors and of the teacher's"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=3.0, help="to repeat a measurement for")
    parser.add_argument(
        "--plain-limit", type=float, default=4.0, help="GB that the plain version may take"
    )
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure)))
    run = functools.partial(measuring.child, __file__)
    rows = []
    print(
        f"{args.rows:,} rows, width {args.width}, {args.dtype}\n\n{measuring.table(HEAD, [])}",
        flush=True,
    )
    for items in args.items:
        for softmax in LOSSES:
            for version in ("plain", "streamed"):
                spec = {"version": version, "losses": softmax, "items": items}
                if version == "plain" and args.rows * items * 4 * LIVE > args.plain_limit * 1e9:
                    rows.append(spec | {"failed": "does not fit"})
                else:
                    given = {
                        name: getattr(args, name) for name in ("rows", "width", "dtype", "seconds")
                    }
                    rows.append(run(spec | given))
                print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
    pairs = [
        (a, b) for a, b in zip(rows[::2], rows[1::2], strict=True) if "value" in a and "value" in b
    ]
    worst = max((abs(a["value"] / b["value"] - 1) for a, b in pairs), default=float("nan"))
    print(f"\nStreamed and plain losses differ by {worst:.1e} at most, relatively.")
    measuring.write(args.out, rows)
    plot(rows, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
