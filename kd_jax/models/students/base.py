"""Students: small recommenders. Adding one is one class and one line in ``STUDENTS`` (README, "Add
a student").

Every student is built as ``cls(spec, rngs=…)`` and reads the batch described in
``kd_jax/types.py``. With ``num_classes == 0`` it ranks the catalogue; with more it rates user-item
pairs.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError
from kd_jax.core.types import Array
from kd_jax.models.layers import normal


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """What a student is built from. bias: f32 [I], the item bias to start at; warm: bool [I]."""

    num_users: int
    num_items: int
    bias: Array | np.ndarray
    warm: Array | np.ndarray | None
    dim: int = 64
    dropout: float = 0.5
    init_scale: float = 0.1
    num_classes: int = 0
    history: int = 50
    blocks: int = 2
    heads: int = 2
    hidden: int = 32

    def __post_init__(self) -> None:
        for name in ("dim", "history", "blocks", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"student.<name>.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"student.<name>.dropout={self.dropout} must be at least 0 and less than 1"
            )


def item_table(rows: int, spec: StudentSpec, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs, (rows, spec.dim), spec.init_scale))


def user_table(spec: StudentSpec) -> nnx.Param:
    """User vectors start at zero: a user without a train interaction is served by the biases, not
    by noise.
    """
    return nnx.Param(jnp.zeros((spec.num_users, spec.dim)))
