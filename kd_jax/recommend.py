"""Top-k items for a known user, for a history, or for all users; similar items; explanations.

python -m kd_jax.recommend --workdir=runs/quickstart --user=42 -k 10
python -m kd_jax.recommend --workdir=runs/quickstart --history="Gravity (2013)|Argo (2012)"
python -m kd_jax.recommend --workdir=runs/quickstart --all --out=recs.parquet
python -m kd_jax.recommend --workdir=runs/quickstart --similar="Gravity (2013)"
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(
        prog="python -m kd_jax.recommend", description="Top-k items of a trained run."
    )
    add = found.add_argument
    add("--workdir", required=True, help="the workdir of a finished run")
    add("--user", help="a user id of the data set")
    add("--history", help="item ids or titles, oldest first, separated by |; with --user: newer")
    add("--all", action="store_true", help="all users of the data set; needs --out")
    add("--users", metavar="FILE", help="a text file with a user id per line; needs --out")
    add("--out", help="write a .parquet or .csv file: user, rank, item, title, score")
    add("--similar", metavar="ITEM", help="items that fit to this one")
    add("--explain", metavar="ITEM", help="the parts of this item's score, for --user or --history")
    add("-k", type=int, default=10, help="number of items (default: 10)")
    add("--exclude", metavar="ITEMS", help="items to leave out: a file with one per line, or"
        " column=value of the items table")  # fmt: skip
    add("--only", metavar="ITEMS", help="the items to choose from; as --exclude")
    add("--include-seen", action="store_true", help="keep items of the user's history")
    add("--diversity", type=float, default=0.0, help="0 (default) to 1: variety of the list")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Blocks of users run side by side already; OpenBLAS reads this when NumPy starts, hence the
    # imports.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from kd_jax.core import process
    from kd_jax.serving import command

    return process.status(lambda: command.run(options), Path(options.out or options.workdir))


if __name__ == "__main__":
    sys.exit(main())
