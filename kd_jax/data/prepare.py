"""Prepare a data set that is larger than memory, once, for data.reader='prepared'.

python -m kd_jax.data.prepare --interactions=clicks/ --items=films.parquet --out=prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_jax.core import fields, process
from kd_jax.core.errors import InputError
from kd_jax.data.prepared import streaming
from kd_jax.data.prepared.options import PrepareOptions


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    return tuple(float(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names between commas; '' is none."""
    return tuple(part for part in text.split(",") if part)


# Of the fields whose default is not of the type of a single value.
TYPES: dict[str, Callable[[str], Any]] = {
    "ratios": numbers,
    "text_columns": names,
    "min_rating": float,
}


def parse(prog: str, arguments: Sequence[str] | None) -> tuple[PrepareOptions, Path]:
    """The options and the folder in the arguments of a command; exits at an unknown one."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--out", required=True, type=Path, help="the folder, which is made")
    for name, default in fields.defaults(PrepareOptions).items():
        parser.add_argument(
            f"--{name}", default=default, type=TYPES.get(name, type(default)),
            required=name == "interactions", help=f"default {default!r}",
        )  # fmt: skip
    try:
        values = vars(parser.parse_args(arguments))
        folder = values.pop("out").expanduser()
        return PrepareOptions(**values), folder
    except (argparse.ArgumentError, InputError) as error:
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
