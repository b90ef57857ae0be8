"""Runs of the docs again: a value lies in its range, outside of it, or is missing."""

import json

import pytest

from benchmarks import published
from benchmarks.sets import SETS


def finished(workdir, name, values, seeds):
    models = [{"name": name, "seed": seed, "test": values} for seed in seeds]
    (workdir / "report").mkdir(parents=True)
    (workdir / "report/metrics.json").write_text(json.dumps({"models": models}))


@pytest.mark.parametrize(
    ("seeds", "value", "verdict"),
    [
        ((0, 1, 2), 0.0208, "inside"),
        ((0, 1, 2), 0.0209, "OUTSIDE"),
        ((0,), 0.0209, "inside"),  # one seed has more room
        ((0,), 0.0217, "OUTSIDE"),
        ((None,), 0.0209, "OUTSIDE"),  # a baseline has no seeds
        ((0, 1, 2), 0.0191, "OUTSIDE"),
    ],
)
def test_a_value_is_in_its_range_or_outside(tmp_path, seeds, value, verdict):
    row = published.Row("row", "beauty", published.values(student=(0.02,)))
    finished(tmp_path, "student", {"ndcg@10": value}, seeds)
    (line,) = published.measured(row, tmp_path)
    assert line[:4] == ("row", "student", "ndcg@10", "0.0200")
    assert line[-2:] == (f"{value:.4f}", verdict)


def test_a_run_that_is_not_there_is_missing(tmp_path):
    row = published.Row("row", "beauty", published.values(student=(0.02, 0.03)))
    assert [line[-1] for line in published.measured(row, tmp_path)] == ["missing", "missing"]


def test_every_row_is_of_a_known_set():
    assert {row.set for row in published.ROWS} <= set(SETS)
    assert set(published.QUICK) <= {row.name for row in published.ROWS}


def test_a_row_learns_from_students_of_a_row_before_it(tmp_path):
    (tmp_path / "citeulike").mkdir()
    names = [row.name for row in published.ROWS]
    for row in published.ROWS:
        assert not row.teacher or names.index(row.teacher) < names.index(row.name)
    (row,) = [row for row in published.ROWS if row.name == "citeulike-d10"]
    assert row.command(tmp_path, tmp_path / "out") == [
        "--config=configs/citeulike.py:d10",
        f"--config.distill.sources.a.path={tmp_path}/out/citeulike-wide/student",
        f"--config.distill.sources.b.path={tmp_path}/out/citeulike-wide/student.seed1",
        f"--config.distill.sources.c.path={tmp_path}/out/citeulike-wide/student.seed2",
    ]
