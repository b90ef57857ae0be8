"""The documented example, classes that do not take part, and precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from helpers.terms import loss_of, term
from kd_jax.core.scores import TeacherScores
from kd_jax.losses import LOSSES
from kd_jax.losses.dense import per_row

RNG = np.random.default_rng(0)
TEACHER, STUDENT = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.6, 0.4]))


@functools.partial(jax.jit, static_argnums=0)
def row(name, logits, other, *more):
    return per_row(LOSSES[name](), logits, other, *more)


def clicks(logits, targets, weights, where=None):
    return row("ce", logits, (jnp.asarray(targets), jnp.asarray(weights)), 1.0, where)


def test_the_documented_example():
    assert row("soft_ce", STUDENT, TEACHER) == pytest.approx(0.591919, abs=1e-6)
    assert row("kl", STUDENT, TEACHER) == pytest.approx(0.091516, abs=1e-6)
    batch = {
        "targets": jnp.zeros((1, 1, 1), int),
        "target_weights": jnp.ones((1, 1, 1)),
        "weights": jnp.ones((1, 1)),
    }
    objective = (term("soft_ce", 0.5), term("kl", 0.5))
    teachers = {"": TeacherScores(TEACHER[None, None])}
    total, _ = loss_of(objective, STUDENT[None, None], batch, teachers)
    assert total == pytest.approx(0.341717, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_losses_equal_scipy(temperature):
    teacher, student = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    p = softmax(teacher / temperature, -1)
    q = softmax(student / temperature, -1)
    divergence = temperature**2 * rel_entr(p, q).sum(-1)
    np.testing.assert_allclose(row("kl", student, teacher, temperature), divergence, rtol=2e-4)
    expected = -(temperature**2) * (p * log_softmax(student / temperature, -1)).sum(-1)
    np.testing.assert_allclose(row("soft_ce", student, teacher, temperature), expected, rtol=1e-4)
    middle = (p + q) / 2
    halves = rel_entr(p, middle).sum(-1) + rel_entr(q, middle).sum(-1)
    np.testing.assert_allclose(
        row("js", student, teacher, temperature), temperature**2 * halves / 2, rtol=2e-4
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
    np.testing.assert_allclose(clicks(logits, targets, weights), expected, rtol=1e-5)


def test_masked_classes_are_as_if_they_did_not_exist():
    where = np.array([True, False, True, True, False])
    teacher, student = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    few = np.flatnonzero(where)
    for name in ("kl", "soft_ce", "js"):
        np.testing.assert_allclose(
            row(name, student, teacher, 2.0, where),
            row(name, student[:, few], teacher[:, few], 2.0),
            rtol=1e-5,
        )
    hard = clicks(student, [[2], [0], [3], [1]], np.ones((4, 1)), jnp.asarray(where))
    few_targets = clicks(student[:3, few], [[1], [0], [2]], np.ones((3, 1)))
    np.testing.assert_allclose(hard[:3], few_targets, rtol=1e-5)
    assert hard[3] == 0  # its target is masked out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_without_targets_or_classes_have_zero_loss_and_finite_zero_gradient(dtype):
    logits = jnp.asarray(RNG.normal(size=(2, 4)), dtype)
    nowhere = jnp.zeros(4, bool)
    for loss in (
        lambda x: clicks(x, np.full((2, 3), -1), np.ones((2, 3))).sum(),
        lambda x: row("kl", x, logits, 1.0, nowhere).sum(),
        lambda x: row("js", x, logits, 1.0, nowhere).sum(),
        lambda x: clicks(x, np.zeros((2, 1), int), np.ones((2, 1)), nowhere).sum(),
    ):
        value, gradient = jax.value_and_grad(loss)(logits)
        assert value == 0
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0.0)


def test_bf16_logits_are_summed_in_f32():
    logits = jnp.asarray(RNG.normal(size=(2, 3000)), jnp.bfloat16)
    targets = np.zeros((2, 1), int), np.ones((2, 1))
    exact = clicks(logits.astype(jnp.float32), *targets)
    np.testing.assert_allclose(clicks(logits, *targets), exact, rtol=1e-6)


def test_large_logits_that_all_rows_share_cost_no_precision():
    teacher, student = RNG.normal(size=(2, 3, 9)).astype(np.float32)
    for name in ("kl", "soft_ce", "js"):
        np.testing.assert_allclose(
            row(name, student + 4096.0, teacher), row(name, student, teacher), rtol=2e-3
        )
