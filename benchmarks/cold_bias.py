"""Cold items among all items, as models are trained and with more bias, by the rule of the export.

    python benchmarks/cold_bias.py --workdir=runs/quickstart [--loss=0.005]

The text teacher and the student distilled from it get the most bias for items without a train
interaction with which NDCG@10 of warm targets falls by at most --loss on validation
(``experiment/new_items.py``). The table has the means of the seeds on test. Users have the vectors
of training, not those of newer clicks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.measuring import table
from benchmarks.new_items import ROLE
from kd_jax.core.logging import Log
from kd_jax.experiment import roles
from kd_jax.experiment.new_items import NewItems, most_added
from kd_jax.experiment.trained import TrainedModels, open_workdir

METRICS = ("ndcg@10", "recall@20")  # of warm and of cold targets
ROLES = (roles.main_teacher(), ROLE)


def measure(models: TrainedModels, role: roles.Role, loss: float) -> list[list[float]]:
    """For each seed: the bias, and both metrics on test as trained and with it."""
    found = []
    for seed in models.experiment.seeds:
        items = NewItems(models.open(role, seed))
        more = most_added(items.with_more_bias(METRICS), loss)
        test = items.with_more_bias(METRICS, "test")
        found.append([more, *test(0.0), *test(more)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--loss", type=float, default=0.005, help="share of warm NDCG@10")
    options = parser.parse_args()
    workdir = options.workdir.expanduser()
    lines = []
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        models = open_workdir(workdir, log)
        for role in ROLES:
            columns = np.array(measure(models, role, options.loss)).T
            cells = [f"{row.mean():.4f} ({min(row):.4f} to {max(row):.4f})" for row in columns]
            lines.append((role.name, *cells))
    warm, cold = "NDCG@10, warm", "Recall@20, cold among all"
    with_it = (f"{warm}, with it", f"{cold}, with it")
    print(
        table(("model", "more bias", f"{warm}, as trained", f"{cold}, as trained", *with_it), lines)
    )


if __name__ == "__main__":
    main()
