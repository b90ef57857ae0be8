"""Measures how time and memory grow with interactions, users, items and batch size.

    python benchmarks/growth.py [--interactions=1e6,4e6] [--users=1e5] [--items=1e4,1e5] \\
        [--batch=256,1024]

One size is varied at a time, from a common middle point. For every point ``large.py`` runs on
generated data in a process of its own: preparation, a few steps of MF (d=64, CE over the whole
catalogue), and rankings for some users. Users with fewer than five interactions are left out, and
the sizes shown are those that remain. prepare: reading, filtering, splitting, saving, loading and
the training examples. ms a step: of training, without compilation. GFLOP/s: of the matrix products,
3 x 2 x batch x items x d, or 4 x where tiles of items compute the logits twice. users/s: for top-10
lists from the whole catalogue. peak: of resident memory in training. A table is printed; ``--out``
gets its numbers and, with the ending .svg, a plot. ``scaling.py`` measures several devices.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import measuring

LARGE = str(Path(__file__).with_name("large.py"))
MIDDLE = {"interactions": 4_000_000, "users": 200_000, "items": 100_000, "batch": 1024}
FIXED = {"dim": 64, "history": 50, "steps": 8, "ranked_users": 512, "eval_batch": 256}
PREPARE = ("read", "filter, index, split", "save", "load", "training examples")
HEAD = ("axis", *MIDDLE, "prepare s", "ms a step", "GFLOP/s", "users/s", "peak GB")
SHOWN = {
    "prepare": "prepare, s",
    "step": "a training step, s",
    "user": "top-10 of a user, ms",
    "peak": "peak, GB",
}


def point(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    into = folder / "-".join(str(sizes[name]) for name in ("interactions", "users", "items"))
    specs: list[dict[str, Any]] = [FIXED | {"batch": sizes["batch"], "folder": str(into)}]
    if not (into / "items.parquet").exists():
        specs.insert(
            0,
            {
                "into": str(into),
                "sizes": [sizes[name] for name in ("interactions", "users", "items")],
            },
        )
    for spec in specs:
        found = measuring.child(LARGE, spec)
        if "failed" in found:
            raise SystemExit(f"{sizes}: {found['failed']}")
    stages = {row["stage"]: row for row in found["stages"]}
    train = next(row for row in found["stages"] if "steps_per_second" in row)
    ranked = next(row for row in found["stages"] if "users_per_second" in row)
    return sizes | found["kept"] | {
        "prepare": sum(stages[name]["seconds"] for name in PREPARE),
        "step": 1 / train["steps_per_second"],
        "flops": train["flops_per_second"],
        "user": 1e3 / ranked["users_per_second"],
        "peak": train["peak"] / 1e9,
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    labels = [("times the middle point", label) for label in SHOWN.values()]
    with measuring.plot(path, labels, (13, 3.4)) as axes:
        for axis, key in zip(axes, SHOWN, strict=True):
            for name, colour in zip(
                MIDDLE, ("#0068a6", "#d35400", "#2e8540", "#7d3c98"), strict=True
            ):
                chosen = sorted(
                    (row for row in rows if row["axis"] == name), key=lambda row: row[name]
                )
                middle = next(row[name] for row in chosen if row["middle"])
                points = [row[name] / middle for row in chosen], [row[key] for row in chosen]
                axis.plot(*points, marker="o", markersize=4, color=colour, label=name)


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/growth.json")
    for name, size in MIDDLE.items():
        default = [size // 4, size, size * 4]
        parser.add_argument(
            f"--{name}", type=measuring.numbers, default=default, help="the middle point is added"
        )
    args = parser.parse_args()
    print(measuring.table(HEAD, []), flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        middle = point(Path(folder), MIDDLE)
        for name in MIDDLE:
            for value in sorted({*getattr(args, name), MIDDLE[name]}):
                found = (
                    middle if value == MIDDLE[name] else point(Path(folder), MIDDLE | {name: value})
                )
                rows.append({"axis": name, "middle": found is middle} | found)
                cells = [
                    name,
                    *(f"{found[key]:,}" for key in MIDDLE),
                    f"{found['prepare']:.1f}",
                    f"{1e3 * found['step']:.0f}",
                    f"{found['flops'] / 1e9:.0f}",
                    f"{1e3 / found['user']:,.0f}",
                    f"{found['peak']:.2f}",
                ]
                print("| " + " | ".join(cells) + " |", flush=True)
    measuring.write(args.out, rows)
    plot(rows, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
