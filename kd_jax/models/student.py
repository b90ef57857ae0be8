"""Students: small recommenders. Adding one is one class and one line in ``STUDENTS`` (README, "Add a student").

Every student is built as ``cls(spec, rngs=…)`` and reads the batch described in ``kd_jax/types.py``. With
``num_classes == 0`` it ranks the catalogue; with more it rates user-item pairs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.errors import InputError, nearest
from kd_jax.models.layers import CausalTransformer, Scorer, dropout, normal
from kd_jax.types import Array, Batch, PyTree


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
                raise InputError(f"student.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"student.dropout={self.dropout} must be at least 0 and less than 1")


def _table(rows: int, spec: StudentSpec, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs, (rows, spec.dim), spec.init_scale))


def _users(spec: StudentSpec) -> nnx.Param:
    """User vectors start at zero: a user without a train interaction is served by the biases, not by noise."""
    return nnx.Param(jnp.zeros((spec.num_users, spec.dim)))


class MatrixFactorization(Scorer):
    """User vector · item vector + item bias. Source: Koren, Bell, Volinsky, IEEE Computer 2009, equation 5.

    For ``rate`` the elementwise product of the two vectors is mapped to class logits, so that every class has
    its own weighting of the factors, plus a bias per item and class and per user and class.
    """

    reads_history = False
    tables = {"user": "user", "user_class": "user", "item": "item", "item_class": "item", "bias": "item"}

    def __init__(self, spec: StudentSpec, *, rngs: nnx.Rngs):
        super().__init__(spec.warm)
        self.dropout = spec.dropout
        self.user = _users(spec)
        self.item = _table(spec.num_items, spec, rngs)
        if spec.num_classes:
            self.item_class = nnx.Param(jnp.zeros((spec.num_items, spec.num_classes)))
            self.user_class = nnx.Param(jnp.zeros((spec.num_users, spec.num_classes)))
            self.head = nnx.Linear(spec.dim, spec.num_classes, rngs=rngs)
        else:
            self.bias = nnx.Param(jnp.asarray(spec.bias))

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return dropout(self.user[...][batch["user"]], self.dropout, rngs)[:, None]

    def items(self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None) -> tuple[Array, Array]:
        return dropout(self.item[...], self.dropout, rngs), self.bias[...]

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Array:
        if "item" not in batch:
            return super().logits(batch, rngs=rngs)
        user = dropout(self.user[...][batch["user"]], self.dropout, rngs)
        item = dropout(self.item[...][batch["item"]], self.dropout, rngs)
        bias = self.item_class[...][batch["item"]] + self.user_class[...][batch["user"]]
        return (self.head(user * item) + bias)[:, None]


class MLP(Scorer):
    """Concatenated user and item vectors -> hidden layer -> score. Source: He et al., "Neural Collaborative
    Filtering", WWW 2017, equation 10, with one hidden layer.

    The first layer is split into a user half and an item half, so a catalogue is scored without building the
    concatenation for every pair; items go through the hidden layer in chunks, [B, chunk, hidden] at a time.
    """

    factorised = False
    reads_history = False
    tables = {"user": "user", "item": "item", "bias": "item"}
    chunk = 1024

    def __init__(self, spec: StudentSpec, *, rngs: nnx.Rngs):
        super().__init__(spec.warm)
        self.dropout = spec.dropout
        self.user = _users(spec)
        self.item = _table(spec.num_items, spec, rngs)
        self.user_in = nnx.Linear(spec.dim, spec.hidden, rngs=rngs)
        self.item_in = nnx.Linear(spec.dim, spec.hidden, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(spec.hidden, max(1, spec.num_classes), rngs=rngs)
        if not spec.num_classes:
            self.bias = nnx.Param(jnp.asarray(spec.bias))

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Array:
        user = self.user_in(dropout(self.user[...][batch["user"]], self.dropout, rngs))
        if "item" in batch:
            item = self.item_in(dropout(self.item[...][batch["item"]], self.dropout, rngs))
            return self.out(jax.nn.relu(user + item))[:, None]
        return self._all(user, self.item_in(dropout(self.item[...], self.dropout, rngs)))[:, None]

    def catalogue(self) -> PyTree:
        return self.item_in(self.item[...])

    def scores(self, batch: Batch, catalogue: PyTree) -> Array:
        return self._all(self.user_in(self.user[...][batch["user"]]), catalogue)

    def _all(self, user: Array, hidden: Array) -> Array:
        count = hidden.shape[0]
        chunk = min(self.chunk, count)
        hidden = jnp.pad(hidden, ((0, -count % chunk), (0, 0))).reshape(-1, chunk, hidden.shape[-1])

        @jax.checkpoint  # recompute the [B, chunk, hidden] activations in the backward pass instead of keeping them
        def score(part: Array) -> Array:
            return self.out(jax.nn.relu(user[:, None] + part[None]))[..., 0]

        scores = jnp.moveaxis(jax.lax.map(score, hidden), 0, 1).reshape(user.shape[0], -1)
        return scores[:, :count] + self.bias[...][None]


class SASRec(Scorer):
    """A causal Transformer over item embeddings, tied with the output. Source: Kang and McAuley, ICDM 2018, with
    the full softmax of Klenitskiy and Vasilev, RecSys 2023, in place of the sampled binary loss."""

    positions = "all"
    tables = {"item": "item", "bias": "item"}

    def __init__(self, spec: StudentSpec, *, rngs: nnx.Rngs):
        super().__init__(spec.warm)
        if spec.num_classes:
            raise InputError("student.name='sasrec' ranks only; for task='rate' use 'mf' or 'mlp'")
        if spec.dim % spec.heads:
            raise InputError(f"student.dim={spec.dim} is no multiple of student.heads={spec.heads}; change one of them")
        self.item = _table(spec.num_items, spec, rngs)
        self.bias = nnx.Param(jnp.asarray(spec.bias))
        self.transformer = CausalTransformer(
            *(spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout), widen=1, activation=jax.nn.relu, rngs=rngs
        )

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self._read(batch["history"], vectors, rngs=rngs)

    def context(self, batch: Batch, vectors: Array) -> Array:
        return self._read(batch["history"], vectors, last=True)[:, 0]

    def _read(self, history: Array, vectors: Array, **how: Any) -> Array:
        return self.transformer(vectors[jnp.maximum(history, 0)] * vectors.shape[1] ** 0.5, history, **how)

    def items(self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None) -> tuple[Array, Array]:
        return self.item[...], self.bias[...]


STUDENTS: dict[str, type[Scorer]] = {"mf": MatrixFactorization, "mlp": MLP, "sasrec": SASRec}


def student_class(name: str) -> Any:
    """The registered class, called as ``cls(spec, rngs=…)``. Raises InputError for an unknown name."""
    if name not in STUDENTS:
        raise InputError(f"student.name={name!r} is unknown{nearest(name, STUDENTS)}")
    return STUDENTS[name]
