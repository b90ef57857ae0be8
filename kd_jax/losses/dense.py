"""Softmax losses of dense logits: of classes, and of students without factors."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.tiling import NEGATIVE, set_at
from kd_jax.core.types import PAD
from kd_jax.losses.base import RowStatistics, SoftmaxLoss


def per_row(
    loss: SoftmaxLoss,
    logits: Float[Array, "*B C"],
    other: Float[Array, "*B C"] | tuple[Int[Array, "*B M"], Float[Array, "*B M"]],
    temperature: float | Array = 1.0,
    where: Bool[Array, " C"] | None = None,
    apart: Int[Array, "*B M"] | None = None,
) -> Float[Array, "*B"]:
    """temperature² · ``loss`` of each row, differentiable in ``logits``.

    other: the teacher's logits, which get no gradient; for a loss of the clicks, targets (padded
    with ``PAD``) and their weights, at temperature 1. where: the classes that take part; the others
    have probability 0. apart: the classes that ``loss.apart`` names. A row without any class that
    takes part, or without a target, has loss 0 and gradient 0.
    """
    if not loss.reads_teacher:
        assert isinstance(other, tuple)
        return _of_targets(loss, logits, *other, where)
    assert not isinstance(other, tuple)
    shape = logits.shape[:-1]
    student = _masked(logits, temperature, where).reshape(-1, logits.shape[-1])
    teacher = _masked(jax.lax.stop_gradient(other), temperature, where).reshape(student.shape)
    named = None
    if loss.apart:
        assert apart is not None
        nothing = jnp.zeros(student.shape)
        there = set_at(nothing, apart.reshape(len(student), -1), 0, 1.0) > 0
        there &= teacher > NEGATIVE / 2
        named = [jnp.where(there, x, NEGATIVE) for x in (student, teacher)]
        student, teacher = (jnp.where(there, NEGATIVE, x) for x in (student, teacher))
    some = jnp.max(teacher, -1) > NEGATIVE / 2
    # A softmax does not change when logits are shifted: log-probabilities are logits, too, with
    # normaliser 0, and sums of them do not cancel.
    rows = statistics(loss, jax.nn.log_softmax(student), jax.nn.log_softmax(teacher), None)
    if named is not None:
        rows = with_named(rows, named, (student, teacher))
    return jnp.where(some, temperature**2 * loss.value(rows), 0.0).reshape(shape)


def statistics(
    loss: SoftmaxLoss,
    student: Float[Array, "R C"],
    teacher: Float[Array, "R C"],
    log_weights: Float[Array, "R C"] | None,
) -> RowStatistics:
    """The statistics of rows, computed from both models' log-probabilities.

    log_weights: the log of the number of classes that each column represents; None: one each.
    """
    log_weights = jnp.zeros(()) if log_weights is None else log_weights
    shares = {False: jnp.exp(student + log_weights), True: jnp.exp(teacher + log_weights)}

    def expected(weights: Array, values: Array) -> Array:
        return jnp.sum(jnp.where(weights > 0, weights * values, 0.0), -1)

    zero = jnp.zeros(len(student))
    return RowStatistics(
        zero,
        zero,
        tuple(
            expected(shares[expectation.under_teacher], expectation.of(student, teacher))
            for expectation in loss.expectations
        ),
        tuple(expected(jnp.exp(log_weights), of(student, teacher)) for of in loss.log_prob_sums),
    )


def with_named(
    rows: RowStatistics, named: Sequence[Array], others: Sequence[Array]
) -> RowStatistics:
    """``rows`` with the logits of the items apart, whose normalisers are those of the others.

    named: of student and teacher, [R, M]. others: logits [R, C].
    """
    student, teacher = (
        jnp.where(x > NEGATIVE / 2, x - jax.nn.logsumexp(y, axis=1, keepdims=True), NEGATIVE)
        for x, y in zip(named, others, strict=True)
    )
    return rows._replace(student_named=student, teacher_named=teacher)


def _masked(logits: Array, temperature: float | Array, where: Array | None) -> Array:
    scaled = logits.astype(jnp.float32) / temperature
    if where is None:
        return scaled
    return jnp.where(where.reshape((1,) * (logits.ndim - 1) + where.shape), scaled, NEGATIVE)


def _of_targets(
    loss: SoftmaxLoss, logits: Array, targets: Array, weights: Array, where: Array | None
) -> Array:
    safe = jnp.where(targets == PAD, 0, targets)
    counted = jnp.where(targets == PAD, 0.0, weights)
    if where is not None:
        counted = jnp.where(where[safe], counted, 0.0)
    masked = _masked(logits, 1.0, where)
    log_z = jax.nn.logsumexp(masked, axis=-1, keepdims=True)
    picked = jnp.take_along_axis(masked, safe, axis=-1) - log_z
    # The log-normaliser is taken off each logit first: both may be large, and the loss small.
    total = jnp.sum(jnp.where(counted > 0, counted * picked, 0.0), axis=-1)
    return loss.value(
        RowStatistics(jnp.zeros(()), target_logit=total, target_weight=counted.sum(-1))
    )


def listed(
    items: Int[Array, "*B K"],
    logits: Float[Array, "*B K"],
    temperature: float | Array = 1.0,
    where: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, "*B K"], Float[Array, "*B"]]:
    """softmax(logits / temperature) over each row's listed items, and its entropy in nats.

    where: mask of the classes that take part. The probabilities are the target weights of a
    cross-entropy: a list is a distribution over the catalogue that is 0 elsewhere, and its
    cross-entropy needs no array of rows x classes. All are 0 for a row without an item.
    """
    there = items != PAD
    if where is not None:
        there &= where[jnp.maximum(items, 0)]
    scaled = logits.astype(jnp.float32) / temperature
    log_p = jax.nn.log_softmax(jnp.where(there, scaled, NEGATIVE), axis=-1)
    p = jnp.where(there, jnp.exp(log_p), 0.0)
    return p, -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)
