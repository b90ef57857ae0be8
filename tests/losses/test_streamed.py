"""Losses over the catalogue a tile at a time, against their definition on whole logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.catalogue import ALL, N, R, inputs_of, plain, softmax_term, world
from helpers.marks import first_fast
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import Axes, tile_shape
from kd_jax.devices import sharding
from kd_jax.losses.sharded import engine_for
from kd_jax.losses.streamed import local, mean_losses
from kd_jax.losses.terms import Inputs, Rows, SoftmaxTerm

CHUNKS = R * 100  # a tile that is cut into 128, 128, 128 and 26 items


def both(engine, chosen=ALL, logits=False, **options):
    """((sum, means), gradients) by definition, and of ``engine``.

    logits: whether the engine is given the teacher's logits instead of their factors.
    """
    student, teacher, rows, warm = world(**options)
    inputs = inputs_of(chosen, rows, teacher, warm)

    given = inputs._replace(teacher=teacher.dense()) if logits else inputs

    def value(function, inputs, contexts, vectors, bias):
        return function(chosen, Factors(contexts, vectors, bias, student.excluded), inputs)

    plainly = functools.partial(value, plain, inputs)
    streamed = functools.partial(value, functools.partial(mean_losses, engine=engine), given)
    return [
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(*student[:3])
        for function in (plainly, streamed)
    ]


def tiled(tile):
    return lambda terms, gradients, student, inputs: local(
        terms, gradients, student, inputs, Axes(), tile
    )


@pytest.mark.parametrize("excluded", first_fast([True, False]))
@pytest.mark.parametrize("tile", first_fast([CHUNKS, R * N, 1]))
def test_chunks_of_items_give_the_plain_loss_and_gradient(tile, excluded):
    for whole, streamed in zip(
        *map(jax.tree.leaves, both(tiled(tile), excluded=excluded)), strict=True
    ):
        np.testing.assert_allclose(streamed, whole, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("rows", [1, 7, 12, 23])
@pytest.mark.slow
def test_tiles_of_rows_give_the_plain_loss_and_gradient(rows, monkeypatch):
    monkeypatch.setattr("kd_jax.core.tiling.MIN_ROWS", 1)
    assert tile_shape(R, N, rows * N)[1] == N
    for whole, streamed in zip(*map(jax.tree.leaves, both(tiled(rows * N))), strict=True):
        np.testing.assert_allclose(streamed, whole, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("tile", first_fast([CHUNKS, R * N]))
def test_logits_of_a_teacher_do_what_their_factors_do(tile):
    for whole, streamed in zip(*map(jax.tree.leaves, both(tiled(tile), logits=True)), strict=True):
        np.testing.assert_allclose(streamed, whole, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_each_loss_alone(loss):
    for whole, streamed in zip(*map(jax.tree.leaves, both(tiled(CHUNKS), (loss,))), strict=True):
        np.testing.assert_allclose(streamed, whole, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize(("data", "model"), [(2, 1), (1, 2), (2, 4), (8, 1), (1, 8)])
@pytest.mark.slow
def test_every_mesh_gives_the_plain_loss_and_gradient(data, model):
    run = engine_for(sharding.make_mesh(data, model))  # 410 items do not divide by 4 or 8
    for logits in (False, True)[: 1 + (model == 1)]:  # logits are not split by items
        for whole, sharded in zip(*map(jax.tree.leaves, both(run, logits=logits)), strict=True):
            np.testing.assert_allclose(sharded, whole, rtol=3e-5, atol=3e-6)


@pytest.mark.slow
def test_bf16_factors_are_summed_in_f32():
    student, teacher, rows, warm = world(dtype=jnp.bfloat16)
    wide = [
        f._replace(contexts=f.contexts.astype(jnp.float32), vectors=f.vectors.astype(jnp.float32))
        for f in (student, teacher)
    ]
    ones = jnp.ones(len(ALL))
    given = Inputs(rows, ones, wide[1], warm)
    whole, _ = plain(ALL, wide[0], given)
    streamed, gradients = local(
        ALL, True, student, Inputs(rows, ones, teacher, warm), Axes(), CHUNKS
    )
    np.testing.assert_allclose(
        streamed[0], whole, rtol=1e-5
    )  # every bf16 is an f32: only the order of the sum differs
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    want = jax.grad(lambda v: plain(ALL, wide[0]._replace(vectors=v), given)[0])(wide[0].vectors)
    np.testing.assert_allclose(gradients[1].astype(jnp.float32), want, rtol=0.03, atol=3e-3)


@pytest.mark.slow
def test_nobody_warm_is_loss_and_gradient_zero():
    student, teacher, rows, _ = world()
    nobody = jnp.zeros(N, bool)
    for name, temperature in (("ce", 1.0), ("kl", 2.0), ("js", 2.0)):
        loss = softmax_term(name, temperature, warm=True)
        (total, _), gradients = local(
            (loss,), True, student, Inputs(rows, jnp.ones(1), teacher, nobody), Axes(), CHUNKS
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
            (softmax_term("ce"), softmax_term("kl", 2.0)),
            student,
            Inputs(targets, jnp.ones(2), student),
            tiled(tile),
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


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("tile", [R * N, CHUNKS])
@pytest.mark.slow
def test_a_temperature_that_changes_over_training_is_an_input(name, tile):
    student, teacher, rows, warm = world()
    fixed = softmax_term(name, 1.7, warm=True)
    traced = SoftmaxTerm(fixed.loss, warm=True, scheduled=1)
    given = Inputs(rows, jnp.ones(2), teacher, warm, jnp.array([0.0, 1.7]))
    first = softmax_term("ce")
    (total, _), gradients = tiled(tile)((first, traced), True, student, given)
    (wanted, _), slopes = tiled(tile)((first, fixed), True, student, given)
    assert float(total) == pytest.approx(float(wanted), rel=1e-6)
    for one, other in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
