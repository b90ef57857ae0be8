"""Losses: pure functions of logits that return one value per example and never reduce over
examples.

Every function accepts any leading axes and takes the class (or catalogue) axis last. ``where``
marks the classes that take part in the softmax; the others have probability zero and cost nothing.
A row without any class that takes part, or without any target, has loss 0 and gradient 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.types import PAD

_NEGATIVE = -1e30  # a finite stand-in for -inf: keeps gradients of masked rows free of NaN


def _log_softmax(logits: Array, where: Array | None) -> Array:
    """Log-probabilities in f32 over the last axis; masked classes get a very negative finite
    value.
    """
    logits = logits.astype(jnp.float32)
    if where is not None:
        where = where.reshape((1,) * (logits.ndim - where.ndim) + where.shape)
        logits = jnp.where(where, logits, _NEGATIVE)
    return jax.nn.log_softmax(logits, axis=-1)


def _expected(teacher_log_probs: Array, values: Array) -> Array:
    """Sum over classes of teacher probability times value, with 0 * anything = 0 on masked
    classes.
    """
    probs = jnp.exp(teacher_log_probs)
    return jnp.sum(jnp.where(probs > 0, probs * values, 0.0), axis=-1)


def cross_entropy(
    logits: Float[Array, "*B C"],
    targets: Int[Array, "*B M"],
    target_weights: Float[Array, "*B M"],
    where: Bool[Array, " C"] | None = None,
) -> Float[Array, "*B"]:
    """Hard-label cross-entropy, -sum_m w_m log p(target_m), in nats.

    Several weighted targets make a distribution over the classes, which is how matrix factorisation
    learns from a whole history at once. A target that is padding (-1) or that ``where`` masks out
    counts for nothing.
    """
    logits = logits.astype(jnp.float32)
    safe = jnp.where(targets == PAD, 0, targets)
    counted = jnp.where(targets == PAD, 0.0, target_weights)
    if where is not None:
        counted = jnp.where(where[safe], counted, 0.0)
        logits = jnp.where(where.reshape((1,) * (logits.ndim - 1) + where.shape), logits, _NEGATIVE)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, safe, axis=-1)
    return jnp.sum(jnp.where(counted > 0, counted * (log_z[..., None] - picked), 0.0), axis=-1)


def listed(
    items: Int[Array, "*B K"],
    logits: Float[Array, "*B K"],
    temperature: float = 1.0,
    where: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, "*B K"], Float[Array, "*B"]]:
    """softmax(logits / temperature) over a row's listed items, those that take part, and its
    entropy in nats.

    The probabilities are the targets of ``cross_entropy``: a list is a distribution over the
    catalogue that is 0 elsewhere, and its cross-entropy needs no array of rows x classes. All 0 for
    a row without an item.
    """
    there = items != PAD
    if where is not None:
        there &= where[jnp.maximum(items, 0)]
    log_p = jax.nn.log_softmax(
        jnp.where(there, logits.astype(jnp.float32) / temperature, _NEGATIVE), axis=-1
    )
    p = jnp.where(there, jnp.exp(log_p), 0.0)
    return p, -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)


def soft_cross_entropy(
    teacher_logits: Float[Array, "*B C"],
    student_logits: Float[Array, "*B C"],
    temperature: float = 1.0,
    where: Bool[Array, " C"] | None = None,
) -> Float[Array, "*B"]:
    """Cross-entropy of the student against the teacher's distribution, both at ``temperature``,
    times T².

    No gradient reaches the teacher. Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", 2015, section 2 (T² keeps the gradient's size independent of T).
    """
    teacher = _log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature, where)
    student = _log_softmax(student_logits / temperature, where)
    return temperature**2 * _expected(teacher, -student)


def kl(
    teacher_logits: Float[Array, "*B C"],
    student_logits: Float[Array, "*B C"],
    temperature: float = 1.0,
    where: Bool[Array, " C"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(teacher_T ‖ student_T) in nats: `soft_cross_entropy` less the teacher's entropy.

    No gradient reaches the teacher. Source: Hinton, Vinyals, Dean 2015, section 2.
    """
    teacher = _log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature, where)
    student = _log_softmax(student_logits / temperature, where)
    return temperature**2 * _expected(teacher, teacher - student)
