"""Write a synthetic data set in the format of a published one.

python -m kd_jax.data.synthetic amazon --out=data/amazon
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import fields, process
from kd_jax.core.errors import InputError
from kd_jax.data.synthetic import SHAPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the sizes cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.data.synthetic",
        description="Write a synthetic data set; results on it are smoke tests.",
    )
    shapes = parser.add_subparsers(dest="name", required=True)
    for name, write in SHAPES.items():
        shape = shapes.add_parser(
            name, help=sys.modules[write.__module__].__doc__, allow_abbrev=False
        )
        shape.add_argument("--out", required=True, help="the folder, which is made if need be")
        for field, default in fields.defaults(write).items():
            shape.add_argument(f"--{field}", type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args(arguments))
    name, folder = options.pop("name"), Path(options.pop("out")).expanduser()
    return process.status(lambda: run(name, folder, options), folder)


def run(name: str, folder: Path, sizes: dict[str, int]) -> None:
    """Writes the shape ``name`` and prints its files; raises InputError for a size below 1."""
    for field, value in sizes.items():
        if value < (0 if field == "seed" else 1):
            raise InputError(f"--{field}={value} must be {0 if field == 'seed' else 1} or more")
    for path in SHAPES[name](folder, **sizes):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
