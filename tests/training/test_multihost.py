"""Several processes on one machine, each with its own CPU device.

They give the results of one process, stop together, and resume with the same result.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from helpers import toy
from helpers.runs import ROOT, config, flags, metrics_of, run
from kd_jax.distillation import label_cache
from kd_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

STEPS = 640  # enough for a signal to come in time, even on a fast machine
FIELDS = {
    "stages": ("data", "student"),
    "student.optimizer.steps": STEPS,
    "student.optimizer.eval_every": 10,
    "student.optimizer.patience": 1000,
    "student.mf.dim": 256,
}


class Job:
    """``launch.py`` in ``count`` processes that find each other by the flags."""

    def __init__(self, world, workdir, count, own=(), **fields):
        """Starts the processes. own: of each process, flags that it alone has."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.workdir = workdir
        self.children = [
            subprocess.Popen(
                [sys.executable, str(ROOT / "launch.py"), *flags(world, workdir, **FIELDS | fields),
                 f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}",
                 *dict(enumerate(own)).get(i, ())],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            )
            for i in range(count)
        ]  # fmt: skip

    def wait(self):
        """Exit statuses and what was printed, once all have ended."""
        printed = [child.communicate(timeout=480)[0] for child in self.children]
        return [child.returncode for child in self.children], printed

    def after_step(self, step):
        """Returns when that checkpoint is on disk (and the job still runs)."""
        until = time.monotonic() + 240
        while not (self.workdir / f"student/checkpoints/{step}").exists():
            assert all(child.poll() is None for child in self.children), self.wait()
            assert time.monotonic() < until, f"no checkpoint of step {step} in four minutes"
            time.sleep(0.02)


def final(workdir):
    return Checkpoints(workdir / "student").plain(STEPS)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    statuses, printed = Job(world, workdir, 2).wait()
    assert statuses == [0, 0], printed
    assert "student (seed 0): done" in printed[0]
    assert "student" not in printed[1], "only one process prints"
    return workdir


def test_stopped_or_killed_in_mid_run_a_job_ends_with_the_same_result(world, whole, tmp_path):
    job = Job(world, tmp_path / "cut", 2)
    job.after_step(20)
    job.children[1].send_signal(signal.SIGTERM)  # all hosts stop at the same step
    statuses, printed = job.wait()
    assert statuses == [143, 143], printed
    assert "is saved at step" in printed[0]
    saved = Checkpoints(tmp_path / "cut/student").latest()
    assert 20 <= saved < STEPS
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")

    job = Job(world, tmp_path / "cut", 2)
    job.after_step(-(-(saved + 30) // 10) * 10)
    job.children[1].send_signal(signal.SIGKILL)
    statuses, printed = job.wait()
    assert all(statuses), "nobody goes on alone"
    assert Checkpoints(tmp_path / "cut/student").latest() < STEPS

    statuses, printed = Job(world, tmp_path / "cut", 2).wait()
    assert statuses == [0, 0], printed
    jax.tree.map(np.testing.assert_array_equal, final(tmp_path / "cut"), final(whole))

    statuses, printed = Job(world, tmp_path / "alone", 1).wait()  # it was started by two
    assert statuses == [0], printed
    assert f"resumes from the checkpoint of step {saved}" in printed[0]
    found, expected = (final(folder)["params"] for folder in (tmp_path / "alone", whole))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), found, expected
    )


def test_a_process_that_fails_alone_ends_at_once_with_an_error(world, tmp_path):
    job = Job(world, tmp_path / "run", 2, own=((), ("--config.stages=('studnet',)",)))
    try:
        printed, _ = job.children[1].communicate(timeout=120)
        assert job.children[1].returncode == 2
        assert "error: stages: 'studnet' is unknown; did you mean 'student'?" in printed
        assert job.children[0].poll() != 0, "nobody goes on alone"
    finally:
        job.children[0].kill()
        job.wait()


def test_four_processes_with_split_tables_do_the_whole_run_that_one_does(tmp_path):
    """Language model training, labels, students and ranking on 2 x 2 devices of four processes."""
    world = toy.write_csv(tmp_path / "world", users=1050, ratings=True)
    toy.tiny_bert(world / "bert")
    fields = {
        "stages": ("data", "teacher", "labels", "distilled", "evaluate"),
        "student.mf.dim": 32,  # with so many users enough for a table that is split
        "teacher.lm.train": "full",
        "teacher.model.item_features": "text+id",
        "teacher.optimizer.steps": 12,
        "eval.ks": (10, 20),
        "student.optimizer.steps": 20,
    }
    statuses, printed = Job(
        world, tmp_path / "four", 4, **fields, **{"mesh.data": 2, "mesh.model": 2}
    ).wait()
    assert statuses == [0] * 4, printed
    run(config(world, **FIELDS | fields), tmp_path / "one")
    one, four = (
        label_cache.read(tmp_path / name / "labels/teacher.seed0") for name in ("one", "four")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), four, one)
    one, four = (
        Checkpoints(tmp_path / name / "distilled").plain(20)["params"] for name in ("one", "four")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), four, one)
    one, four = (metrics_of(tmp_path / name)["models"] for name in ("one", "four"))
    for row, other in zip(one, four, strict=True):
        for metric in ("auc", "ndcg@10", "coverage@10"):
            assert other["test"][metric] == pytest.approx(row["test"][metric], abs=0.01), (
                row["name"],
                metric,
            )
