"""The only module that knows Mesh and PartitionSpec.

One mesh ('data', 'model'). Batches are split over ``data``. Large tables are split over ``model``;
everything else is replicated. XLA inserts the collectives.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from kd_jax.core import tables
from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE, Axes
from kd_jax.core.types import Batch, PyTree

SMALLEST_SHARDED = (
    2**15
)  # elements; below it a copy on every device is cheaper than the collectives


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A ('data', 'model') mesh over the first data x model devices; ``data == -1`` takes all that
    ``model`` leaves.

    Raises InputError if there are not that many devices.
    """
    devices = jax.devices()
    if model < 1 or (data < 1 and data != -1):
        raise InputError(
            f"mesh.data={data}, mesh.model={model} must be at least 1 each (data=-1: all that are"
            " left)"
        )
    asked = f"mesh.data={data} x mesh.model={model}"
    data = len(devices) // model if data == -1 and model > 0 else data
    if data < 1 or model < 1 or data * model > len(devices):
        cure = "set mesh.data=-1 and mesh.model to at most that number"
        if devices[0].platform == "cpu":
            cure += (
                ", or make a CPU count as several, with the environment variable"
                " JAX_NUM_CPU_DEVICES=N"
            )
        raise InputError(f"{asked} does not fit the {len(devices)} device(s) at hand; {cure}")
    if jax.process_count() > 1 and data * model != len(devices):
        raise InputError(
            f"{asked} leaves out some of the {len(devices)} devices of {jax.process_count()}"
            " processes; use mesh.data=-1 and a mesh.model that divides their number"
        )
    # Auto: with Explicit axes optax's losses, embedding look-ups and top_k refuse sharded operands.
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[: data * model],
    )


def _spec(x: Any, parts: int) -> PartitionSpec:
    """Split the longest axis that ``parts`` divides. Small arrays stay whole, and so do vectors of
    anything but floats, such as what negatives are drawn from.
    """
    shape = x.shape
    vector = len(shape) < 2 and not (shape and jnp.issubdtype(x.dtype, jnp.floating))
    if parts == 1 or vector or int(np.prod(shape)) < SMALLEST_SHARDED:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
        if shape[axis] % parts == 0:
            return PartitionSpec(*[None] * axis, "model")
    return PartitionSpec()


def tree_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every array (or ShapeDtypeStruct) of ``tree``: tables over ``model``, the
    rest whole.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x, mesh.shape["model"])), tree)


def put(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places every array of ``tree`` as ``tree_shardings`` says."""
    return jax.tree.map(_placed, tree, tree_shardings(tree, mesh))


def even_rows(rows: dict[str, int], mesh: Mesh) -> dict[str, int]:
    """How many rows these tables have while they are on ``mesh``: as many as ``model`` divides,
    since JAX splits no others. The last ones are zeros, and nothing outside of the mesh sees them:
    what is saved or read is cut.
    """
    return {name: count + spare(count, mesh) for name, count in rows.items()}


def storing(
    state: PyTree, rows: dict[str, int], mesh: Mesh
) -> tuple[PyTree, Callable[[Any], Any], Callable[[Any], Any]]:
    """How a state that is on ``mesh`` is stored: (its arrays as they are stored, cut, even), where
    cut(state) has tables of these ``rows``, split another way, and even(cut(state)) is the
    state.
    """
    wanted = even_rows(rows, mesh)
    if wanted == rows:
        return state, lambda state: state, lambda state: state
    here, there = (functools.partial(tables.with_rows, rows=rows) for rows in (wanted, rows))
    stored = jax.eval_shape(there, state)
    shardings = tree_shardings(stored, mesh)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), stored, shardings
    )
    cut = jax.jit(there, out_shardings=shardings)
    return like, cut, jax.jit(here, out_shardings=tree_shardings(state, mesh))


def put_params(params: PyTree, rows: dict[str, int], mesh: Mesh) -> PyTree:
    """``put`` for parameters with tables of these ``rows``."""
    return put(tables.with_rows(params, even_rows(rows, mesh)), mesh)


def put_labels(teachers: Mapping[str, PyTree], mesh: Mesh) -> dict[str, PyTree]:
    """``put`` for teachers' arrays: cached item vectors and biases are split by rows too, with
    items that nobody chooses at their end.
    """
    return {name: put(_even_labels(teacher, mesh), mesh) for name, teacher in teachers.items()}


def _even_labels(teacher: PyTree, mesh: Mesh) -> PyTree:
    missing = (
        spare(len(teacher["bias"]), mesh) if isinstance(teacher, dict) and "bias" in teacher else 0
    )
    if missing:
        bias = np.pad(np.asarray(teacher["bias"]), (0, missing), constant_values=NEGATIVE)
        items = np.pad(np.asarray(teacher["items"]), ((0, missing), (0, 0)))
        return teacher | {"items": items, "bias": bias}
    return teacher


def put_whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device."""
    return jax.tree.map(lambda x: _placed(x, replicated(mesh)), tree)


def local_mesh() -> Mesh:
    """The devices of this process, all along ``data``, for what it computes by itself."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays [B, ...] split over ``data``; whole on every device where these do not divide B."""
    parts = mesh.shape["data"]

    def one(x: Any) -> jax.Array:
        return _placed(
            x, NamedSharding(mesh, PartitionSpec("data" if len(x) % parts == 0 else None))
        )

    return jax.tree.map(one, tree)


def _placed(x: Any, where: NamedSharding) -> jax.Array:
    """Several processes place what each of them has whole; ``device_put`` would send all copies
    around to compare.
    """
    alone = jax.process_count() == 1 or where.is_fully_addressable
    if alone or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, where)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """Of stacked batches [chunk, B, ...]: the second axis over ``data``."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def split_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Inside a program: every array [B, ...] of a batch over ``data``."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh that arrays of ``tree`` are on; None on one device."""
    found = next((x.sharding for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)), None)
    if not isinstance(found, NamedSharding) or found.mesh.size == 1:
        return None
    assert isinstance(found.mesh, Mesh)
    return found.mesh


def spare(count: int, mesh: Mesh | None) -> int:
    """How many rows ``count`` lacks until ``model`` divides them."""
    return 0 if mesh is None else -count % mesh.shape.get("model", 1)


def users_parts(tree: PyTree) -> int:
    """Among how many devices ``like_batches`` divides users."""
    mesh = mesh_of(tree)
    return 1 if mesh is None else mesh.shape["data"]


def like_batches(params: PyTree) -> Callable[[np.ndarray], Any]:
    """Where a batch of users [B], the same in all processes, goes to be scored by ``params``: over
    ``data``, so that every device ranks its share. As it came where the parameters are on one
    device; whole where the devices do not divide B.
    """
    mesh = mesh_of(params)
    return lambda users: users if mesh is None else put_rows(users, mesh)


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " R"] | None:
    """Positions within a batch that are on this process's devices; None: all of them."""
    if jax.process_count() == 1:
        return None
    where = NamedSharding(mesh, PartitionSpec("data")).addressable_devices_indices_map(
        (batch_size,)
    )
    return np.unique(
        np.concatenate(
            [np.arange(batch_size)[index] for index in where.values() if index is not None]
        )
    )


def put_batches(stacked: PyTree, mesh: Mesh, batch_size: int) -> PyTree:
    """Stacked batches of which this process has the ``local_rows``, as arrays [chunk, B, ...] over
    the whole mesh.
    """
    if jax.process_count() == 1:
        return stacked

    rows = local_rows(mesh, batch_size)
    assert rows is not None
    local = len(rows)

    def put(x: np.ndarray) -> jax.Array:
        shape = (
            len(x),
            batch_size * x.shape[1] // local,
            *x.shape[2:],
        )  # of live items there are several per row
        return jax.make_array_from_process_local_data(batches_sharding(mesh), x, shape)

    return jax.tree.map(put, stacked)


def fetch(tree: PyTree) -> PyTree:
    """Every array of ``tree`` whole on this host, as numpy; all processes ask together."""

    def one(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, jax.device_get(tree) if jax.process_count() == 1 else tree)


def device_memory() -> int:
    """Bytes of one device (of this machine, for a CPU)."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(
        jax.local_devices()
    )


def by_device(
    local: Callable[[Any, Any, Any, Axes], tuple[PyTree, PyTree]],
    scores: Factors | Array,
    given: PyTree,
    columns: PyTree,
    mesh: Mesh | None,
) -> tuple[PyTree, PyTree]:
    """``local(scores, given, columns, axes)`` inside a program, with each device's share of rows
    and items.

    scores: [B, I], or factors of such; columns: arrays [I]; given: arrays that all devices have
    whole. It returns (arrays [B, ...] of its rows, arrays that all devices agree on). Rows are
    split over all axes but ``model`` where these divide them; ``model`` must divide I.
    """
    if mesh is None:
        return local(scores, given, columns, Axes())
    parts = mesh.shape.get("model", 1)
    count = len(scores.contexts if isinstance(scores, Factors) else scores)
    axes = Axes(
        (
            tuple(name for name in mesh.axis_names if name != "model")
            if count % (mesh.size // parts) == 0
            else None
        ),
        "model" if parts > 1 else None,
    )
    rows: Any = PartitionSpec(axes.rows)
    items: Any = PartitionSpec(axes.items)
    whole = PartitionSpec()
    of_scores = (
        Factors(rows, items, items)
        if isinstance(scores, Factors)
        else PartitionSpec(axes.rows, axes.items)
    )
    return jax.shard_map(
        lambda scores, given, columns: local(scores, given, columns, axes),
        mesh=mesh,
        in_specs=(of_scores, whole, items),
        out_specs=(rows, whole),
        check_vma=False,
    )(scores, given, columns)


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises InputError unless every ``data`` slice gets the same number of rows."""
    if batch_size % mesh.shape["data"]:
        raise InputError(
            f"{field}={batch_size} is not divisible by the {mesh.shape['data']} devices of"
            f" mesh.data; use a multiple of {mesh.shape['data']}"
        )
