"""Profiling: FLOPs against counts by hand, times that add up, peak memory."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from helpers.training import HISTORY, OBJECTIVE, student_of, task_of
from kd_jax.data.examples.base import batches
from kd_jax.devices import sharding
from kd_jax.devices.profiling import COLLECTIVES as COLLECTIVE_NAMES
from kd_jax.devices.profiling import Meter, ceiling, device_time, matmul_flops, peak_memory, trace
from kd_jax.models.scorer import split
from kd_jax.training.compiled import compiled_step
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec


def test_matrix_products_are_counted_in_loops_branches_and_gradients():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    once = 2 * 4 * 8 * 16

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c + a @ b, None), jnp.zeros((4, 16)), None, 5)[0]

    def looped(a, b):
        return jax.lax.fori_loop(0, 3, lambda _, c: c + a @ b, jnp.zeros((4, 16)))

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b.T @ b)

    assert matmul_flops(jnp.matmul, a, b) == once
    assert matmul_flops(jax.jit(scanned), a, b) == 5 * once
    assert matmul_flops(looped, a, b) == 3 * once
    assert matmul_flops(either, a, b) == 3 * once
    assert (
        matmul_flops(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1)), a, b) == 3 * once
    )


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_the_flops_of_a_step_of_matrix_factorisation(mesh):
    task = task_of(False)
    mesh = sharding.make_mesh(*mesh)
    student = student_of(task, "mf")
    examples = task.examples("user", history=HISTORY, decay=3.0, user_power=0.5)
    graphdef, params, constants = split(student)
    spec = StepSpec(graphdef, OBJECTIVE[:1], Recipe(3, 16, 1e-2).tx(), 3)
    step, state = compiled_step(
        spec,
        params,
        mesh=mesh,
        seed=0,
        look_up=examples.look_up,
    )
    rows = next(batches(examples, batch_size=16, num_batches=3, seed=0, chunk=3, gather=False))
    found = matmul_flops(
        step, state, rows, sharding.put_whole(examples.tables, mesh), constants, None
    )
    product = 2 * 16 * task.dataset.num_items * 16
    assert found == 3 * 3 * product  # steps x (logits, two gradients)


def test_the_times_add_up_and_the_rate_is_relative_to_the_peak():
    meter = Meter(2)
    meter.flops = 10**6
    began = time.perf_counter()
    with meter.time("input"):
        time.sleep(0.02)
    with meter.time("wait"):
        time.sleep(0.01)
    meter.step(2)
    cost = meter.read(8)
    elapsed = time.perf_counter() - began
    assert (
        cost["step_ms"]["input"] >= 10
        and cost["step_ms"]["wait"] >= 5
        and cost["step_ms"]["dispatch"] == 0
    )
    assert sum(cost["step_ms"].values()) <= 500 * elapsed + 0.01
    assert cost["flops_utilisation"] == pytest.approx(2e6 / elapsed / (2 * ceiling()), abs=2e-4)
    assert meter.read(8) == {}


def test_a_trace_without_operations_gives_no_times(tmp_path):
    assert device_time(tmp_path, 3) == {}
    with trace(tmp_path):
        pass
    assert device_time(tmp_path, 3) == {}


# Called for in shard_map: (function of the axis, how it splits its result).
COLLECTIVES = {
    "psum": (lambda x, axis: lax.psum(x, axis), None),
    "pmax": (lambda x, axis: lax.pmax(x, axis), None),
    "pmin": (lambda x, axis: lax.pmin(x, axis), None),
    "all_gather": (lambda x, axis: lax.all_gather(x, axis, tiled=True), None),
    "psum_scatter": (lambda x, axis: lax.psum_scatter(x, axis, tiled=True), "data"),
    "ppermute": (lambda x, axis: lax.ppermute(x, axis, [(0, 1), (1, 0)]), "data"),
    "all_to_all": (lambda x, axis: lax.all_to_all(x, axis, 0, 0, tiled=True), "data"),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_lone_collective_is_no_computation(name, tmp_path):
    function, out = COLLECTIVES[name]
    mesh = sharding.make_mesh(2, 1)
    spec = PartitionSpec("data")
    program = jax.jit(
        jax.shard_map(
            lambda x: function(x, "data"),
            mesh=mesh,
            in_specs=spec,
            out_specs=PartitionSpec(out),
            check_vma=False,
        )
    )
    values = jax.device_put(np.ones((64, 4), np.float32), jax.NamedSharding(mesh, spec))
    jax.block_until_ready(program(values))
    with trace(tmp_path):
        jax.block_until_ready(program(values))
    found = device_time(tmp_path, 1)
    assert found["collective"] > 0
    # XLA splits the operand of an all-to-all before it is sent.
    assert found["compute"] == 0 or name == "all_to_all"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("all-reduce.1", True),
        ("all-reduce-start", True),
        ("all-gather-done.3", True),
        ("collective-permute", True),
        ("psum.7", True),
        ("psum_invariant.2", True),
        ("all_gather_invariant", True),
        ("psum_fusion", False),
        ("broadcast_all_gather", False),
        ("dot.3", False),
    ],
)
def test_names_of_collectives(name, found):
    assert bool(COLLECTIVE_NAMES.match(name)) == found


def test_steps_that_run_ahead_are_not_counted_as_done():
    meter = Meter(1)
    meter.reset(ahead=4)
    meter.step(4)  # started
    assert meter.read(8) == {}
    time.sleep(0.01)
    meter.step(4)  # the next are started, so these are done
    assert meter.read(8)["examples_per_second"] <= 4 * 8 / 0.01


def test_the_peak_of_memory_grows_with_the_arrays():
    before = peak_memory()
    held = jnp.ones((64, 2**20)) + 1
    held.block_until_ready()
    assert peak_memory() - before > 100 * 2**20
    del held
