"""The three families of losses, and the inputs that an engine passes to each.

A loss is a frozen dataclass with its hyper-parameters as fields. It returns one value per row and
never reduces over rows; the engines weight and sum. A new loss is a subclass of one of the three
families in a file of this folder, and one line in ``LOSSES``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.tiling import NEGATIVE
from kd_jax.core.types import Params

TARGETS = -1  # the ``SoftmaxLoss.apart`` of a loss that treats the clicked items apart


class Expectation(NamedTuple):
    """An expected value over the items of a row, which an engine sums a tile at a time.

    under_teacher: under the teacher's softmax; else under the student's. of: (student logits,
    teacher logits), both divided by the temperature [R, C] -> values [R, C].
    """

    under_teacher: bool
    of: Callable[[Array, Array], Array]


class RowStatistics(NamedTuple):
    """The statistics of each row that a ``SoftmaxLoss`` reads; all arrays are f32 [R].

    Logits are divided by the temperature.

    student_log_z, teacher_log_z: log-normalisers. expected: the loss's ``expectations``, in their
    order. sums: the loss's ``log_prob_sums``, in their order. target_logit: the student's logits of
    the targets, weighted by the target weights and summed. target_weight: the sum of these weights.
    student_named, teacher_named: [R, M], the logits of the items that a loss treats ``apart``, very
    low ones for padding; the other statistics are those of all other items then.
    """

    student_log_z: Array
    teacher_log_z: Array | None = None
    expected: tuple[Array, ...] = ()
    sums: tuple[Array, ...] = ()
    target_logit: Array | None = None
    target_weight: Array | None = None
    student_named: Array | None = None
    teacher_named: Array | None = None


class Tile(NamedTuple):
    """Some items of all rows: logits divided by the temperature, and probabilities; f32 [R, C]."""

    student_logits: Array
    student: Array
    teacher_logits: Array | None = None
    teacher: Array | None = None


@dataclasses.dataclass(frozen=True)
class SoftmaxLoss:
    """A loss of the student's softmax over the catalogue, or over classes, against the teacher's.

    Engines multiply value and gradient by temperature² (Hinton, Vinyals, Dean, "Distilling the
    Knowledge in a Neural Network", 2015, section 2).

    reads_teacher: False for a loss of the targets, see ``CrossEntropy``. expectations: what the
    engine sums over the items. log_prob_sums: functions of both log-probabilities [R, C], summed
    over the items in one more pass, since they need the normalisers. entropy_coefficient: c for a
    loss that is the cross-entropy against the teacher plus c times the teacher's entropy, which can
    also be computed for a teacher that lists a few items; None for all others. standardised:
    whether the logits of both models are first divided by their standard deviation over the items.
    apart: the items of a row that the loss treats apart: k for the teacher's best,
    ``TARGETS`` for the clicked ones, 0 for none. Softmaxes and tiles are those of the other items
    then; a row without any has loss 0.
    """

    reads_teacher: ClassVar[bool] = True
    expectations: ClassVar[tuple[Expectation, ...]] = ()
    log_prob_sums: ClassVar[tuple[Callable[[Array, Array], Array], ...]] = ()
    entropy_coefficient: ClassVar[float | None] = None
    standardised: ClassVar[bool] = False
    apart: ClassVar[int] = 0

    def value(self, rows: RowStatistics) -> Float[Array, " R"]:
        """The loss of each row, without the factor temperature²."""
        raise NotImplementedError

    def slope(self, tile: Tile, rows: RowStatistics) -> Float[Array, "R C"]:
        """The derivative of ``value`` in the student's logits divided by the temperature."""
        raise NotImplementedError

    def named_slope(self, rows: RowStatistics) -> Float[Array, "R M"]:
        """The derivative of ``value`` in ``rows.student_named``."""
        named = rows.student_named
        assert named is not None
        found = jax.grad(lambda x: jnp.sum(self.value(rows._replace(student_named=x))))(named)
        return jnp.where(named > NEGATIVE / 2, found, 0.0)


class Candidates(NamedTuple):
    """The scores of each row's candidates: the teacher's best items, the student's, drawn ones.

    The items of highest score come first in their columns, best first.

    student, teacher: f32 [R, K] scores. valid: bool [R, K], False for padding, for an item that is
    already in an earlier column, and for a cold item where the term reads warm items only. num_top:
    how many columns hold the teacher's items. own: bool [R, K], whether an item is among the
    student's, in whichever column. num_items: of the catalogue.
    """

    student: Float[Array, "R K"]
    teacher: Float[Array, "R K"]
    valid: Array
    num_top: int
    own: Array | None = None
    num_items: Array | int = 0


@dataclasses.dataclass(frozen=True)
class CandidateLoss:
    """A loss of a few candidates per row; its gradient is found by automatic differentiation.

    top: the teacher's items of highest score that each row has as candidates. drawn: items drawn
    uniformly at every step, shared by its rows.
    """

    top: int = 0
    drawn: int = 0

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        """The loss of each row; key: for losses that sample among the candidates."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class OnPolicyLoss(CandidateLoss):
    """A loss of candidates that has the student's own best items among them.

    own: the items of the whole catalogue to which the student gives the highest scores at this
    step. They are found at the cost of one more product with all item vectors, and no gradient
    flows through the choice.
    """

    own: int = 0


@dataclasses.dataclass(frozen=True)
class VectorLoss:
    """A loss between vectors of the student and the teacher.

    Its gradient is computed by automatic differentiation. of_items: whether it compares item
    vectors; else context vectors. drawn: number of items drawn uniformly at every step and
    compared; 0 for all of them.
    """

    drawn: int = 0
    of_items: ClassVar[bool] = True

    def auxiliary(self, student_dim: int, teacher_dim: int, key: PRNGKeyArray) -> Params:
        """The initial parameters of the loss itself, such as a projection.

        They are trained and checkpointed, but are never part of the student that is evaluated and
        exported. Raises InputError for widths that the loss cannot compare.
        """
        return {}

    def value(
        self,
        student: Float[Array, "N Ds"],
        teacher: Float[Array, "N Dt"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        """The loss of each vector; share: its weight in the mean, which losses of pairs read.

        The shares sum to 1, or are all 0 where no vector takes part. key: for losses that draw at
        every step.
        """
        raise NotImplementedError


Loss = SoftmaxLoss | CandidateLoss | VectorLoss
