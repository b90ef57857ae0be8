"""Softmax losses over a whole catalogue, without an array of all rows times all items.

A row's logits are context · item + bias (those of a teacher may also be given, computed before
training: ``teachers.with_logits``). Training reads them only to sum over them, so they are
made a tile at a time and thrown away; what is left is per row (normalisers, losses) and per
parameter (gradients). Two ways to cut:

- *rows*: a few rows against all items. Every logit is made once, its loss and its gradient in the
  same visit, because the objective is a weighted mean with weights that are given beforehand: no
  FLOP more than the plain version.
- *items*: all rows against a few items. Normalisers first, then the same logits again for the
  gradients: one matrix product more for the student and one for the teacher, and O(rows x chunk)
  memory however large the catalogue.

``tile_shape`` takes rows as long as ``MIN_ROWS`` of them fit, from which on the matrix products run
at full speed. The running normaliser is that of Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; gradients made in the forward pass are known from fused linear
cross-entropies (Hsu et al., "Liger Kernel", 2024).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kd_jax.core.scores import Factors
from kd_jax.core.tiling import Axes, pad_rows, tile_shape, tile_size
from kd_jax.losses.student_teacher import StudentTeacher
from kd_jax.losses.terms import Engine, Inputs, SoftmaxTerm


def mean_losses(
    terms: tuple[SoftmaxTerm, ...],
    student: Factors,
    inputs: Inputs,
    engine: Engine | None = None,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """The weighted mean over rows of each loss [N], and their sum weighted by the coefficients.

    Differentiable in the student's contexts, vectors and bias, through the sum alone: the means are
    for the log. Equal to ``dense.per_row`` of dense logits up to f32 rounding; products of bf16
    factors are summed in f32. engine: ``sharded.engine_for(mesh)``; by default one device.
    """
    return _mean(terms, engine or single, student, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, student: Factors, inputs: Inputs
) -> tuple[Array, Array]:
    return engine(terms, False, student, inputs)[0]


def _mean_forward(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, student: Factors, inputs: Inputs
) -> tuple[Any, Any]:
    return engine(terms, True, student, inputs)


def _mean_backward(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, gradients: Any, cotangent: tuple[Array, Array]
) -> Any:
    contexts, vectors, bias = (
        gradient * cotangent[0].astype(gradient.dtype) for gradient in gradients
    )
    return Factors(contexts, vectors, bias, None), None


_mean.defvjp(_mean_forward, _mean_backward)


def single(
    terms: tuple[SoftmaxTerm, ...], gradients: bool, student: Factors, inputs: Inputs
) -> Any:
    """``local`` on a single device."""
    return local(terms, gradients, student, inputs, Axes())


def local(
    terms: tuple[SoftmaxTerm, ...],
    gradients: bool,
    student: Factors,
    inputs: Inputs,
    axes: Axes,
    tile: int = 0,
) -> Any:
    """((sum, means), gradients by contexts, vectors and bias) of this device's rows and items."""
    rows, coefficients, teacher, warm, temperatures = inputs
    count = len(student.bias)
    height, width = tile_shape(len(rows.weights), count, tile or tile_size())
    offset = axes.offset(count)
    # Rows against all items add to the table's gradient [D, I], the faster product; chunks of items
    # to [I, D].
    turned = width == count
    shape = student.vectors.shape[::-1] if turned else student.vectors.shape
    zeros = (jnp.zeros(shape, jnp.float32), jnp.zeros(count, jnp.float32))

    def visit(carry: Any, part: Any) -> tuple[Any, Any]:
        """One tile of rows: its losses, and its share of the gradients."""
        means, tables = carry
        student_rows, teacher_rows, here = part
        student_part = _with_rows(student, student_rows)
        teacher_part = _with_rows(teacher, teacher_rows)
        both = StudentTeacher(
            terms, student_part, teacher_part, here, warm, temperatures, offset, axes
        )
        statistics = both.statistics(width)
        means = means + both.means(statistics)
        if not gradients:
            return (means, tables), None
        contexts, tables = both.gradients(coefficients, statistics, tables, width)
        return (means, tables), contexts

    parts = (_of_rows(student), _of_rows(teacher), rows)
    start = (jnp.zeros(len(terms)), zeros if gradients else None)
    size = len(rows.weights)
    if height == size:
        (means, tables), contexts = visit(start, parts)
    else:
        tiles = -(-size // height)
        cut = jax.tree.map(
            lambda x: pad_rows(x, tiles * height).reshape(tiles, height, *x.shape[1:]), parts
        )
        (means, tables), contexts = lax.scan(visit, start, cut)
        if gradients:
            contexts = contexts.reshape(tiles * height, -1)[:size]
    means = axes.sum_rows(means)
    total = jnp.sum(coefficients * means)
    if not gradients:
        return (total, means), None
    vectors, bias = axes.sum_rows(tables)
    given = (axes.sum_items(contexts), vectors.T if turned else vectors, bias)
    like = (student.contexts, student.vectors, student.bias)
    return (total, means), tuple(g.astype(x.dtype) for g, x in zip(given, like, strict=True))


def _of_rows(scores: Factors | Array | None) -> Any:
    """The arrays of ``scores`` that have an axis of rows: all of logits."""
    if isinstance(scores, Factors):
        return scores.contexts, scores.excluded
    return scores


def _with_rows(scores: Any, rows: Any) -> Any:
    """``scores`` with ``rows`` in place of the arrays that ``_of_rows`` gives."""
    if isinstance(scores, Factors):
        contexts, excluded = rows
        return scores._replace(contexts=contexts, excluded=excluded)
    return rows
