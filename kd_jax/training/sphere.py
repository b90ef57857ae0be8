"""User and item vectors of one length, for a matrix factorisation.

Where both have the length r, a score is r² times the cosine of their angle, plus the item's bias:
no item or user has larger products by the length of its vector. A softmax of cosines at a
temperature, here 1 / r², is that of Wu et al., "On the effectiveness of sampled softmax loss for
item recommendation", ACM TOIS 2024. Here the trained tables themselves have this length, and what
reads them needs no rule of its own. Vectors that a linear map makes later, of new users and new
items and of users with newer clicks, have other lengths.

As in optimisation on a product of spheres (Absil, Mahony and Sepulchre, "Optimization algorithms on
matrix manifolds", 2008, chapters 3 and 4), the gradient is projected to the tangent of the sphere,
and the new vector is scaled back to it. The moments of Adam stay in the space around it.
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
    """``tx``, without weight decay, with the vectors of ``TABLES`` kept at the L2 norm ``length``.

    A row is scaled to it in every step in which it has a gradient. Before the first it keeps its
    start: a user without interactions, zeros; an item that no softmax reads, a short vector.
    Momentum in a step without a gradient makes no row longer than ``length`` or than it was.
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
            was, now = (
                jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (params[name], moved)
            )
            wanted = jnp.where(touched, length, jnp.minimum(now, jnp.maximum(was, length)))
            moves[name] = moved * (wanted / jnp.maximum(now, 1e-12)) - params[name]
        return moves, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _tables(params: Params) -> tuple[str, ...]:
    return tuple(name for name in TABLES if name in params)


def _tangent(gradient: Float[Array, "R D"], rows: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """The gradient without its component along each row; all of it where a row is 0."""
    along = jnp.sum(gradient * rows, axis=1, keepdims=True)
    square = jnp.sum(rows * rows, axis=1, keepdims=True)
    return gradient - rows * (along / jnp.maximum(square, 1e-24))
