"""Random factors, rows and masks of a catalogue."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.losses import softmax
from kd_jax.losses.streamed import Loss, Rows

R, N, D = 24, 410, 8


ALL = (
    Loss("ce"),
    Loss("ce", warm=True),
    Loss("kl", 1.0),
    Loss("kl", 2.5, warm=True),
    Loss("soft_ce", 0.5),
)


SOFT = {"kl": softmax.kl, "soft_ce": softmax.soft_cross_entropy}


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
