"""Rerank the best items of a trained model with a cross-encoder.

    python -m kd_jax.rerank --workdir=runs/quickstart --model=student --candidates=20 \\
        --set teacher.lm.train=top_n
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.experiment.rerank import rerank


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.rerank", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, help="the workdir of a finished run with task='rank'"
    )
    parser.add_argument(
        "--model",
        default="",
        help="the model that supplies the candidates (default: the plain student)",
    )
    parser.add_argument(
        "--candidates", type=int, default=20, help="how many of them, per user (default: 20)"
    )
    parser.add_argument(
        "--negatives", type=int, default=4, help="items drawn per training example (default: 4)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="a field of teacher: --set teacher.optimizer.steps=200",
    )
    options = parser.parse_args(arguments)
    process.start()
    workdir, name = options.workdir.expanduser(), options.model
    return process.status(
        lambda: print(
            rerank(workdir, name, options.candidates, options.negatives, options.set).summary()
        ),
        workdir,
    )


if __name__ == "__main__":
    sys.exit(main())
