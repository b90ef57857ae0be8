"""Prepare a data set that is larger than memory, once, for data.reader='prepared'.

python -m kd_jax.data.prepare --interactions=clicks/ --items=films.parquet --out=prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import fields, process
from kd_jax.core.errors import InputError
from kd_jax.data.prepared import streaming
from kd_jax.data.prepared.options import PrepareOptions


def parse(prog: str, arguments: Sequence[str] | None) -> tuple[PrepareOptions, Path]:
    """The options and the folder in the arguments of a command; exits at an unknown one."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, help="the folder, which is made")
    for name, default in fields.defaults(PrepareOptions).items():
        required = name == "interactions"
        parser.add_argument(
            f"--{name}", default=None, required=required, help=f"default {default!r}"
        )
    values = {
        name: value
        for name, value in vars(parser.parse_args(arguments)).items()
        if value is not None
    }
    folder = Path(values.pop("out")).expanduser()
    try:
        return streaming.options_of(values), folder
    except ValueError as error:
        raise InputError(f"{prog}: {error}; see --help") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 for bad input."""

    def run() -> None:
        options, folder = parse("python -m kd_jax.data.prepare", arguments)
        if not streaming.prepare(options, folder):
            print(f"{folder}: up to date")

    return process.status(run, Path("."))


if __name__ == "__main__":
    sys.exit(main())
