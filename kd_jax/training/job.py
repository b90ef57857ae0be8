"""A training job, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from kd_jax.core.logging import Log
from kd_jax.core.types import Params, PyTree
from kd_jax.data.examples.base import Examples
from kd_jax.distillation.teachers import Teacher
from kd_jax.distillation.term import Objective
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.recipe import Recipe

# The first parameters, or a function that makes them in a program that places them.
Start = Params | jax.tree_util.Partial
OnScore = Callable[[int, float], None]  # (step, validation score)


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The training of one model.

    name, seed: for the log; the seed also gives the order of the examples and the dropout masks.
    graphdef, start, constants: the model, ``nnx.merge(graphdef, start, constants)``. evaluate:
    (params, constants) -> validation score, higher is better. teachers: by the name that the terms
    of the objective give. refresh: (params, constants) -> constants, called at the start and before
    every evaluation, for constants that follow the parameters. traces: a folder for an XProf trace
    of the third program, when everything is warm; every program is then waited for. trained:
    whether ``start`` has been trained before: it is then evaluated and saved as step 0. steps: at
    most so many steps of the recipe; None: all. programs: compiled steps of earlier jobs, of which
    this one takes an equal one, or adds its own (``compiled_step``). on_score: called after every
    evaluation, when the parameters are being saved; what it raises ends the training.
    """

    name: str
    seed: int
    graphdef: nnx.GraphDef
    start: Start
    constants: PyTree
    examples: Examples
    objective: Objective
    recipe: Recipe
    evaluate: Callable[[Params, PyTree], float]
    checkpoints: Checkpoints
    mesh: Mesh
    log: Log
    teachers: Mapping[str, Teacher] = dataclasses.field(default_factory=dict)
    refresh: Callable[[Params, PyTree], PyTree] | None = None
    traces: Path | None = None
    trained: bool = False
    steps: int | None = None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    on_score: OnScore | None = None

    @property
    def title(self) -> str:
        return f"{self.name} (seed {self.seed})"


@dataclasses.dataclass(frozen=True)
class Trained:
    """The best parameters on validation, with the training record.

    seconds: wall time, validation included, over all processes that trained it one after another.
    """

    params: Params
    best_step: int
    best_score: float
    steps: int
    seconds: float
