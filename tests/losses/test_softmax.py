"""Losses against closed forms, finite differences and scipy; and the objective that sums them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax, rel_entr, softmax

from kd_jax.core.errors import InputError
from kd_jax.core.scores import TeacherScores
from kd_jax.distillation.objective import mean_loss
from kd_jax.distillation.term import Term
from kd_jax.losses.softmax import cross_entropy, kl, soft_cross_entropy

RNG = np.random.default_rng(0)
TEACHER, STUDENT = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.6, 0.4]))


def one_hot_batch(targets, weights=None):
    targets = jnp.asarray(targets)
    return {
        "targets": targets,
        "target_weights": jnp.ones(targets.shape) / targets.shape[-1],
        "weights": jnp.ones(targets.shape[:-1]) if weights is None else jnp.asarray(weights),
    }


def test_the_documented_example():
    ce, divergence = soft_cross_entropy(TEACHER, STUDENT), kl(TEACHER, STUDENT)
    assert ce == pytest.approx(0.591919, abs=1e-6)
    assert divergence == pytest.approx(0.091516, abs=1e-6)
    objective = (Term("soft_ce", 0.5), Term("kl", 0.5))
    batch = one_hot_batch([[[0]]])
    total, _ = mean_loss(
        objective,
        STUDENT[None, None],
        batch,
        {"teacher": TeacherScores(TEACHER[None, None])},
        None,
        jnp.zeros(()),
    )
    assert total == pytest.approx(0.341717, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_losses_equal_scipy(temperature):
    teacher, student = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    p, q = softmax(teacher / temperature, -1), softmax(student / temperature, -1)
    np.testing.assert_allclose(
        kl(teacher, student, temperature), temperature**2 * rel_entr(p, q).sum(-1), rtol=2e-4
    )
    expected = -(temperature**2) * (p * log_softmax(student / temperature, -1)).sum(-1)
    np.testing.assert_allclose(
        soft_cross_entropy(teacher, student, temperature), expected, rtol=1e-4
    )


def test_cross_entropy_of_weighted_targets_equals_scipy():
    logits = RNG.normal(size=(3, 6)).astype(np.float32)
    targets = np.array([[0, 3, -1], [5, -1, -1], [1, 2, 4]])
    weights = np.array([[0.25, 0.75, 0], [1, 0, 0], [0.2, 0.3, 0.5]], np.float32)
    log_p = log_softmax(logits, -1)
    expected = [
        -sum(w * log_p[b, t] for t, w in zip(targets[b], weights[b], strict=True) if t >= 0)
        for b in range(3)
    ]
    np.testing.assert_allclose(cross_entropy(logits, targets, weights), expected, rtol=1e-5)


def test_masked_classes_are_as_if_they_did_not_exist():
    where = np.array([True, False, True, True, False])
    teacher, student = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    few = np.flatnonzero(where)
    np.testing.assert_allclose(
        kl(teacher, student, 2.0, where), kl(teacher[:, few], student[:, few], 2.0), rtol=1e-5
    )
    np.testing.assert_allclose(
        soft_cross_entropy(teacher, student, 2.0, where),
        soft_cross_entropy(teacher[:, few], student[:, few], 2.0),
        rtol=1e-5,
    )
    hard = cross_entropy(
        student, jnp.array([[2], [0], [3], [1]]), jnp.ones((4, 1)), jnp.asarray(where)
    )
    few_targets = cross_entropy(student[:3, few], jnp.array([[1], [0], [2]]), jnp.ones((3, 1)))
    np.testing.assert_allclose(hard[:3], few_targets, rtol=1e-5)
    assert hard[3] == 0  # its target is masked out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_without_targets_or_classes_have_zero_loss_and_finite_zero_gradient(dtype):
    logits = jnp.asarray(RNG.normal(size=(2, 4)), dtype)
    nowhere = jnp.zeros(4, bool)
    for loss in (
        lambda x: cross_entropy(x, jnp.full((2, 3), -1), jnp.ones((2, 3))).sum(),
        lambda x: kl(logits, x, 1.0, nowhere).sum(),
        lambda x: cross_entropy(x, jnp.zeros((2, 1), int), jnp.ones((2, 1)), nowhere).sum(),
    ):
        value, gradient = jax.value_and_grad(loss)(logits)
        assert value == 0
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0.0)


def test_bf16_logits_are_summed_in_f32():
    logits = jnp.asarray(RNG.normal(size=(2, 3000)), jnp.bfloat16)
    exact = cross_entropy(logits.astype(jnp.float32), jnp.zeros((2, 1), int), jnp.ones((2, 1)))
    np.testing.assert_allclose(
        cross_entropy(logits, jnp.zeros((2, 1), int), jnp.ones((2, 1))), exact, rtol=1e-6
    )


@pytest.mark.parametrize("items", ["all", "warm"])
def test_gradients_of_every_term_reach_the_student_only_and_match_finite_differences(items):
    teacher, student = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 2, 3, 5)))
    warm = jnp.array([True, True, False, True, True])
    batch = one_hot_batch(
        RNG.integers(0, 5, (2, 3, 2)), RNG.uniform(size=(2, 3)).astype(np.float32)
    )
    for term in (
        Term("ce", 1.0, items=items),
        Term("kl", 2.0, 2.0, items=items),
        Term("soft_ce", 1.0, 0.7, items=items),
    ):

        def loss(student, teacher, term=term):
            return mean_loss(
                (term,), student, batch, {"teacher": TeacherScores(teacher)}, warm, jnp.zeros(())
            )[0]

        check_grads(
            lambda s: loss(s, teacher), (student,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2
        )  # noqa: B023
        by_student, by_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
        assert jnp.abs(by_student).max() > 0
        np.testing.assert_array_equal(by_teacher, 0.0)


def test_the_mean_weighs_positions_and_ignores_padding():
    logits = jnp.asarray(RNG.normal(size=(2, 2, 4)), jnp.float32)
    batch = one_hot_batch([[[0], [1]], [[2], [-1]]], [[1.0, 3.0], [2.0, 0.0]])
    each = np.asarray(cross_entropy(logits, batch["targets"], batch["target_weights"]))
    total, means = mean_loss((Term("ce", 2.0),), logits, batch, None, None, jnp.zeros(()))
    expected = (each[0, 0] + 3 * each[0, 1] + 2 * each[1, 0]) / 6
    assert means["ce"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(2 * expected, rel=1e-5)


def test_schedules_start_at_the_weight_and_end_at_zero():
    at = [jnp.asarray(x) for x in (0.0, 0.5, 1.0)]
    for schedule, middle in (("linear", 1.5), ("cosine", 1.5)):
        values = [float(Term("kl", 3.0, schedule=schedule).weight_at(x)) for x in at]
        assert values == pytest.approx([3.0, middle, 0.0], abs=1e-6)
    assert [float(Term("kl", 3.0).weight_at(x)) for x in at] == [3.0, 3.0, 3.0]


def test_a_term_that_does_not_exist_is_named_with_its_neighbour():
    with pytest.raises(InputError, match="'kll' is unknown; did you mean 'kl'"):
        Term("kll")
    with pytest.raises(InputError, match="temperature .* must be positive"):
        Term("kl", 1.0, 0.0)
