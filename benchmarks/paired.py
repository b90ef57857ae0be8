"""The gain of a model of one run over a model of another, with its interval.

    python benchmarks/paired.py --baseline=runs/ids/distilled --candidate=runs/beauty/distilled

Both are folders WORKDIR/ROLE of runs on the same data and split; all their seeds are evaluated on
test. The table has the means ± standard deviations over seeds and the relative gain with the 95 %
paired bootstrap over users of the mean over seeds, as in a report (``evaluation.significance``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.distillation import percent, spread
from benchmarks.measuring import table
from kd_jax.core.logging import Log
from kd_jax.evaluation.significance import paired_bootstrap
from kd_jax.experiment.roles import ROLES
from kd_jax.experiment.trained import open_workdir


def per_user(folder: Path, names: Sequence[str]) -> tuple[str, dict[str, np.ndarray]]:
    """The checksum of the data, and each metric of every seed and user f32 [S, U] on test."""
    if folder.name not in ROLES:
        raise SystemExit(f"{folder}: {folder.name!r} is not a role; known: {', '.join(ROLES)}")
    workdir, role = folder.parent, ROLES[folder.name]
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        models = open_workdir(workdir, log)
        experiment = models.experiment
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for seed in experiment.seeds:
            values = models.open(role, seed).evaluate("test").per_user
            for name in names:
                if name not in values:
                    raise SystemExit(f"{name} is not among {', '.join(sorted(values))}")
                found[name].append(values[name])
    return experiment.dataset.checksum, {name: np.stack(rows) for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("baseline", "candidate"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--metrics", type=lambda text: text.split(","), default=["ndcg@10", "recall@10"]
    )
    parser.add_argument("--resamples", type=int, default=2000, help="as eval.bootstrap")
    options = parser.parse_args()
    (one, before), (other, after) = (
        per_user(folder.expanduser().absolute(), options.metrics)
        for folder in (options.baseline, options.candidate)
    )
    if one != other:
        raise SystemExit("the runs have other data or another split; users cannot be paired")
    rows = []
    for name in options.metrics:
        gain = paired_bootstrap(before[name], after[name], resamples=options.resamples)
        cells = [spread(np.nanmean(side[name], axis=1).tolist()) for side in (before, after)]
        low, high = map(percent, gain.ci95)
        rows.append((name, *cells, f"{percent(gain.relative)} % ({low} to {high})"))
    print(table(("metric", "baseline", "candidate", "gain"), rows))


if __name__ == "__main__":
    main()
