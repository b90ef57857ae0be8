"""Vectors that are kept at one length."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import training
from helpers.marks import first_fast
from kd_jax.core.errors import InputError
from kd_jax.data.splits import VALID
from kd_jax.training.recipe import Recipe
from kd_jax.training.sphere import on_sphere

LENGTH = 2.5


def on_it(rows):
    return LENGTH * rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_step_is_that_of_a_loss_of_normalised_vectors():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(on_it(rng.normal(size=(4, 3))), jnp.float32)
    target = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def loss(free):
        vectors = LENGTH * free / jnp.linalg.norm(free, axis=1, keepdims=True)
        return jnp.sum(jnp.tanh(vectors * target))

    wanted = on_it(rows - 0.1 * jax.grad(loss)(rows))  # jax.grad goes through the normalisation
    tx = on_sphere(optax.sgd(0.1), LENGTH)
    gradient = {"item": jax.grad(lambda rows: jnp.sum(jnp.tanh(rows * target)))(rows)}
    moves, _ = tx.update(gradient, tx.init({"item": rows}), {"item": rows})
    np.testing.assert_allclose(rows + moves["item"], wanted, rtol=1e-5, atol=1e-6)


def test_it_finds_the_best_vectors_of_the_length():
    target = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    params = {"user": jnp.zeros((5, 3))}  # from zeros, as tables of users start
    tx = on_sphere(optax.adam(0.05), LENGTH)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda params: -jnp.sum(params["user"] * target))(params)
        moves, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, moves), state

    state = tx.init(params)
    for _ in range(400):
        params, state = step(params, state)
    np.testing.assert_allclose(params["user"], on_it(target), atol=1e-2)


def test_rows_without_a_gradient_keep_their_start_and_other_parameters_are_free():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(3, 2)).astype(np.float32) / 10
    params = {"item": jnp.asarray(rows), "bias": jnp.ones(3), "user": jnp.zeros((2, 2))}
    slope = {
        "item": jnp.asarray([[1.0, 2.0], [0.0, 0.0], [0.0, 0.5]]),
        "bias": jnp.ones(3),
        "user": jnp.asarray([[0.0, 0.0], [3.0, -4.0]]),
    }
    tx = on_sphere(optax.sgd(0.1), LENGTH)
    moves, _ = tx.update(slope, tx.init(params), params)
    after = optax.apply_updates(params, moves)
    norms = np.linalg.norm(after["item"], axis=1)
    np.testing.assert_allclose(norms[[0, 2]], LENGTH, rtol=1e-6)
    np.testing.assert_array_equal(after["item"][1], rows[1])
    np.testing.assert_allclose(after["bias"], 0.9)
    np.testing.assert_allclose(after["user"], [[0, 0], [-0.6 * LENGTH, 0.8 * LENGTH]], rtol=1e-6)


def test_momentum_makes_no_row_longer_than_it_was():
    rows = jnp.asarray([[3.0, 4.0], [0.6, 0.8], [1.5, 2.0]])  # longer, shorter, of the length
    params, slope = {"item": rows}, {"item": jnp.zeros((3, 2))}
    drift = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params: ({"item": jnp.asarray([[0.3, 0.4]] * 3)}, state),
    )
    moves, _ = on_sphere(drift, LENGTH).update(slope, optax.EmptyState(), params)
    norms = np.linalg.norm(rows + moves["item"], axis=1)
    np.testing.assert_allclose(norms, [5.0, 1.5, LENGTH], rtol=1e-6)


@pytest.mark.parametrize(
    "recipe", first_fast([{}, {"sparse": True}, {"accumulate": 3}, {"moments": "bfloat16"}])
)
def test_trained_vectors_have_the_length(tmp_path, recipe):
    fit = training.Fit(tmp_path, vector_norm=LENGTH, **recipe)
    fit()
    state = training.final_state(tmp_path)["params"]
    np.testing.assert_allclose(np.linalg.norm(state["item"], axis=1), LENGTH, rtol=1e-5)
    assert np.diff(fit.task.dataset.history(VALID)[0]).all(), "every user has a train item"
    lengths = np.linalg.norm(state["user"], axis=1)
    # between two of its batches, momentum moves the vector of a user
    assert lengths.max() < LENGTH + 1e-4 and lengths.min() > 0.99 * LENGTH


@pytest.mark.parametrize("norm", [-1.0, float("inf"), float("nan")])
def test_a_length_that_is_none_is_refused(norm):
    with pytest.raises(InputError, match="student.optimizer.vector_norm="):
        Recipe(1, 1, 0.1, vector_norm=norm)


def test_weight_decay_beside_it_is_refused():
    with pytest.raises(InputError, match="weight_decay=0.1 shortens"):
        Recipe(1, 1, 0.1, vector_norm=LENGTH, weight_decay=0.1)
