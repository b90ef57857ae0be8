#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: after a step whose metric is NaN, CheckpointManager deletes the best step.
#
# Expected: with best_fn, best_mode="max" and max_to_keep=1, the step with the highest metric is kept
# and is best_step(), and NaN, which is not the best of anything, is never it (or save raises). Seen:
# steps are sorted by the metric as it is, and NaN compares as neither less nor greater, so what
# comes before it is never compared with what comes after. Of metrics .5, NaN, .4 only the step with
# .4 is left on disk and is best_step(); of .5, .4, NaN only the one with NaN is. The same with
# preservation_policy=BestN(n=1). There is no error and no warning about the metric.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet orbax-checkpoint==0.12.8 jax==0.10.2
"$python" - 2>"$folder/stderr" <<'PYTHON' || { cat "$folder/stderr"; exit 1; }
import math
import tempfile

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy


def read(metrics):
    return metrics["ndcg"]


def kept(values, **options):
    """The steps on disk and the best one, after a step with each of the metrics."""
    chosen = ocp.CheckpointManagerOptions(best_fn=read, best_mode="max", **options)
    with ocp.CheckpointManager(tempfile.mkdtemp(), options=chosen) as manager:
        for step, value in enumerate(values):
            state = ocp.args.StandardSave({"weights": np.full(3, step)})
            manager.save(step, args=state, metrics={"ndcg": value})
        manager.wait_until_finished()
        return list(manager.all_steps()), manager.best_step()


best = preservation_policy.BestN(
    get_metric_fn=read, n=1, keep_checkpoints_without_metrics=False
)
for options in ({"max_to_keep": 1}, {"preservation_policy": best}):
    assert kept([0.5, 0.4], **options) == ([0], 0)
    for values, lost_to in (([0.5, math.nan, 0.4], 2), ([0.5, 0.4, math.nan], 2)):
        found = kept(values, **options)
        print(*options, values, "on disk:", found[0], "best:", found[1])
        assert found == ([lost_to], lost_to), "changed: NaN no longer hides a better step"
PYTHON
