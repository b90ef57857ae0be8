"""Random factors, rows and masks of a catalogue, and oracles of the softmax losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.losses import LOSSES
from kd_jax.losses.terms import Inputs, Rows, SoftmaxTerm

R, N, D = 24, 410, 8


def softmax_term(name, temperature=1.0, warm=False):
    return SoftmaxTerm(LOSSES[name](), temperature, warm)


ALL = (
    softmax_term("ce"),
    softmax_term("ce", warm=True),
    softmax_term("kl"),
    softmax_term("kl", 2.5, warm=True),
    softmax_term("soft_ce", 0.5),
    softmax_term("js", 1.5, warm=True),
)


def world(seed=0, excluded=True, dtype=jnp.float32):
    rng = np.random.default_rng(seed)

    def factors(width, scale):
        return Factors(
            jnp.asarray(rng.normal(size=(R, width)) * scale, dtype),
            jnp.asarray(rng.normal(size=(N, width)), dtype),
            jnp.asarray(rng.normal(size=N), jnp.float32),
            jnp.asarray(rng.integers(-1, N, (R, 5)), jnp.int32) if excluded else None,
        )

    targets = rng.integers(0, N, (R, 3))
    targets[::4, 1:] = PAD
    targets[5] = PAD
    shares = np.where(targets == PAD, 0.0, rng.random((R, 3)))
    weights = rng.random(R)
    weights[7] = 0.0
    rows = Rows(
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(shares, jnp.float32),
        jnp.asarray(weights / weights.sum(), jnp.float32),
    )
    return factors(D, 1.0), factors(D + 3, 0.7), rows, jnp.asarray(rng.random(N) < 0.7)


def mixture(log_p, log_q):
    return jnp.logaddexp(log_p, log_q) + jnp.log(0.5)


# Loss -> (log-probabilities of the student, of the teacher) -> loss of each row, by definition.
ORACLES = {
    "soft_ce": lambda s, t: -jnp.sum(jnp.exp(t) * s, -1),
    "kl": lambda s, t: jnp.sum(jnp.exp(t) * (t - s), -1),
    "js": lambda s, t: (
        0.5 * jnp.sum(jnp.exp(t) * (t - mixture(s, t)) + jnp.exp(s) * (s - mixture(s, t)), -1)
    ),
}


def oracle(term, student, teacher, rows, warm):
    """Loss of each row from whole logits [R, N], by definition."""
    name = next(name for name, kind in LOSSES.items() if type(term.loss) is kind)
    kept = np.flatnonzero(warm) if term.warm and warm is not None else np.arange(student.shape[1])
    place = np.full(student.shape[1], -1)
    place[kept] = np.arange(len(kept))
    if name == "ce":
        log_p = jax.nn.log_softmax(student[:, kept])
        found = jnp.where(rows.targets == PAD, -1, jnp.asarray(place)[rows.targets])
        picked = jnp.take_along_axis(log_p, jnp.maximum(found, 0), 1)
        return -jnp.sum(jnp.where(found < 0, 0.0, rows.target_weights * picked), 1)
    logs = [jax.nn.log_softmax(x[:, kept] / term.temperature) for x in (student, teacher)]
    return term.temperature**2 * ORACLES[name](*logs)


def plain(terms, student, inputs):
    """What ``streamed.mean_losses`` returns, by definition."""
    logits = [student.dense(), inputs.teacher.dense()]
    rows = inputs.rows
    means = [jnp.sum(oracle(term, *logits, rows, inputs.warm) * rows.weights) for term in terms]
    return jnp.sum(inputs.coefficients * jnp.stack(means)), jnp.stack(means)


def inputs_of(terms, rows, teacher, warm):
    return Inputs(rows, jnp.arange(1.0, len(terms) + 1), teacher, warm)
