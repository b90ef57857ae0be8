"""One page from several finished runs, or the report of one run anew.

python -m kd_jax.report runs/quickstart runs/sasrec --out=runs/compared.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.core.errors import InputError
from kd_jax.experiment import roles
from kd_jax.report import page, runs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.report", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("workdirs", nargs="+", type=Path, metavar="RUN", help="the workdir of a finished run")
    add("--out", type=Path, metavar="FILE", help="of the page of several runs (needed for them)")
    add("--peers", type=Path, metavar="FILE", help="what benchmarks/peers.py --out=FILE wrote")
    options = parser.parse_args(arguments)
    workdirs = [workdir.expanduser() for workdir in options.workdirs]

    def body() -> None:
        legend, out = roles.legend(), options.out
        if out is None and (len(workdirs) > 1 or options.peers):
            raise InputError("several runs, or --peers, need --out=FILE, the page to write")
        if out is None:
            print(f"report: {page.write(workdirs[0], legend)}")
        else:
            print(f"report: {runs.write(workdirs, legend, out.expanduser(), options.peers)}")

    return process.status(body, workdirs[0])


if __name__ == "__main__":
    sys.exit(main())
