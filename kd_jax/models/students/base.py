"""The parts that all students share: their specification, base class and tables.

With ``num_classes == 0`` a student ranks the catalogue; with more it rates user-item pairs. Batches
are described in ``kd_jax/core/types.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import Array, Batch
from kd_jax.models.layers import dropout, normal
from kd_jax.models.scorer import Scorer
from kd_jax.runtime.store import Hidden

ITEM_TEXT = "item_text"  # f32 [I, F]: the language model's vector of every item's text
INPUTS = (ITEM_TEXT,)  # what a run provides
TEXT_START = "text"
VECTORS = ("random", TEXT_START)

Inputs = Mapping[str, Any]  # name -> array, numpy or traced


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """The specification of a student: sizes of the run, and the fields of its section.

    The fields of the section ``config.student.<name>`` are those with a default. A student with
    more fields subclasses this. Errors name the field alone: ``student_spec`` adds the section.
    """

    num_users: int
    num_items: int
    num_classes: int  # 0: rank the catalogue; more: rate pairs
    item_bias: Array | np.ndarray  # f32 [I], where item biases start
    warm: Array | np.ndarray | None  # bool [I], items with a train interaction
    dim: int = 64
    dropout: float = 0.5
    init_scale: float = 0.1
    # where item vectors start: 'random'; 'text', the language model's vectors, cut to dim by PCA
    vectors: str = "random"
    # where item biases start: 'count', log(1 + count); 'trend', the log of the recent count;
    # 'teacher', the teacher's biases
    bias: str = "count"
    popularity_days: float = 3.0  # bias='trend': an interaction this old counts 1/e

    def __post_init__(self) -> None:
        at_least_one(self, "dim")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and less than 1")
        if self.vectors not in VECTORS:
            raise InputError(f"vectors={self.vectors!r} is unknown{nearest(self.vectors, VECTORS)}")

    def plain(self) -> dict[str, Any]:
        """The fields that are no arrays."""
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in ("item_bias", "warm")}


@dataclasses.dataclass(frozen=True)
class UserSpec(StudentSpec):
    """The spec of students with one training example per user (``example_kind = "user"``)."""

    decay: float = 3.0  # a target of this age counts 1/e
    # 'interactions' (of the user, since then) or 'days' (before the end of training)
    decay_unit: str = "interactions"
    user_power: float = 0.5  # a user weighs (sum of the target weights) ** user_power


def at_least_one(spec: StudentSpec, *names: str) -> None:
    for name in names:
        if getattr(spec, name) < 1:
            raise InputError(f"{name}={getattr(spec, name)} must be at least 1")


def rank_only(spec: StudentSpec) -> None:
    if spec.num_classes:
        raise InputError("it ranks only; for task='rate' use another student, such as 'mf'")


@dataclasses.dataclass(frozen=True)
class HistorySpec(StudentSpec):
    """The spec of students that read histories and rank only."""

    history: int = 20  # newest interactions that are read; at most the teacher's if it is distilled

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "history")
        rank_only(self)


@dataclasses.dataclass(frozen=True)
class SequenceSpec(HistorySpec):
    """The spec of students with a table of items."""

    item_dropout: float = 0.0  # of item vectors, the same in histories and in the softmax

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.item_dropout < 1:
            raise InputError(f"item_dropout={self.item_dropout} must be at least 0 and less than 1")


class Student(Scorer):
    """A scorer that is built from its spec and from named arrays.

    spec: the dataclass of its section. inputs: names of the arrays that it reads besides the batch,
    such as ``ITEM_TEXT``. They come as constants, which training does not change; a student keeps
    what it needs of them as ``Frozen``. A role that must not see the language model (the control)
    builds the same class from ``inputs`` without ``ITEM_TEXT``, so every student must build both
    ways. Building is traced: read the inputs with ``jnp``, not with numpy.
    """

    spec: ClassVar[type[StudentSpec]] = StudentSpec
    inputs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: StudentSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec.warm)

    @classmethod
    def reads(cls, vectors: str) -> tuple[str, ...]:
        """The names of the arrays that it reads, given the spec's ``vectors``."""
        return tuple(dict.fromkeys((*cls.inputs, *(ITEM_TEXT,) * (vectors == TEXT_START))))

    @property
    def has_user_vectors(self) -> bool:
        """Whether it has a table of users to which a model of new users can be fitted."""
        vectors = self.factorised or self.runtime_hidden() is not None
        return self.example_kind == "user" and "user" in self.tables and vectors

    def runtime_hidden(self) -> Hidden | None:
        """For a student that does not factorise: its scores for ``kd_jax.runtime``."""
        return None


class SequenceStudent(Student):
    """A student that learns after every item of a history, with a table of items and their biases.

    Its ``contexts`` read packed batches, too. spec: a ``SequenceSpec``.
    """

    spec = SequenceSpec
    example_kind = "all"
    reads_packed = True
    tables = {"item": "item", "bias": "item"}

    def __init__(self, spec: SequenceSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.item = item_table(spec.num_items, spec, rngs, inputs)
        self.bias = nnx.Param(jnp.asarray(spec.item_bias))
        self.item_dropout = spec.item_dropout

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        return dropout(self.item[...], self.item_dropout, rngs), self.bias[...]


def item_table(rows: int, spec: StudentSpec, rngs: nnx.Rngs, inputs: Inputs) -> nnx.Param:
    """The table of item vectors, with random values of standard deviation ``init_scale``.

    inputs: where they have item texts and the spec starts from them, the vectors are those of
    ``text_start``.
    """
    random = normal(rngs, (rows, spec.dim), spec.init_scale)
    text = inputs.get(ITEM_TEXT)
    if text is None or spec.vectors != TEXT_START:
        return nnx.Param(random)
    return nnx.Param(text_start(jnp.asarray(text, jnp.float32), random))


def text_start(text: Float[Array, "I F"], random: Float[Array, "I D"]) -> Float[Array, "I D"]:
    """Item vectors from those of a language model: the first D of their principal components.

    A component is divided by the square root of its standard deviation, so that those that all
    texts share do not outweigh the others, and all are scaled together to the root mean square of
    ``random``, which also fills the components that text of fewer than D numbers lacks.
    """
    centred = text - text.mean(0, keepdims=True)
    variances, basis = jnp.linalg.eigh(centred.T @ centred / len(text))
    kept = min(text.shape[1], random.shape[1])
    spread = jnp.maximum(variances[::-1][:kept], 1e-8) ** 0.25
    components = centred @ (basis[:, ::-1][:, :kept] / spread[None])
    size = jnp.sqrt(jnp.mean(components**2)) + 1e-8
    target = jnp.sqrt(jnp.mean(random**2))
    return jnp.concatenate([components * (target / size), random[:, kept:]], axis=1)


def user_table(spec: StudentSpec) -> nnx.Param:
    """The table of user vectors, initialised to zeros.

    A user without a train interaction is then served by the biases, not by noise.
    """
    return nnx.Param(jnp.zeros((spec.num_users, spec.dim)))
