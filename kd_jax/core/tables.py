"""Tables of which a step touches few rows: which rows those are, and Adam that reads and writes no
other.

A step gathers the rows it needs, differentiates with respect to them alone, and writes them back.
*Lazy* Adam keeps a row and its moments, bit for bit, in every step that does not touch the row.
Against dense Adam, which sees a gradient of zero there, this changes three things:

- no momentum: a row rests between two touches, where dense Adam goes on moving it along its fading
  first moment;
- no decay of the moments between touches: a row is optimised as by an Adam of its own that only saw
  the steps that touched it, bias correction by the row's own count of touches included;
- weight decay (AdamW) acts on touched rows only, so rarely touched rows decay less.

Where every row is touched in every step it is dense Adam. A gradient of zero in a row that was
gathered is a touch. What a step costs depends on the rows it touches, not on those of the table.
The lazy update is that of TensorFlow Addons' LazyAdam, which corrects the bias by the global step
instead: the first touch of a row late in training would then be a step (1 - b1) / sqrt(1 - b2) = 3
times as long.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from kd_jax.core.types import PAD, Params, PyTree


def distinct(count: int, *values: Int[Array, "..."]) -> tuple[Int[Array, " K"], tuple[Array, ...]]:
    """The distinct rows, of ``count``, that ``values`` name, sorted; and ``values`` again as
    indices into them.

    PAD stays PAD. K is static: as many rows as there could be; the unused ones at the end are
    different numbers from ``count`` on, where a table has no row.
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
    """[N, …] -> [K, …]; zeros for rows that the table does not have. rows: distinct and sorted."""
    return table.at[rows].get(
        mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
    )


def put(table: Array, rows: Int[Array, " K"], values: Array) -> Array:
    """``table`` with these rows set, in place where its memory may be reused."""
    return table.at[rows].set(
        values.astype(table.dtype), mode="drop", indices_are_sorted=True, unique_indices=True
    )


def gather_rows(params: Params, rows: dict[str, Array]) -> Params:
    """``params`` with each table named in ``rows`` reduced to those rows."""
    return params | {name: take(params[name], index) for name, index in rows.items()}


def scatter_rows(params: Params, rows: dict[str, Array], new: Params) -> Params:
    """``new`` for everything but the tables named in ``rows``, of which it holds those rows
    only.
    """
    return new | {name: put(params[name], index, new[name]) for name, index in rows.items()}


def with_rows(tree: PyTree, rows: dict[str, int]) -> PyTree:
    """``tree`` with every table named in ``rows``, and its moments if they are there, cut or padded
    with zeros to as many rows. Tables lie at the top level of the parameters: no other key of a
    dict leads to them.
    """

    def resized(path: Any, x: Any) -> Any:
        keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        wanted = rows.get(keys[0], len(x)) if len(keys) == 1 and x.ndim else None
        if wanted is None or wanted == len(x):
            return x
        xp: Any = np if isinstance(x, np.ndarray) else jnp
        return (
            x[:wanted]
            if wanted < len(x)
            else xp.pad(x, ((0, wanted - len(x)), *[(0, 0)] * (x.ndim - 1)))
        )

    return jax.tree_util.tree_map_with_path(resized, tree)
