"""The streamed losses on a mesh: rows on their ``data`` slice, items on their ``model`` slice."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE, Axes
from kd_jax.devices.sharding import ITEMS, ROWS, WHOLE, spare
from kd_jax.losses.streamed import local
from kd_jax.losses.terms import Engine, Inputs, SoftmaxTerm


def engine_for(mesh: Mesh) -> Engine | None:
    """The engine that runs ``streamed.mean_losses`` on ``mesh``; None for one device.

    Rows stay on their slice of ``data``, and items on their slice of ``model``. Only arrays per row
    (normalisers, gradients of the contexts) are communicated over ``model``, and the gradient of
    the item table over ``data``; logits never are.
    """
    if mesh.size == 1:
        return None

    def padded(factors: Factors) -> Factors:
        missing = spare(len(factors.bias), mesh)
        if not missing:
            return factors
        bias = jnp.pad(factors.bias, (0, missing), constant_values=NEGATIVE)
        return factors._replace(vectors=jnp.pad(factors.vectors, ((0, missing), (0, 0))), bias=bias)

    def spec(scores: Any) -> Any:
        if scores is None:
            return None
        if isinstance(scores, jax.Array):  # logits, which no mesh with a split of items has
            return ROWS
        excluded = None if scores.excluded is None else ROWS
        return scores._replace(contexts=ROWS, vectors=ITEMS, bias=ITEMS, excluded=excluded)

    def run(
        terms: tuple[SoftmaxTerm, ...], gradients: bool, student: Factors, inputs: Inputs
    ) -> Any:
        given, coefficients, teacher, warm, temperatures = inputs
        count = len(student.bias)
        student = padded(student)
        if isinstance(teacher, Factors):
            teacher = padded(teacher)
        warm = None if warm is None else jnp.pad(warm, (0, spare(count, mesh)))
        taken: tuple[Any, ...] = (
            ROWS,
            WHOLE,
            spec(teacher),
            None if warm is None else ITEMS,
            None if temperatures is None else WHOLE,
        )
        axes = Axes("data", "model")
        values, slopes = jax.shard_map(
            lambda s, i: local(terms, gradients, s, i, axes),
            mesh=mesh,
            in_specs=(spec(student), Inputs(*taken)),
            out_specs=(WHOLE, (ROWS, ITEMS, ITEMS) if gradients else None),
            check_vma=False,
        )(student, Inputs(given, coefficients, teacher, warm, temperatures))
        return values, slopes and (slopes[0], slopes[1][:count], slopes[2][:count])

    return run
