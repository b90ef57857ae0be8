"""Train a language model towards the item vectors of a trained model.

python -m kd_jax.adapt --workdir=runs/ids --out=weights/adapted
python launch.py --config.teacher.lm.weights=weights/adapted
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.experiment.adapt import MIX, adapt


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.adapt", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, help="the workdir of a finished run with task='rank'"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="the folder to write, for --config.teacher.lm.weights",
    )
    parser.add_argument(
        "--model",
        default="",
        help="the model that supplies the item vectors (default: the teacher)",
    )
    parser.add_argument("--seed", type=int, help="of that model (default: the run's first)")
    parser.add_argument(
        "--mix",
        type=float,
        default=MIX,
        help="interpolation weight between the first (0) and trained (1) weights (default: 0.5)",
    )
    parser.add_argument(
        "--set", action="append", default=[], help="how it learns: --set teacher.lm.train=lora"
    )
    options = parser.parse_args(arguments)
    process.start()
    workdir, out = options.workdir.expanduser(), options.out.expanduser()
    return process.status(
        lambda: print(
            adapt(workdir, out, options.model, options.seed, options.mix, options.set).summary(out)
        ),
        options.out,
    )


if __name__ == "__main__":
    sys.exit(main())
