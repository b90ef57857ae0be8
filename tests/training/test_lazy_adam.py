"""Tables of which a step touches few rows: lazy Adam, the gathered step, and their cost."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from helpers import toy, training
from helpers.marks import first_fast
from helpers.terms import term
from kd_jax.core.tables import distinct, gather_rows, put, scatter_rows, take
from kd_jax.core.types import PAD
from kd_jax.data.examples.base import batches
from kd_jax.devices import sharding
from kd_jax.distillation.teachers import online_teacher
from kd_jax.distillation.term import OWN
from kd_jax.losses import sampled
from kd_jax.models.scorer import Frozen, split
from kd_jax.models.students.base import UserSpec
from kd_jax.models.students.mf import MatrixFactorization
from kd_jax.training import lazy_adam
from kd_jax.training.compiled import compiled_step
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec

SAMPLED = (
    term("ce", items="sampled_warm", negatives=9),
    term("kl", 2.0, 1.5, items="sampled", negatives=9, top=3),
)
FULL = training.OBJECTIVE


def test_distinct_rows_and_where_they_are():
    values = jnp.asarray([[7, 3, PAD], [3, 0, PAD]]), jnp.asarray([9, 0])
    rows, places = jax.jit(distinct, static_argnums=0)(10, *values)
    assert rows[:4].tolist() == [0, 3, 7, 9] and np.all(np.diff(rows) > 0) and rows[4] >= 10
    for value, place in zip(values, places, strict=True):
        np.testing.assert_array_equal(jnp.where(place == PAD, PAD, rows[place]), value)
    table = jnp.arange(10.0)[:, None]
    taken = take(table, rows)
    assert taken[:4, 0].tolist() == [0, 3, 7, 9] and not np.any(taken[4:])
    np.testing.assert_array_equal(put(table, rows, taken), table)


def optimise(tx, touched, steps=6, count=10, seed=0):
    """Parameters after ``steps`` random gradients.

    touched: the rows of the table that a step updates; None updates the table as a whole.
    """
    rng = np.random.default_rng(seed)
    params = {
        "table": jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        "rest": {"bias": jnp.ones(3)},
    }

    @jax.jit
    def step(params, state, slope, rows):
        given = gather_rows(params, rows)
        gradients = gather_rows({"table": slope, "rest": {"bias": slope[0]}}, rows)
        updates, state = optax.with_extra_args_support(tx).update(
            gradients, state, given, rows=rows
        )
        return scatter_rows(params, rows, optax.apply_updates(given, updates)), state

    state = tx.init(params)
    for number in range(steps):
        slope = jnp.asarray(rng.normal(size=(count, 3)), jnp.float32)
        rows = {} if touched is None else {"table": touched(number)}
        params, state = step(params, state, slope, rows)
    return params, state


def lazy(**options):
    return Recipe(6, 1, 0.1, weight_decay=0.05, clip_norm=2.0, sparse=True, **options).tx()


@pytest.mark.slow
def test_with_every_row_touched_it_is_dense_adam():
    dense, _ = optimise(Recipe(6, 1, 0.1, weight_decay=0.05, clip_norm=2.0).tx(), None)
    for touched in (lambda step: jnp.arange(10), lambda step: jnp.arange(13), None):
        for one, other in zip(
            *map(jax.tree.leaves, (dense, optimise(lazy(), touched)[0])), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("moments", first_fast(["float32", "bfloat16"]))
def test_untouched_rows_and_their_moments_stay_bit_for_bit(moments):
    start, state = optimise(lazy(moments=moments), lambda step: jnp.asarray([1, 4, 8]), steps=0)
    end, after = optimise(lazy(moments=moments), lambda step: jnp.asarray([1, 4, 8]))
    others = np.setdiff1d(np.arange(10), [1, 4, 8])
    tables = [(start["table"], end["table"])]
    tables += [
        (a, b)
        for a, b in zip(*map(jax.tree.leaves, (state, after)), strict=True)
        if a.shape[:1] == (10,)
    ]
    assert len(tables) == 4
    for before, now in tables:
        np.testing.assert_array_equal(before[others], now[others])
        assert np.all(before[np.asarray([1, 4, 8])] != now[np.asarray([1, 4, 8])])


def test_a_row_is_optimised_as_by_an_adam_that_saw_its_own_steps_alone():
    tx, slopes = lazy(), np.random.default_rng(0).normal(size=(9, 1, 3)).astype(np.float32)
    params = {"table": jnp.ones((4, 3))}
    state, alone = tx.init(params), {"table": jnp.ones((1, 3))}
    other = Recipe(6, 1, 0.1, weight_decay=0.05, clip_norm=2.0).tx()
    state_alone = other.init(alone)
    for step, slope in enumerate(slopes):
        rows = {"table": jnp.asarray([2 if step % 3 == 0 else 1])}
        given = gather_rows(params, rows)
        updates, state = tx.update({"table": slope}, state, given, rows=rows)
        params = scatter_rows(params, rows, optax.apply_updates(given, updates))
        if step % 3 == 0:
            updates, state_alone = other.update({"table": slope}, state_alone, alone)
            alone = optax.apply_updates(alone, updates)
    np.testing.assert_allclose(params["table"][2], alone["table"][0], rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_moments_are_rounded_without_bias():
    values = jnp.full(20_000, 1.0 + 1 / 1024), jnp.full(20_000, 3e-7)
    for value, rounded in zip(values, lazy_adam._rounded(jax.random.key(0), *values), strict=True):
        assert (
            rounded.dtype == jnp.bfloat16 and len(np.unique(np.asarray(rounded, np.float32))) == 2
        )
        assert np.mean(np.asarray(rounded, np.float64)) == pytest.approx(float(value[0]), rel=2e-4)
    params, state = optimise(lazy(moments="bfloat16"), None, steps=200)
    exact, _ = optimise(lazy(), None, steps=200)
    np.testing.assert_allclose(params["table"], exact["table"], atol=0.15)  # 200 steps of 0.1
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} == {
        "bfloat16",
        "int32",
    }


def run(name, objective, mesh, steps=4, batch_size=16, ratings=False, **recipe):
    """Losses of the first steps and the state after them."""
    task = training.task_of(ratings)
    student = training.student_of(task, name, dropout=0.0)
    if objective[0].sampled:
        student.proposal = Frozen(jnp.asarray(sampled.proposal(task.dataset.item_counts, 0.5)))
    teacher = online_teacher(*training.teacher_of(task), example_kind=student.example_kind)
    graphdef, params, constants = split(student)
    recipe = Recipe(steps, batch_size, 1e-2, weight_decay=0.01, **recipe)
    spec = StepSpec(
        graphdef, objective, recipe.tx(), steps, {OWN: teacher.scores}, lazy=recipe.sparse
    )
    step, state = compiled_step(spec, params, mesh=mesh, seed=0)
    start = jax.tree.map(np.asarray, state)
    weighting = {"decay": 3.0, "user_power": 0.5}
    examples = task.examples(student.example_kind, history=training.HISTORY, **weighting)
    constants, arrays = sharding.put((constants, {OWN: teacher.arrays}), mesh)
    found = []
    for batch in batches(examples, batch_size=batch_size, num_batches=steps, seed=0):
        state, metrics = step(state, batch, None, constants, arrays)
        found.append(training.flat(metrics))
    assert step._cache_size() == 1
    return found, start, state


ONE = functools.partial(sharding.make_mesh, 1, 1)


@pytest.mark.parametrize("name", first_fast(["mf", "sasrec", "mlp"]))
def test_the_first_gathered_step_is_the_dense_one_where_it_touches(name):
    (dense,), _, one = run(name, FULL, ONE(), steps=1)
    (gathered,), start, other = run(name, FULL, ONE(), steps=1, sparse=True)
    assert gathered == pytest.approx(dense, rel=1e-5)
    moved = (
        np.any(other.params["user"] != start.params["user"], axis=1) if name != "sasrec" else None
    )
    assert moved is None or moved.sum() <= 16
    for key, table in one.params.items():
        rows = moved if key == "user" else slice(None)
        for a, b in zip(jax.tree.leaves(table), jax.tree.leaves(other.params[key]), strict=True):
            np.testing.assert_allclose(b[rows], a[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mf", "sasrec"])
@pytest.mark.slow
def test_sampled_the_gathered_step_is_the_dense_one_where_it_touches(name):
    (dense,), _, one = run(name, SAMPLED, ONE(), steps=1)
    (gathered,), start, other = run(name, SAMPLED, ONE(), steps=1, sparse=True)
    assert gathered == pytest.approx(dense, rel=1e-5)
    moved = np.any(other.params["item"] != start.params["item"], axis=1)
    np.testing.assert_allclose(
        other.params["item"][moved], one.params["item"][moved], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["mf", "mlp"])
@pytest.mark.slow
def test_rating_pairs_touches_their_rows_only(name):
    objective = (term("ce"), term("kl", 2.0, 1.5))
    (dense,), _, _ = run(name, objective, ONE(), steps=1, batch_size=4, ratings=True)
    (gathered,), start, state = run(
        name, objective, ONE(), steps=1, batch_size=4, ratings=True, sparse=True
    )
    assert gathered == pytest.approx(dense, rel=1e-5)
    for table in ("user", "item"):
        assert np.any(state.params[table] != start.params[table], axis=1).sum() <= 4


@pytest.mark.parametrize("objective", first_fast([(FULL,), (SAMPLED,)]), ids=["all", "sampled"])
@pytest.mark.parametrize(
    ("name", "shape"), first_fast([("mf", (2, 4)), ("mf", (8, 1)), ("sasrec", (4, 2))])
)
def test_sharded_is_unsharded(name, shape, objective, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    alone, _, one = run(name, objective, ONE(), sparse=True)
    many, _, other = run(name, objective, sharding.make_mesh(*shape), sparse=True)
    for a, b in zip(alone, many, strict=True):
        assert a == pytest.approx(b, rel=1e-4)  # sums over devices are rounded in another order
    np.testing.assert_allclose(other.params["item"], one.params["item"], atol=2e-5)
    moments = [
        leaf
        for leaf in jax.tree.leaves(other.opt_state)
        if leaf.shape == other.params["item"].shape
    ]
    spec = PartitionSpec("model") if shape[1] > 1 else PartitionSpec()
    assert moments and all(leaf.sharding.spec == spec for leaf in (other.params["item"], *moments))


def compiled(users, items, mesh, objective=SAMPLED[:1], example_kind=4, batch_size=8):
    """The compiled step of an MF of that size, three steps in one program."""
    spec = UserSpec(users, items, 0, np.zeros(items, np.float32), np.ones(items, bool), dim=8)
    student = MatrixFactorization(spec, {}, rngs=nnx.Rngs(0))
    student.proposal = Frozen(jnp.asarray(sampled.proposal(np.zeros(items), 0.0)))
    graphdef, params, constants = split(student)
    tx = Recipe(9, batch_size, 1e-2, sparse=True, clip_norm=1.0).tx()
    spec = StepSpec(graphdef, objective, tx, 9, lazy=True)
    step, state = compiled_step(spec, params, mesh=mesh, seed=0)
    shape = (3, batch_size, 1)
    batch = {
        "user": np.zeros(shape[:2], np.int32),
        "weights": np.ones(shape, np.float32),
        "targets": np.zeros((*shape, example_kind), np.int32),
        "target_weights": np.ones((*shape, example_kind), np.float32),
    }
    constants = sharding.put(constants, mesh)
    # With the fusions that users get, see conftest.py.
    chosen = "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", "")
    options = {"xla_cpu_use_fusion_emitters": True} if chosen else {}
    return step.lower(state, batch, None, constants, None).compile(compiler_options=options)


@pytest.mark.slow
def test_the_cost_of_a_step_does_not_grow_with_the_tables():
    small, large = compiled(500, 600, ONE()), compiled(50_000, 60_000, ONE())
    assert large.cost_analysis()["flops"] == small.cost_analysis()["flops"]
    memory = [program.memory_analysis() for program in (small, large)]
    assert memory[1].temp_size_in_bytes < memory[0].temp_size_in_bytes + 10_000
    # XLA counts a scatter in a fusion as a pass over its whole operand, so bytes are counted here:
    # no operation but scatters gives an array of a table's size, and they write in place, since
    # there is no memory for a copy.
    made = re.findall(r"%(\S+) = \w+\[[56]0000[,\]]\S* ([\w-]+)\(", large.as_text())
    kinds = {name.split(".")[0] if kind == "fusion" else kind for name, kind in made}
    assert kinds == {"parameter", "get-tuple-element", "scatter", "wrapped_scatter"}


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
@pytest.mark.slow
def test_no_table_crosses_devices(shape):
    text = compiled(8_000, 16_000, sharding.make_mesh(*shape)).as_text()
    sizes = [
        int(np.prod([int(n) for n in found.split(",")]))
        for found in re.findall(
            r"\w+\[([\d,]+)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)", text
        )
    ]
    assert sizes and max(sizes) < 8_000


def test_bad_settings_are_one_line():
    toy.refused(
        lambda: Recipe(1, 1, 0.1, moments="bf16"), "student.optimizer.moments='bf16' is unknown"
    )
