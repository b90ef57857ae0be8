"""Gather and scatter of table rows, for steps that read and write few rows of a large table.

A step gathers the rows that it needs, differentiates with respect to these rows alone, and writes
them back (``training/lazy_adam.py`` holds the optimiser).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from kd_jax.core.types import PAD, Params, PyTree


def distinct(count: int, *values: Int[Array, "..."]) -> tuple[Int[Array, " K"], tuple[Array, ...]]:
    """The distinct rows in ``values``, sorted, and ``values`` as indices into these rows.

    count: rows of the table. ``PAD`` stays ``PAD``. K is static, the largest possible number of
    distinct rows; unused entries at the end are distinct numbers from ``count`` on, which are out
    of bounds.
    """
    flat = jnp.concatenate([value.ravel() for value in values])
    size = min(len(flat), count + 1)
    rows, index = jnp.unique(
        jnp.where(flat == PAD, count, flat),
        return_inverse=True,
        size=size,
        fill_value=count,
        sorted=True,
    )
    rows = jnp.where(rows < count, rows, count + jnp.arange(size)).astype(jnp.int32)
    index = jnp.where(flat == PAD, PAD, index.ravel()).astype(jnp.int32)
    ends = [0]
    for value in values:
        ends.append(ends[-1] + value.size)
    return rows, tuple(
        index[a:b].reshape(v.shape) for a, b, v in zip(ends, ends[1:], values, strict=False)
    )


def take(table: Array, rows: Int[Array, " K"]) -> Array:
    """[N, …] -> [K, …], with zeros for rows out of bounds; rows: distinct and sorted."""
    return table.at[rows].get(
        mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
    )


def put(table: Array, rows: Int[Array, " K"], values: Array) -> Array:
    """``table`` with ``rows`` set to ``values`` [K, …]; rows out of bounds are ignored.

    rows: distinct and sorted.
    """
    return table.at[rows].set(
        values.astype(table.dtype), mode="drop", indices_are_sorted=True, unique_indices=True
    )


def gather_rows(params: Params, rows: dict[str, Array]) -> Params:
    """``params`` with each table named in ``rows`` reduced to those rows."""
    return params | {name: take(params[name], index) for name, index in rows.items()}


def scatter_rows(params: Params, rows: dict[str, Array], new: Params) -> Params:
    """``new``, with each table named in ``rows`` written back into the table of ``params``.

    new: parameters in which these tables are reduced to ``rows``, as ``gather_rows`` returns them.
    """
    return new | {name: put(params[name], index, new[name]) for name, index in rows.items()}


def with_rows(tree: PyTree, rows: dict[str, int]) -> PyTree:
    """``tree`` with every table named in ``rows`` cut, or padded with zeros, to that many rows.

    tree: parameters, or an optimiser state with their moments. Tables are at the top level of the
    parameters: no other dict key is on the path to them.
    """

    def resized(path: Any, x: Any) -> Any:
        keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        if len(keys) != 1 or not x.ndim:
            return x
        count = rows.get(keys[0], len(x))
        if count == len(x):
            return x
        if count < len(x):
            return x[:count]
        xp: Any = np if isinstance(x, np.ndarray) else jnp
        return xp.pad(x, ((0, count - len(x)), *[(0, 0)] * (x.ndim - 1)))

    return jax.tree_util.tree_map_with_path(resized, tree)
