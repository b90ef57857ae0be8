"""Blocks that are computed ahead."""

from __future__ import annotations

import threading
import time

import pytest

from kd_jax.runtime import threads


@pytest.mark.parametrize("cores", [1, 3])
def test_results_are_in_order_and_few_are_computed_ahead(monkeypatch, cores):
    monkeypatch.setattr(threads, "cores", lambda: cores)
    started = []

    def slow(n):
        started.append(n)
        time.sleep(0.01 * (n % 3))
        return n * n

    found = threads.ahead(slow, range(12))
    assert next(found) == 0
    assert len(started) <= cores + 1
    assert list(found) == [n * n for n in range(1, 12)]
    assert sorted(started) == list(range(12))


def test_blocks_run_side_by_side(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    both = threading.Barrier(2, timeout=20)
    list(threads.ahead(lambda _: both.wait(), range(2)))


def test_an_error_is_raised_in_its_turn(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    found = threads.ahead(lambda n: 1 // (2 - n), range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_nothing_to_compute():
    assert list(threads.ahead(str, [])) == []
