"""Settings that follow the data: evaluations by the number of users, samples by that of items."""

import pytest

from helpers.runs import config
from kd_jax.core.logging import Log
from kd_jax.experiment import roles
from kd_jax.experiment.builders import recipe_of
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import objective


@pytest.fixture
def experiment(world, tmp_path):
    """Makes the experiment of a run with some fields; the world has 40 users and 24 items."""
    with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
        yield lambda **fields: Experiment(config(world, **fields), tmp_path / "run", log)


@pytest.mark.parametrize(("batch_size", "every"), [(8, 10), (2, 30), (1, 60), (512, 10)])
def test_an_evaluation_every_1_5_passes_in_tens_of_steps(experiment, batch_size, every):
    fields = {"student.optimizer.eval_every": 0, "student.optimizer.batch_size": batch_size}
    recipe = recipe_of(experiment(**fields), roles.ROLES["student"])
    assert recipe.eval_every == every and recipe.chunk == 10


@pytest.mark.parametrize(
    ("negatives", "top", "student", "distilled"),
    [(20, 3, "sampled", "sampled"), (20, 4, "sampled", "all"), (24, 0, "all", "all")],
)
def test_a_sample_of_all_items_is_all_items(experiment, negatives, top, student, distilled):
    fields = {
        "student.clicks.items": "sampled",
        "distill.terms.clicks.items": "sampled",
        "distill.terms.soft.items": "sampled",
        "distill.negatives": negatives,
        "distill.top": top,
    }
    found = experiment(**fields)
    assert [term.items for term in objective(found, roles.ROLES["student"])] == [student]
    terms = objective(found, roles.ROLES["distilled"])
    assert {term.items for term in terms} == {distilled}
    assert all(term.sampled or (term.negatives, term.top) == (0, 0) for term in terms)


def test_a_sample_of_the_warm_items_becomes_the_warm_items(experiment):
    fields = {"student.clicks.items": "sampled_warm", "distill.negatives": 99}
    (term,) = objective(experiment(**fields), roles.ROLES["student"])
    assert term.items == "warm"
