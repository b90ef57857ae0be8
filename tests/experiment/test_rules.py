"""Settings that follow the data: evaluations by the number of users, samples by that of items."""

import pytest

from configs.common import get_config
from helpers.runs import config
from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.experiment import roles
from kd_jax.experiment.builders import recipe_of
from kd_jax.experiment.config import recipe
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.objectives import objective


@pytest.fixture
def experiment(world, tmp_path):
    """Makes the experiment of a run with some fields; the world has 40 users and 24 items."""
    with Log(tmp_path / "metrics.jsonl", "ndcg@10") as log:
        yield lambda **fields: Experiment(config(world, **fields), tmp_path / "run", log)


@pytest.mark.parametrize(("batch_size", "every"), [(8, 50), (2, 50), (1, 60), (512, 50)])
def test_an_evaluation_every_1_5_passes_or_50_steps(experiment, batch_size, every):
    fields = {"eval_every": 0, "steps": 1000, "batch_size": batch_size}
    fields = {f"student.optimizer.{name}": value for name, value in fields.items()}
    found = recipe_of(experiment(**fields), roles.ROLES["student"])
    assert found.eval_every == every and found.chunk == 10


@pytest.mark.parametrize(
    ("users", "steps", "batch_size", "every"),
    [
        (10**6, 6000, 128, 600),
        (943, 6000, 128, 50),
        (40, 200, 8, 20),
        (40, 5, 8, 10),
        (22_363, 6000, 128, 260),
        (40, 20, 0, None),
    ],
)
def test_evaluations_are_neither_too_rare_nor_endless(users, steps, batch_size, every):
    section = get_config().student.optimizer
    section.update({"eval_every": 0, "steps": steps, "batch_size": batch_size})
    if every is None:
        with pytest.raises(InputError, match="batch_size=0"):
            recipe(section, users)
    else:
        assert recipe(section, users).eval_every == every


@pytest.mark.parametrize(
    ("negatives", "top", "items"), [(20, 3, "sampled"), (20, 4, "all"), (24, 0, "all")]
)
def test_a_sample_of_all_items_is_all_items(experiment, negatives, top, items):
    fields = {
        "student.clicks.items": "sampled",
        "distill.terms.clicks.items": "sampled",
        "distill.terms.soft.items": "sampled",
        "distill.negatives": negatives,
        "distill.top": top,
    }
    found = experiment(**fields)
    assert [term.items for term in objective(found, roles.ROLES["student"])] == [items]
    terms = objective(found, roles.ROLES["distilled"])
    assert {term.items for term in terms} == {items}
    assert all(term.sampled or (term.negatives, term.top) == (0, 0) for term in terms)


def test_a_sample_of_the_warm_items_becomes_the_warm_items(experiment):
    fields = {"student.clicks.items": "sampled_warm", "distill.negatives": 99}
    (term,) = objective(experiment(**fields), roles.ROLES["student"])
    assert term.items == "warm"
