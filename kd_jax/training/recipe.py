"""How a model is optimised: optimiser, learning-rate schedule, early stopping."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import optax

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import Params, PyTree
from kd_jax.training import lazy_adam
from kd_jax.training.sphere import on_sphere

SECTIONS = "(sections teacher.optimizer and student.optimizer)"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The optimisation of a model: Adam(W), a learning-rate schedule and early stopping.

    After the warm-up, the learning rate is constant or follows a cosine. Early stopping is by the
    validation score. patience: evaluations without a new best after which training stops.
    """

    steps: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    lm_learning_rate: float | None = (
        None  # of a language model inside the teacher; None: learning_rate
    )
    clip_norm: float = 0.0
    accumulate: int = 1  # batches per update, which uses their mean gradient
    eval_every: int = 50
    patience: int = 5
    log_every: int = 10
    # a step reads and writes only the rows of the tables that it touches (lazy_adam.py)
    sparse: bool = False
    moments: str = "float32"  # of Adam: 'float32' or 'bfloat16'
    vector_norm: float = 0.0  # length at which user and item vectors are kept; 0 = free (sphere.py)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "patience", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} {SECTIONS} must be at least 1")
        if self.moments not in lazy_adam.MOMENTS:
            raise InputError(
                f"student.optimizer.moments={self.moments!r} is"
                f" unknown{nearest(self.moments, lazy_adam.MOMENTS)}"
            )
        if not 0 <= self.vector_norm < math.inf:
            raise InputError(
                f"student.optimizer.vector_norm={self.vector_norm} must be at least 0; 0 leaves the"
                " lengths of user and item vectors free"
            )
        if self.vector_norm and self.weight_decay:
            raise InputError(
                f"student.optimizer.weight_decay={self.weight_decay} shortens the vectors that"
                f" student.optimizer.vector_norm={self.vector_norm} keeps at a length; set one of"
                " the two to 0, and where tuned.<role> has it, which comes first, there"
            )
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.clip_norm >= 0):
            raise InputError(
                f"learning_rate={self.learning_rate} must be more than 0,"
                f" weight_decay={self.weight_decay} and clip_norm={self.clip_norm} at least 0"
                f" {SECTIONS}"
            )
        if self.accumulate > 1 and self.sparse:
            raise InputError(
                "student.optimizer.sparse=True updates the rows of one batch at a time; use"
                " student.optimizer.accumulate=1"
            )
        if self.schedule not in ("constant", "cosine"):
            raise InputError(
                f"learning-rate schedule {self.schedule!r} is unknown; known: constant, cosine"
            )
        if self.schedule == "cosine" and self.warmup_steps >= self.steps:
            raise InputError(
                f"warmup_steps={self.warmup_steps} {SECTIONS} must be less than steps={self.steps}"
                " with schedule='cosine'"
            )

    def shortened(self, share: float, rate: float = 1.0) -> Recipe:
        """The recipe with this share of its steps, rounded up to whole evaluations.

        The warm-up is shortened as much. Fewer steps than one evaluation has are one evaluation.
        rate: factor of the learning rates.
        """
        wanted = max(1, math.ceil(self.steps * share))
        every = min(self.eval_every, wanted)
        return dataclasses.replace(
            self,
            steps=min(self.steps, math.ceil(wanted / every) * every),
            warmup_steps=math.floor(self.warmup_steps * share),
            eval_every=every,
            learning_rate=self.learning_rate * rate,
            lm_learning_rate=self.lm_learning_rate and self.lm_learning_rate * rate,
        )

    @property
    def chunk(self) -> int:
        """The number of steps that run as one program.

        It is at most ``log_every``, and evaluations fall between two programs.
        """
        whole = math.gcd(self.steps, self.eval_every)
        return max(n for n in range(1, self.log_every + 1) if whole % n == 0)

    @functools.lru_cache  # noqa: B019  equal recipes share one optimiser, and so one program
    def tx(self) -> optax.GradientTransformation:
        """The optimiser, the same object for equal recipes.

        Its schedule counts updates, whereas ``steps`` and ``warmup_steps`` count batches.
        """
        updates, warmup = (
            max(1, self.steps // self.accumulate),
            self.warmup_steps // self.accumulate,
        )
        if self.schedule == "cosine":
            rate = optax.warmup_cosine_decay_schedule(
                0.0 if warmup else self.learning_rate, self.learning_rate, warmup, updates
            )
        else:
            rate = optax.join_schedules(
                [
                    optax.linear_schedule(0.0, self.learning_rate, max(1, warmup)),
                    optax.constant_schedule(self.learning_rate),
                ],
                [warmup],
            )
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        slower = []
        if self.lm_learning_rate is not None:
            slower = [
                optax.masked(
                    optax.scale(self.lm_learning_rate / self.learning_rate), _of_language_model
                )
            ]
        adamw = optax.adamw(rate, weight_decay=self.weight_decay)
        if self.sparse or self.moments != "float32":
            decay = optax.add_decayed_weights(self.weight_decay)
            adamw = optax.chain(
                lazy_adam.scale_by_adam(self.moments), decay, optax.scale_by_learning_rate(rate)
            )
        tx: optax.GradientTransformation = optax.chain(*clip, adamw, *slower)
        if self.vector_norm:
            tx = on_sphere(tx, self.vector_norm)
        return (
            optax.MultiSteps(tx, self.accumulate).gradient_transformation()
            if self.accumulate > 1
            else tx
        )


def _of_language_model(params: Params) -> PyTree:
    """True for every parameter of a teacher's language model."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(part, "key", None) == "encoder" for part in path), params
    )
