"""A model split for the train step."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jax.sharding import Mesh

from kd_jax.core.types import Params, PyTree
from kd_jax.devices import sharding
from kd_jax.models.scorer import table_rows

Best = tuple[Params, PyTree]  # the parameters and constants of a trained model


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """A model as the train step takes it: ``nnx.merge(graphdef, params, constants)``.

    example_kind: the examples it learns from ('user', 'last', 'all'). history: newest interactions
    that those hold. frozen_params: of a language model that is read through its cached vectors.
    start: makes the first parameters, in a program that splits them where a table may be larger
    than a device's memory; ``params`` are then their shapes alone. None: they are ``params``.
    """

    graphdef: nnx.GraphDef
    params: Params
    constants: PyTree
    example_kind: str
    history: int
    frozen_params: int = 0
    start: jax.tree_util.Partial | None = None

    @property
    def num_params(self) -> int:
        return self.frozen_params + sum(leaf.size for leaf in jax.tree.leaves(self.params))


def placed(graphdef: nnx.GraphDef, best: Best, mesh: Mesh) -> Best:
    """The model on the devices of ``mesh``; tables may have added rows (``even_rows``)."""
    params, constants = best
    rows = table_rows(graphdef, params)
    return sharding.put_params(params, rows, mesh), sharding.put(constants, mesh)
