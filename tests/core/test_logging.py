"""The plain lines of progress, by a clock that the test sets."""

import io

import pytest
from rich.console import Console

from kd_jax.core import logging
from kd_jax.core.logging import Log


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: now[0])
    return now


def lines(clock, tmp_path, updates):
    """What is printed for (second, steps done, terms)."""
    console = Console(file=io.StringIO(), width=160)
    log = Log(tmp_path / "metrics.jsonl", "ndcg@10", console)
    with log, log.stage("student", total=100, start=10) as bar:
        for second, done, terms in updates:
            clock[0] = 100.0 + second
            bar.update(done, terms)
    return console.file.getvalue().splitlines()


def test_the_time_left_is_counted_from_the_first_steps_on(clock, tmp_path):
    terms = {"loss": 0.5, "grad_norm": 1.0}
    # 50 s until the first 10 steps are there, compiled; then a step a second
    found = lines(clock, tmp_path, [(50, 20, terms), (54, 24, terms), (60, 30, terms)])
    assert found[0] == "student: step 24/100 loss 0.5000, at most 76 s left"
    assert found[1] == "student: step 30/100 loss 0.5000, at most 70 s left"


def test_a_stage_without_terms_does_not_stop_early(clock, tmp_path):
    found = lines(clock, tmp_path, [(0, 10, None), (10, 30, None)])
    assert found[0] == "student: step 30/100, 35 s left"
