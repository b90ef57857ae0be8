"""Adam that reads and writes only the table rows that a step touches.

*Lazy* Adam keeps a row and its moments, bit for bit, in every step that does not touch the row.
Against dense Adam, which sees a gradient of zero there, this changes three things:

- no momentum between touches: dense Adam goes on moving a row along its fading first moment;
- no decay of the moments between touches: each row is optimised as by an Adam of its own that sees
  only the steps that touch it, with a bias correction by the row's own count of touches;
- weight decay (AdamW) acts on touched rows only, so rarely touched rows decay less.

Where every row is touched in every step, it equals dense Adam. A gradient of zero in a gathered row
is a touch. The cost of a step depends on the rows it touches, not on the size of the table. The
lazy update is that of TensorFlow Addons' LazyAdam, except that LazyAdam corrects the bias by the
global step: the first touch of a row late in training would then be a step (1 - b1) / sqrt(1 - b2)
= 3 times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kd_jax.core.tables import put, take
from kd_jax.core.types import Params, PyTree

MOMENTS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class AdamState(NamedTuple):
    """The state of ``scale_by_adam``.

    mu, nu: the moments, shaped as the parameters, in the moments' type. touches: int32, one count
    per row (first axis) of each parameter.
    """

    steps: Array
    mu: PyTree
    nu: PyTree
    touches: PyTree


def scale_by_adam(
    moments: str = "float32", b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction, lazy for gathered tables; in a chain in place of ``optax.scale_by_adam``.

    update(gradients, state, params, rows={name: int32 [K]}): the tables named in ``rows`` come as
    their gathered rows (``gather_rows``), and so does their direction; the state holds the moments
    of the whole tables. moments: 'float32', or 'bfloat16', rounded stochastically: the second
    moment changes by a thousandth per step, which rounding to the nearest of bfloat16's 8 bits
    would lose. Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1; stochastic rounding of
    weights and moments: Zamirai et al., "Revisiting BFloat16 training", 2020.
    """
    kind = MOMENTS[moments]

    def init(params: Params) -> AdamState:
        def zeros() -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros(p.shape, kind), params)

        touches = jax.tree.map(lambda p: jnp.zeros(p.shape[:1], jnp.int32), params)
        return AdamState(jnp.zeros((), jnp.int32), zeros(), zeros(), touches)

    def update(
        updates: Params,
        state: AdamState,
        params: Params | None = None,
        *,
        rows: dict[str, Array] | None = None,
        **_: Any,
    ) -> tuple[Params, AdamState]:
        gradients = jax.tree_util.tree_leaves_with_path(updates)
        tree: Any = jax.tree.structure(updates)
        key = jax.random.fold_in(jax.random.key(0), state.steps)
        found = []
        old = (tree.flatten_up_to(part) for part in (state.mu, state.nu, state.touches))
        for i, ((path, gradient), *tables) in enumerate(zip(gradients, *old, strict=True)):
            index = (rows or {}).get(getattr(path[0], "key", ""))
            mu, nu, touches = tables if index is None else (take(table, index) for table in tables)
            touches = touches + 1
            mu = b1 * mu.astype(jnp.float32) + (1 - b1) * gradient
            nu = b2 * nu.astype(jnp.float32) + (1 - b2) * gradient**2
            times = touches.astype(jnp.float32).reshape(
                touches.shape + (1,) * (mu.ndim - touches.ndim)
            )
            direction = mu / (1 - b1**times) / (jnp.sqrt(nu / (1 - b2**times)) + eps)
            if kind == jnp.bfloat16:
                mu, nu = _rounded(jax.random.fold_in(key, i), mu, nu)
            new: tuple[Array, ...] = (mu, nu, touches)
            if index is not None:
                new = tuple(
                    put(table, index, value) for table, value in zip(tables, new, strict=True)
                )
            found.append((direction.astype(gradient.dtype), *new))
        directions, *parts = (tree.unflatten(part) for part in zip(*found, strict=True))
        return directions, AdamState(state.steps + 1, *parts)

    return optax.GradientTransformationExtraArgs(init, update)


def _rounded(key: Array, *values: Float[Array, "..."]) -> tuple[Array, ...]:
    """Rounds f32 to bf16 stochastically, so that the mean is preserved.

    Two values share one random word.
    """
    words = jax.random.bits(key, values[0].shape, jnp.uint32)
    return tuple(
        jax.lax.bitcast_convert_type(
            (jax.lax.bitcast_convert_type(value, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000),
            jnp.float32,
        ).astype(jnp.bfloat16)
        for value, noise in zip(values, (words & 0xFFFF, words >> 16), strict=True)
    )
