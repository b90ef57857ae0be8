"""A term of the objective: which loss, its weight and temperature, and the teacher it reads."""

from __future__ import annotations

import dataclasses
import math
from numbers import Real
from typing import ClassVar

import jax.numpy as jnp

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.types import Array, Batch
from kd_jax.losses import softmax

SCHEDULES = ("constant", "linear", "cosine")
TERMS = ("ce", "soft_ce", "kl")
ITEMS = ("all", "warm", "sampled", "sampled_warm")
OWN = "teacher"  # the name, among a student's teachers, of the run's own


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight · schedule(progress) · loss``.

    name: 'ce' (clicks), 'soft_ce' or 'kl' (teacher). temperature: of the two soft losses. schedule:
    of the weight over training, 'constant', or falling to zero by 'linear' or 'cosine'. items:
    softmax over 'all' items of the catalogue or over the 'warm' ones, those with at least one
    training interaction; 'sampled' and 'sampled_warm' estimate the two from ``negatives`` drawn
    items, the targets and the teacher's ``top`` items. teacher: the name of the one it reads; '' is
    the run's own.
    """

    name: str
    weight: float = 1.0
    temperature: float = 1.0
    schedule: str = "constant"
    items: str = "all"
    negatives: int = 0  # of these two the rest of the terms have no use and keep 0
    top: int = 0
    teacher: str = OWN
    NAMES: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        for value, known, field in (
            (self.name, self.NAMES, "name"),
            (self.schedule, SCHEDULES, "schedule"),
            (self.items, ITEMS, "items"),
        ):
            if value not in known:
                raise InputError(
                    f"distill.terms: {field} {value!r} is unknown{nearest(value, known)}"
                )
        if not isinstance(self.weight, Real) or not 0 <= self.weight < math.inf:
            raise InputError(
                f"distill.terms: weight of {self.name!r} is {self.weight!r}; it must be a number"
                " from 0 up"
            )
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise InputError(
                f"distill.terms: temperature of {self.name!r} is {self.temperature!r}; it must be"
                " positive"
            )
        if self.sampled and (self.negatives < 1 or self.top < 0):
            raise InputError(
                f"distill.negatives={self.negatives}, distill.top={self.top}: for"
                f" items={self.items!r} draw at least 1 negative, and take 0 or more of the"
                " teacher's top items"
            )
        if not self.needs_teacher and self.teacher not in ("", OWN):
            raise InputError(
                f"distill.terms: {self.name!r} learns from clicks and reads no teacher; leave"
                f" {self.teacher!r} out"
            )
        object.__setattr__(self, "teacher", self.teacher or OWN)
        if not self.sampled:
            object.__setattr__(self, "negatives", 0)
        if not self.sampled or not self.needs_teacher:
            object.__setattr__(self, "top", 0)

    @property
    def sampled(self) -> bool:
        return self.items.startswith("sampled")

    @property
    def warm(self) -> bool:
        return self.items.endswith("warm")

    @property
    def needs_teacher(self) -> bool:
        return self.name != "ce"

    @property
    def label(self) -> str:
        """What it is called in the log: 'kl', or 'kl:big' where the teacher 'big' is not the run's
        own.
        """
        return self.name if self.teacher == OWN else f"{self.name}:{self.teacher}"

    def weight_at(self, progress: Array) -> Array:
        """The weight at ``progress`` in [0, 1] of training."""
        if self.schedule == "linear":
            return self.weight * (1.0 - progress)
        if self.schedule == "cosine":
            return self.weight * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return self.weight * jnp.ones_like(progress)

    def per_position(
        self, logits: Array, batch: Batch, soft: TeacherScores | None, warm: Array | None
    ) -> Array:
        """Unweighted loss of each predicted position, f32 [B, P]."""
        where = warm if self.warm else None
        if self.name == "ce":
            return softmax.cross_entropy(logits, batch["targets"], batch["target_weights"], where)
        assert soft is not None
        if isinstance(soft.scores, Listed):
            p, entropy = softmax.listed(*soft.scores, self.temperature, where)
            found = softmax.cross_entropy(logits / self.temperature, soft.scores.items, p, where)
            return self.temperature**2 * (found - entropy if self.name == "kl" else found)
        loss = {"kl": softmax.kl, "soft_ce": softmax.soft_cross_entropy}[self.name]
        # Where tables are split, a teacher's may have rows at their end that are no items.
        teacher = (
            soft.scores.dense()[..., : logits.shape[-1]]
            if isinstance(soft.scores, Factors)
            else soft.scores
        )
        return loss(teacher, logits, self.temperature, where)


Objective = tuple[Term, ...]
