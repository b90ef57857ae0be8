"""benchmarks/gpu.py finds in a run what it prints."""

import json

from benchmarks import gpu
from helpers.training import HISTORY, Fit, student_of
from kd_jax.evaluation import latency
from kd_jax.models.scorer import split


def test_a_run_has_the_figures_of_its_steps_and_rankings(tmp_path):
    fit = Fit(tmp_path / "run", steps=15)
    fit.traces = tmp_path / "trace"
    fit()
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    (row,) = gpu.steps("run", {"lines": list(lines)})
    name, examples, host, device, share, _ = row
    assert name == "run: student" and float(examples.replace(",", "")) > 0
    assert "dispatch" in host and "compute" in device and share.endswith("%")
    model = split(student_of(fit.task, "mf"))
    rates = latency.rates(fit.task.dataset, *model, HISTORY)
    ((name, rate),) = gpu.ranked("run", {"models": [{"name": "student"} | rates]})
    assert name == "run: student" and float(rate.replace(",", "")) > 0
