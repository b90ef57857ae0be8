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
from kd_jax.serving.recommender import print_top


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.recommend", description="Top-k items of a trained run."
    )
    parser.add_argument("--workdir", required=True, help="the workdir of a finished run")
    parser.add_argument("--user", help="a user id of the data set")
    parser.add_argument("--history", help="item ids or titles, oldest first, separated by |")
    parser.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    options = parser.parse_args(arguments)
    workdir = Path(options.workdir)
    return process.status(
        lambda: print_top(workdir, options.user, options.history, options.k), workdir
    )


if __name__ == "__main__":
    sys.exit(main())
