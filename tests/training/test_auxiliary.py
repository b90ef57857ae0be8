"""Auxiliary parameters: trained, checkpointed and resumed, and no part of the model."""

import jax
import numpy as np
import pytest

from helpers.terms import term
from helpers.training import examples_of, final_state, student_of, task_of, teacher_of
from kd_jax.core.logging import Log
from kd_jax.devices import sharding
from kd_jax.distillation.teachers import online_teacher
from kd_jax.distillation.term import OWN
from kd_jax.models.scorer import split
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.job import TrainingJob
from kd_jax.training.loop import train
from kd_jax.training.recipe import Recipe

OBJECTIVE = (term("ce"), term("item_matching"), term("kl", head=True, name="soft"))


class Stopped(Exception):
    pass


def fit(folder, stop_at=0, mesh=(1, 1)):
    """Ten steps of a small MF; stop_at: the evaluation that ends them early."""
    task = task_of(False)
    graphdef, params, constants = split(student_of(task, "mf"))
    evaluations = iter(range(1, 99))

    def evaluate(params, constants):
        assert params.keys() == {"user", "item", "bias"}
        if next(evaluations) == stop_at:
            raise Stopped
        return 0.0

    folder.mkdir(exist_ok=True)
    with (
        Log(folder / "metrics.jsonl", "ndcg@10", silent=True) as log,
        Checkpoints(folder / "student", {"seed": 0}) as checkpoints,
    ):
        job = TrainingJob(
            "student",
            0,
            graphdef,
            params,
            constants,
            examples_of(task, "user"),
            OBJECTIVE,
            Recipe(10, 16, 1e-2, eval_every=5, patience=99),
            evaluate,
            checkpoints,
            sharding.make_mesh(*mesh),
            log,
            teachers={OWN: online_teacher(*teacher_of(task), example_kind="user")},
        )
        return train(job)


def test_they_are_trained_and_checkpointed_and_no_part_of_the_model(tmp_path):
    trained = fit(tmp_path / "whole")
    assert trained.params.keys() == {"user", "item", "bias"}
    state = final_state(tmp_path / "whole")
    assert state["params"].keys() == trained.params.keys()
    found = state["auxiliary"]
    assert found["item_matching"].keys() == {"kernel", "bias"} and found["soft"].keys() == {"head"}
    assert np.abs(found["item_matching"]["bias"]).max() > 0
    assert np.abs(found["soft"]["head"] - np.eye(16)).max() > 0


def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path):
    fit(tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tmp_path / "cut", stop_at=2)
    fit(tmp_path / "cut")
    whole, cut = (final_state(tmp_path / name) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


@pytest.mark.slow
def test_a_mesh_trains_them_alike(tmp_path):
    fit(tmp_path / "one")
    fit(tmp_path / "many", mesh=(2, 2))
    one, many = (final_state(tmp_path / name)["auxiliary"] for name in ("one", "many"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, many)
