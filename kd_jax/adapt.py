"""Train a language model towards the item vectors of a trained model.

python -m kd_jax.adapt --workdir=runs/ids --out=weights/adapted
python launch.py --config.teacher.lm.weights=weights/adapted
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.core import process
from kd_jax.experiment.adapt import MIX, READS, adapt


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
        "--model", default="teacher", help="whose item vectors are learned (default: teacher)"
    )
    parser.add_argument("--seed", type=int, help="of that model (default: the run's first)")
    parser.add_argument(
        "--mix", type=float, default=MIX, help="how far to go to the trained weights (default: 0.5)"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="how it learns: --set teacher.lm.train=lora"
    )
    options = parser.parse_args(arguments)
    process.start()
    return process.status(lambda: run_command(options), options.out)


def run_command(options: argparse.Namespace) -> None:
    out = options.out.expanduser()
    report = adapt(
        options.workdir.expanduser(), out, options.model, options.seed, options.mix, options.set
    )
    now, before = report["explained"], report["explained_before"] or {}
    told = {
        kind: f"{now[kind]:.1%}" + (f" ({before[kind]:.1%} before)" if before else "")
        for kind in now
    }
    print(
        f"{out}: learned from {report['items']:,} items in {report['train_seconds']:.0f} s, best at"
        f" step {report['best_step']} of {report['steps']}, where texts explain {told['learned']}"
        f" of the variance of their vectors, and {told['held_out']} of that of"
        f" {report['held_out']:,} held-out items; {report['mix']:g} of the way there is saved"
    )
    worse = [kind.replace("_", "-") for kind in now if now[kind] < before.get(kind, 0.0)]
    if worse:
        print(
            f"warning: of the {' and '.join(worse)} items' vectors the texts explain less than"
            f" {'before' if before else 'their mean does'}; try another number of"
            " teacher.optimizer.steps, a"
            " lower teacher.optimizer.lm_learning_rate or a smaller --mix, and compare on validation with"
            " the first weights"
        )
    flags = {"lm.weights": out} | {name: report["teacher"][name] for name, usual in READS.items()
                                if report["teacher"][name] != usual}  # fmt: skip
    print(
        "use it with "
        + " ".join(f"--config.teacher.{name}={shlex.quote(str(x))}" for name, x in flags.items())
    )


if __name__ == "__main__":
    sys.exit(main())
