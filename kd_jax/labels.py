"""Compute a sample of the cached labels of a workdir again, and compare.

python -m kd_jax.labels --workdir=runs/quickstart
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.core.errors import InputError
from kd_jax.distillation.label_cache import TOLERANCE
from kd_jax.experiment import label_store


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all labels of a workdir are what their teachers say, 1 if not, 2 if that cannot be
    told.
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
    return process.status(lambda: run_command(workdir, options.rows), workdir)


def run_command(workdir: Path, rows: int) -> int:
    if rows < 1:
        raise InputError(f"--rows={rows} must be at least 1")
    wrong = False
    for checked in label_store.verify(workdir, rows):
        bad = not checked.error <= TOLERANCE
        print(f"{checked}{' (WRONG)' if bad else ''}")
        wrong |= bad
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
