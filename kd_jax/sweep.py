"""Search for the hyper-parameters of roles: what a config has in ``tuned``.

    python launch.py                                       # once: data and labels
    python -m kd_jax.sweep --workdir=runs/quickstart --models teacher control_teacher --trials=12
    python -m kd_jax.sweep --workdir=runs/quickstart       # students, once labels are final

Each role gets the same number of trials, scored on validation alone. docs/configuration.md has the
order for each recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.experiment import roles
from kd_jax.experiment.sweep import sweep


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workdir", type=Path, required=True, help="the workdir of a run")
    parser.add_argument("--trials", type=int, default=24, help="of the first seed (default: 24)")
    parser.add_argument(
        "--finalists", type=int, default=3, help="trials that train all seeds (default: 3)"
    )
    parser.add_argument(
        "--models", nargs="+", default=(), choices=list(roles.ROLES), metavar="ROLE",
        help=f"of {', '.join(roles.ROLES)} (default: the students of the run, without those that"
        " learn from another one)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    process.start()
    workdir = options.workdir.expanduser()
    return process.status(
        lambda: sweep(workdir, options.models, options.trials, options.finalists), workdir
    )


if __name__ == "__main__":
    sys.exit(main())
