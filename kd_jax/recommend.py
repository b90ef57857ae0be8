"""Top-k items for a known user, or for a history.

python -m kd_jax.recommend --workdir=runs/quickstart --user=42 -k 10
python -m kd_jax.recommend --workdir=runs/quickstart --history="Gravity (2013)|Argo (2012)"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.serving.recommender import load


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.recommend", description="Top-k items of a trained run."
    )
    parser.add_argument("--workdir", required=True, help="the workdir of a finished run")
    parser.add_argument("--user", help="a user id of the data set")
    parser.add_argument("--history", help="item ids or titles, oldest first, separated by |")
    parser.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    options = parser.parse_args(arguments)
    history = (
        None
        if options.history is None
        else [part.strip() for part in options.history.split("|") if part.strip()]
    )
    return process.status(lambda: run_command(options, history), Path(options.workdir))


def run_command(options: argparse.Namespace, history: list[str] | None) -> None:
    table = load(options.workdir).recommend(user=options.user, history=history, k=options.k)
    for row in table.iter_rows(named=True):
        print(f"{row['rank']:>3}  {row['score']:8.4f}  {row['title']}  [{row['item']}]")
    if len(table) < options.k:
        print(f"{len(table)} items: the catalogue has no more that were not seen", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
