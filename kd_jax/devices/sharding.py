"""The device mesh and the sharding of every array; no other module uses Mesh or PartitionSpec.

The mesh has the axes ('data', 'model'). Batches are split over ``data`` and large tables over
``model``; everything else is replicated. XLA inserts the collectives.
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

# The partition specs of arrays of rows, of arrays of items, and of all others.
ROWS = PartitionSpec("data")
ITEMS = PartitionSpec("model")
WHOLE = PartitionSpec()
# Elements; a copy of a smaller array on every device is cheaper than the collectives.
SMALLEST_SHARDED = 2**15


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A ('data', 'model') mesh over the first data x model devices.

    data: -1 for as many as there are devices for. Raises InputError if there are too few devices.
    """
    devices = jax.devices()
    if model < 1 or (data < 1 and data != -1):
        raise InputError(
            f"mesh.data={data}, mesh.model={model} must be at least 1 each (data=-1: all remaining"
            " devices)"
        )
    shape = f"mesh.data={data} x mesh.model={model}"
    data = len(devices) // model if data == -1 and model > 0 else data
    if data < 1 or model < 1 or data * model > len(devices):
        fix = "set mesh.data=-1 and mesh.model to at most that number"
        if devices[0].platform == "cpu":
            fix += (
                ", or make a CPU count as several, with the environment variable"
                " JAX_NUM_CPU_DEVICES=N"
            )
        raise InputError(f"{shape} does not fit the {len(devices)} device(s) available; {fix}")
    if jax.process_count() > 1 and data * model != len(devices):
        raise InputError(
            f"{shape} leaves out some of the {len(devices)} devices of {jax.process_count()}"
            " processes; use mesh.data=-1 and a mesh.model that divides their number"
        )
    # Auto, since optax's losses, nnx.Embed and top_k raise on operands with Explicit axes.
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[: data * model],
    )


def _spec(x: Any, parts: int) -> PartitionSpec:
    """Splits the longest axis that ``parts`` divides.

    Small arrays are replicated, and so are vectors of integers, such as the tables that negatives
    are drawn from.
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
    """A NamedSharding for every array or ShapeDtypeStruct of ``tree``.

    Large tables are split over ``model``; all other arrays are replicated.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x, mesh.shape["model"])), tree)


def put(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places every array of ``tree`` with the sharding of ``tree_shardings``."""
    return jax.tree.map(_placed, tree, tree_shardings(tree, mesh))


def even_rows(rows: dict[str, int], mesh: Mesh) -> dict[str, int]:
    """The number of rows of each table on ``mesh``: rounded up to a multiple of ``model``.

    JAX can only split a multiple of the axis size. The added rows are zeros; they are cut before a
    table is saved or read.
    """
    return {name: count + spare(count, mesh) for name, count in rows.items()}


def storing(
    state: PyTree, rows: dict[str, int], mesh: Mesh
) -> tuple[PyTree, Callable[[Any], Any], Callable[[Any], Any]]:
    """The form in which a state on ``mesh`` is stored, without the rows that ``even_rows`` adds.

    rows: the number of rows of each table. Returns (stored, cut, even): the stored form as
    ShapeDtypeStructs with shardings, and the functions from the state to the stored form and back.
    """
    on_mesh = even_rows(rows, mesh)
    if on_mesh == rows:
        return state, lambda state: state, lambda state: state
    shapes = jax.eval_shape(functools.partial(tables.with_rows, rows=rows), state)
    shardings = tree_shardings(shapes, mesh)
    stored = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    cut = jax.jit(functools.partial(tables.with_rows, rows=rows), out_shardings=shardings)
    even = jax.jit(
        functools.partial(tables.with_rows, rows=on_mesh),
        out_shardings=tree_shardings(state, mesh),
    )
    return stored, cut, even


def put_params(params: PyTree, rows: dict[str, int], mesh: Mesh) -> PyTree:
    """``put`` for parameters; rows: the number of rows of each table in them."""
    return put(tables.with_rows(params, even_rows(rows, mesh)), mesh)


def put_labels(teachers: Mapping[str, PyTree], mesh: Mesh) -> dict[str, PyTree]:
    """``put`` for the arrays of teachers.

    Cached item vectors and biases are padded to a multiple of ``model`` with items of probability
    0, so that they can be split by rows.
    """
    return {name: put(_even_labels(teacher, mesh), mesh) for name, teacher in teachers.items()}


def _even_labels(teacher: PyTree, mesh: Mesh) -> PyTree:
    if not isinstance(teacher, dict) or "bias" not in teacher:
        return teacher
    missing = spare(len(teacher["bias"]), mesh)
    if not missing:
        return teacher
    bias = np.pad(np.asarray(teacher["bias"]), (0, missing), constant_values=NEGATIVE)
    items = np.pad(np.asarray(teacher["items"]), ((0, missing), (0, 0)))
    return teacher | {"items": items, "bias": bias}


def put_whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates every array on all devices of ``mesh``."""
    return jax.tree.map(lambda x: _placed(x, replicated(mesh)), tree)


def splits_items(mesh: Mesh) -> bool:
    """Whether large tables are split over devices of ``mesh``."""
    return mesh.shape.get("model", 1) > 1


def local_mesh() -> Mesh:
    """A mesh of this process's own devices along ``data``, for computations without the others."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays [B, ...]: split over ``data`` where it divides B, replicated otherwise."""
    parts = mesh.shape["data"]

    def one(x: Any) -> jax.Array:
        axis = "data" if len(x) % parts == 0 else None
        return _placed(x, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree.map(one, tree)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """``device_put``, without communication where every process holds the whole array.

    ``device_put`` would send the copy of each process to the others to compare them.
    """
    local = jax.process_count() == 1 or sharding.is_fully_addressable
    if local or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of stacked batches [chunk, B, ...]: the second axis over ``data``."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def split_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Constrains every array [B, ...] of a batch to ``data``, inside a jitted function."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh that the arrays of ``tree`` are on; None for a single device."""
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    sharding = next((x.sharding for x in arrays), None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def on_one_device(tree: PyTree) -> PyTree:
    """Arrays that are on a mesh of one device, or on none, as arrays of that device, uncopied.

    A jitted function is compiled anew for each kind of sharding. Arrays on several devices are
    returned unchanged.
    """
    if mesh_of(tree) is not None:
        return tree
    return jax.tree.map(
        lambda x: jax.device_put(x, next(iter(x.devices()))) if isinstance(x, jax.Array) else x,
        tree,
    )


def spare(count: int, mesh: Mesh | None) -> int:
    """The number of rows to add to ``count`` for a multiple of the size of ``model``."""
    return 0 if mesh is None else -count % mesh.shape.get("model", 1)


def data_parts(tree: PyTree) -> int:
    """The number of devices over which ``user_placement`` splits a batch of users."""
    mesh = mesh_of(tree)
    return 1 if mesh is None else mesh.shape["data"]


def user_placement(params: PyTree) -> Callable[[np.ndarray], Any]:
    """A function that places a batch of users [B] on the mesh of ``params``, to be scored there.

    The batch is the same in all processes. It is split over ``data``, so that every device ranks a
    part; it is replicated where ``data`` does not divide B, and returned unchanged where the
    parameters are on a single device.
    """
    mesh = mesh_of(params)
    return lambda users: users if mesh is None else put_rows(users, mesh)


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " R"] | None:
    """The rows of a batch that are on this process's devices; None: all of them."""
    if jax.process_count() == 1:
        return None
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    indices = by_rows.addressable_devices_indices_map((batch_size,)).values()
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[index] for index in indices if index is not None]))


def put_batches(stacked: PyTree, mesh: Mesh, batch_size: int) -> PyTree:
    """Stacked batches [chunk, R, ...] of ``local_rows`` as arrays [chunk, B, ...] over the mesh."""
    if jax.process_count() == 1:
        return stacked
    rows = local_rows(mesh, batch_size)
    assert rows is not None
    local = len(rows)

    def put(x: np.ndarray) -> jax.Array:
        # x.shape[1] is a multiple of ``local``: there are several live items per row.
        shape = (len(x), batch_size * x.shape[1] // local, *x.shape[2:])
        return jax.make_array_from_process_local_data(batches_sharding(mesh), x, shape)

    return jax.tree.map(put, stacked)


def fetch(tree: PyTree) -> PyTree:
    """Every array of ``tree`` whole on this host, as numpy; every process must call this."""

    def one(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, jax.device_get(tree) if jax.process_count() == 1 else tree)


def device_memory() -> int:
    """Bytes of memory of one device; for a CPU, of this machine divided by its devices."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


def by_device(
    local: Callable[[Any, Any, Any, Axes], tuple[PyTree, PyTree]],
    scores: Factors | Array,
    given: PyTree,
    columns: PyTree,
    mesh: Mesh | None,
) -> tuple[PyTree, PyTree]:
    """``local(scores, given, columns, axes)`` on each device's share of rows and items.

    To be called inside a jitted function. scores: [B, I], or factors of such. given: replicated
    arrays. columns: arrays [I]. ``local`` returns (arrays [B, ...] of its rows, arrays that are
    equal on all devices). Rows are split over all axes but ``model`` where these divide B;
    ``model`` must divide I.
    """
    if mesh is None:
        return local(scores, given, columns, Axes())
    parts = mesh.shape.get("model", 1)
    count = len(scores.contexts if isinstance(scores, Factors) else scores)
    row_axes = tuple(name for name in mesh.axis_names if name != "model")
    axes = Axes(
        row_axes if count % (mesh.size // parts) == 0 else None, "model" if parts > 1 else None
    )
    rows: Any = PartitionSpec(axes.rows)
    items: Any = PartitionSpec(axes.items)
    whole = PartitionSpec()
    score_spec: Any = PartitionSpec(axes.rows, axes.items)
    if isinstance(scores, Factors):
        score_spec = Factors(rows, items, items)
    return jax.shard_map(
        lambda scores, given, columns: local(scores, given, columns, axes),
        mesh=mesh,
        in_specs=(score_spec, whole, items),
        out_specs=(rows, whole),
        check_vma=False,
    )(scores, given, columns)


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises InputError unless ``data`` divides the batch; field: its name in the config."""
    if batch_size % mesh.shape["data"]:
        raise InputError(
            f"{field}={batch_size} is not divisible by the {mesh.shape['data']} devices of"
            f" mesh.data; use a multiple of {mesh.shape['data']}"
        )
