"""Losses over the catalogue a tile at a time, against the plain functions of losses.py on whole
logits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.catalogue import ALL, SOFT, N, R, world
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import Axes, tile_shape
from kd_jax.devices import sharding
from kd_jax.losses import softmax
from kd_jax.losses.sharded import engine_for
from kd_jax.losses.streamed import Loss, Rows, local, mean_losses

CHUNKS = R * 100  # a tile that is cut into 128, 128, 128 and 26 items


def dense(chosen, coefficients, student, rows, teacher, warm):
    means = []
    for loss in chosen:
        where = warm if loss.warm else None
        if loss.name == "ce":
            values = softmax.cross_entropy(
                student.dense(), rows.targets, rows.target_weights, where
            )
        else:
            values = SOFT[loss.name](teacher.dense(), student.dense(), loss.temperature, where)
        means.append(jnp.sum(values * rows.weights))
    return jnp.sum(coefficients * jnp.stack(means)), jnp.stack(means)


def both(run, chosen=ALL, **options):
    """((sum, means), gradients) of the plain way and of ``run``."""
    student, teacher, rows, warm = world(**options)
    coefficients = jnp.arange(1.0, len(chosen) + 1)

    def value(function, contexts, vectors, bias):
        return function(
            chosen,
            coefficients,
            Factors(contexts, vectors, bias, student.excluded),
            rows,
            teacher,
            warm,
        )

    found = []
    for function in (dense, functools.partial(mean_losses, run=run)):
        differentiate = jax.value_and_grad(
            functools.partial(value, function), argnums=(0, 1, 2), has_aux=True
        )
        found.append(jax.jit(differentiate)(*student[:3]))
    return found


def tiled(tile):
    return lambda chosen, gradients, student, inputs: local(
        chosen, gradients, student, inputs, Axes(), tile
    )


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("tile", [R * N, CHUNKS, 1])
def test_chunks_of_items_give_the_plain_loss_and_gradient(tile, excluded):
    for plain, streamed in zip(
        *map(jax.tree.leaves, both(tiled(tile), excluded=excluded)), strict=True
    ):
        np.testing.assert_allclose(streamed, plain, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("rows", [1, 7, 12, 23])
def test_tiles_of_rows_give_the_plain_loss_and_gradient(rows, monkeypatch):
    monkeypatch.setattr("kd_jax.core.tiling.MIN_ROWS", 1)
    assert tile_shape(R, N, rows * N)[1] == N
    for plain, streamed in zip(*map(jax.tree.leaves, both(tiled(rows * N))), strict=True):
        np.testing.assert_allclose(streamed, plain, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_each_loss_alone(loss):
    for plain, streamed in zip(*map(jax.tree.leaves, both(tiled(CHUNKS), (loss,))), strict=True):
        np.testing.assert_allclose(streamed, plain, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize(("data", "model"), [(2, 1), (1, 2), (2, 4), (8, 1), (1, 8)])
def test_every_mesh_gives_the_plain_loss_and_gradient(data, model):
    run = engine_for(sharding.make_mesh(data, model))  # 410 items do not divide by 4 or 8
    for plain, sharded in zip(*map(jax.tree.leaves, both(run)), strict=True):
        np.testing.assert_allclose(sharded, plain, rtol=3e-5, atol=3e-6)


def test_bf16_factors_are_summed_in_f32():
    student, teacher, rows, warm = world(dtype=jnp.bfloat16)
    wide = [
        f._replace(contexts=f.contexts.astype(jnp.float32), vectors=f.vectors.astype(jnp.float32))
        for f in (student, teacher)
    ]
    ones = jnp.ones(len(ALL))
    plain, _ = dense(ALL, ones, wide[0], rows, wide[1], warm)
    streamed, gradients = local(ALL, True, student, (rows, ones, teacher, warm), Axes(), CHUNKS)
    np.testing.assert_allclose(
        streamed[0], plain, rtol=1e-5
    )  # every bf16 is an f32: only the order of the sum differs
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    want = jax.grad(
        lambda v: dense(ALL, ones, wide[0]._replace(vectors=v), rows, wide[1], warm)[0]
    )(wide[0].vectors)
    np.testing.assert_allclose(gradients[1].astype(jnp.float32), want, rtol=0.03, atol=3e-3)


def test_nobody_warm_is_loss_and_gradient_zero():
    student, teacher, rows, _ = world()
    nobody = jnp.zeros(N, bool)
    for loss in (Loss("ce", warm=True), Loss("kl", 2.0, warm=True)):
        (total, _), gradients = local(
            (loss,), True, student, (rows, jnp.ones(1), teacher, nobody), Axes(), CHUNKS
        )
        assert total == 0
        assert all(not np.any(g) for g in gradients)


def test_memory_is_that_of_a_tile_and_no_array_of_rows_times_items_is_made():
    rows, items, dim, tile = 512, 50_000, 16, 2**17
    shapes = (jnp.zeros((rows, dim)), jnp.zeros((items, dim)), jnp.zeros(items))
    targets = Rows(jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1)), jnp.full(rows, 1 / rows))

    def value(h, v, b):
        student = Factors(h, v, b)
        return mean_losses(
            (Loss("ce"), Loss("kl", 2.0)), jnp.ones(2), student, targets, student, None, tiled(tile)
        )[0]

    memory = jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(*shapes).compile().memory_analysis()
    tables = 4 * items * (dim + 1)
    assert memory.temp_size_in_bytes < 12 * 4 * tile + 3 * tables < 4 * rows * items / 2


def test_the_plan():
    assert tile_shape(64, 1000, 2**21) == (64, 1000)  # all at once
    assert tile_shape(6400, 3416, 2**21) == (582, 3416)  # eleven tiles of rows
    assert tile_shape(512, 10506, 2**20) == (128, 10506)  # the least number of rows
    assert tile_shape(4096, 10**6, 2**21) == (4096, 512)  # all rows, chunks of items
    assert tile_shape(10**6, 10**6, 2**21) == (10**6, 128)
