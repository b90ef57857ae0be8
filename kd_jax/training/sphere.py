"""User and item vectors of one length.

Where both have the length r, a score is r² times the cosine of their angle, so that neither a
frequent item nor a user of many clicks can win by the length of its vector. The softmax of cosines
at the temperature 1 / r² is that of Wu et al., "On the effectiveness of sampled softmax loss for
item recommendation", ACM TOIS 2024. Here the tables themselves hold vectors of this length, and
what reads them later, such as an export, needs no rule of its own.

A step is one of Riemannian optimisation on a product of spheres (Absil, Mahony and Sepulchre,
"Optimization algorithms on matrix manifolds", 2008, chapters 3 and 4): the gradient is projected to
the tangent of the sphere, and the new vector is scaled back to it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Float

from kd_jax.core.types import Array, Params, PyTree

TABLES = ("user", "item")  # parameters with a vector per row


def on_sphere(
    tx: optax.GradientTransformation, length: float
) -> optax.GradientTransformationExtraArgs:
    """``tx`` with the vectors of ``TABLES`` kept at the L2 norm ``length``.

    A row is scaled to it by the first step in which it has a gradient. Until then it keeps its
    start: a user without interactions, zeros; an item that no softmax reads, a short vector. Later
    moves of a row without a gradient, by momentum, may only shorten it.
    """
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: Params, state: PyTree, params: Params | None = None, **given: Any
    ) -> tuple[Params, PyTree]:
        assert params is not None
        tangent = dict(updates)
        for name in _tables(params):
            tangent[name] = _tangent(updates[name], params[name])
        moves, state = inner.update(tangent, state, params, **given)
        for name in _tables(params):
            touched = jnp.any(updates[name] != 0, axis=1, keepdims=True)
            moved = params[name] + moves[name]
            now = jnp.linalg.norm(moved, axis=1, keepdims=True)
            scaled = moved * (length / jnp.maximum(now, 1e-12))
            moves[name] = jnp.where(touched | (now > length), scaled, moved) - params[name]
        return moves, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _tables(params: Params) -> tuple[str, ...]:
    return tuple(name for name in TABLES if name in params and jnp.ndim(params[name]) == 2)


def _tangent(gradient: Float[Array, "R D"], rows: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """The gradient without its component along each row; all of it where a row is 0."""
    along = jnp.sum(gradient * rows, axis=1, keepdims=True)
    square = jnp.sum(rows * rows, axis=1, keepdims=True)
    return gradient - rows * (along / jnp.maximum(square, 1e-24))
