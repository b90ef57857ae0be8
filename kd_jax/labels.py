"""Compute a sample of the cached labels of a workdir again, and compare.

python -m kd_jax.labels --workdir=runs/quickstart
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.experiment.verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status.

    The status is 0 if all labels of a workdir agree with their teachers, 1 if some do not, and 2 if
    they cannot be compared.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.labels", description="Compute a sample of labels again."
    )
    parser.add_argument("--workdir", required=True, help="the workdir of a run that wrote labels")
    parser.add_argument(
        "--rows", type=int, default=256, help="examples of each folder (default: 256)"
    )
    options = parser.parse_args(arguments)
    process.start()
    workdir = Path(options.workdir).expanduser()
    return process.status(lambda: verify(workdir, options.rows), workdir)


if __name__ == "__main__":
    sys.exit(main())
