"""A run that one set of versions began goes on, and is read, under another.

KD_JAX_OTHER_PYTHON: the Python of another environment with kd_jax's requirements (.ci/versions
sets it). Without it there is nothing to compare with.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from helpers.runs import ROOT, flags, metrics_of

OTHER = os.environ.get("KD_JAX_OTHER_PYTHON", "")
pytestmark = pytest.mark.skipif(not OTHER, reason="KD_JAX_OTHER_PYTHON is not set")


def start(python, arguments):
    # The flags of XLA in conftest.py are those of this environment's version.
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [python, str(ROOT / "launch.py"), *arguments],
        cwd=ROOT,
        env=kept | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def whole(python, arguments):
    process = start(python, arguments)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def measured(workdir):
    return [
        {name: model[name] for name in ("name", "seed", "valid", "test")}
        for model in metrics_of(workdir)["models"]
    ]


def test_a_run_goes_on_and_is_read_under_other_versions(world, tmp_path):
    workdir = tmp_path / "run"
    fields = {
        "stages": ("data", "student", "evaluate", "export"),
        "student.optimizer.steps": 300,
        "student.optimizer.eval_every": 20,
        "student.optimizer.patience": 1000,
    }
    arguments = flags(world, workdir, **fields)
    first = start(OTHER, arguments)
    steps = workdir / "student/checkpoints"
    while first.poll() is None and not (steps.exists() and any(steps.glob("[0-9]*"))):
        time.sleep(0.02)
    first.terminate()
    text, _ = first.communicate(timeout=600)
    assert any(steps.glob("[0-9]*")), text
    assert not (workdir / "student/result.json").exists(), text
    began = max(int(path.name) for path in steps.glob("[0-9]*"))
    whole(sys.executable, arguments)
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scored = [event["step"] for event in events if "valid" in event and "step" in event]
    assert 0 < began < 300 and scored == sorted(set(scored)) and scored[-1] == 300
    found = measured(workdir)
    assert "student (seed 0): up to date" in whole(OTHER, arguments)
    assert measured(workdir) == found
