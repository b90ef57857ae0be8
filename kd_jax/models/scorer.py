"""The interface of all models: a scorer of items for a context."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.scores import Factors
from kd_jax.core.types import Batch, Params, PyTree
from kd_jax.runtime.contexts import Context


class Frozen(nnx.Variable):
    """An array of a model that training never changes, such as text vectors, masks or counts."""


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params, PyTree]:
    """Splits a module into (graphdef, params, constants), the last two as nested dicts.

    params are trained, constants are all other arrays; ``nnx.merge(graphdef, params, constants)``
    is the module again.
    """
    graphdef, params, *rest = nnx.split(module, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest[0])


@functools.partial(jax.jit, static_argnums=0)
def catalogue(graphdef: nnx.GraphDef, params: Params, constants: PyTree) -> PyTree:
    """``Scorer.catalogue`` of a split module, compiled once per architecture."""
    model: Any = nnx.merge(graphdef, params, constants)
    return model.catalogue()


def table_rows(graphdef: nnx.GraphDef, params: Params, kind: str | None = None) -> dict[str, int]:
    """Rows of each of the module's ``Scorer.tables``, those of one ``kind`` or all."""
    root: Any = graphdef.nodes[0]
    tables = root.metadata.tables
    return {
        name: params[name].shape[0]
        for name, of in tables.items()
        if name in params and kind in (None, of)
    }


def rows_by_id(graphdef: nnx.GraphDef) -> dict[str, str]:
    """The module's parameters with a row per user or item, name -> 'user' or 'item'."""
    root: Any = graphdef.nodes[0]
    return root.type.tables | root.type.rows


def factorises(graphdef: nnx.GraphDef) -> bool:
    """``Scorer.factorised`` of the module."""
    root: Any = graphdef.nodes[0]
    return root.type.factorised


class Scorer(nnx.Module):
    """A model that scores items for a context.

    The score is the dot product of a context vector and an item vector, plus an item bias.
    Subclasses define the vectors. Such scores, as factors, are passed through the whole library:
    soft labels are cached as vectors, losses run over any catalogue a tile at a time
    (``kd_jax/losses/streamed.py``), catalogues are ranked by one matrix product, and exported
    vectors give the trained scores. A model with scores that do not factorise sets ``factorised =
    False`` and overrides ``logits`` and ``scores``.

    Class attributes:

    - example_kind: of its training examples. 'user': one context per user, all its items are
      targets; such a model keeps its user table in ``self.user``, to which
      ``kd_jax/serving/history_map.py`` fits a model of new users. 'all': a context after every
      history item, the next one is the target. 'last': one context, the last item is the target.
    - reads_packed: whether ``contexts`` keeps the windows of a row apart where a batch of the kind
      'all' holds several (``data/examples/packed.py``). Only then is it trained without padding.
    - factorised: whether its scores are factors.
    - reads_history: whether it looks items up by the batch's ``history``.
    - tables: the parameters with a row per user or item, name -> 'user' or 'item'; all of a kind or
      none. A train step may replace them by the rows that its batch needs, and the batch's indices
      by indices into those rows (``gathered`` in ``kd_jax/training/step.py``): a model that looks
      its tables up by the batch alone is not affected. A mesh that does not divide a table adds
      rows at its end (``sharding.even_rows``): ``catalogue`` and ``scores`` then have as
      many items.
    - rows: further parameters with a row per user or item, which are always read whole. A run that
      starts from an older one finds the rows of these and of ``tables`` by id.
    - owns_item_table: whether ``tables`` has item tables, set from it. Only such a model can learn
      from a sample of the catalogue (``items='sampled'``): the others compute all item vectors.

    proposal: the distribution of negatives where the catalogue is sampled
    (``kd_jax/losses/sampled.py``).
    """

    example_kind = "user"
    reads_packed = False
    factorised = True
    reads_history = True
    tables: ClassVar[dict[str, str]] = {}
    rows: ClassVar[dict[str, str]] = {}
    owns_item_table: ClassVar[bool] = False
    proposal: Frozen | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.owns_item_table = "item" in cls.tables.values()

    def __init__(self, warm: Array | np.ndarray | None):
        self.warm = Frozen(jnp.asarray(warm)) if warm is not None else None

    def items(
        self, *, rngs: nnx.Rngs | None = None, batch: Batch | None = None
    ) -> tuple[Array, Array]:
        """The item vectors [I, D] and item biases [I].

        batch: in training, the batch with the items that a tower may encode in the step.
        """
        raise NotImplementedError

    def contexts(
        self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B P D"]:
        """Context vectors; ``vectors`` are the item vectors that a history is read through."""
        raise NotImplementedError

    def factors(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Factors:
        """Training scores of the catalogue at every position [B, P], as their factors."""
        vectors, bias = self.items(rngs=rngs, batch=batch)
        return Factors(self.contexts(batch, vectors, rngs=rngs), vectors, bias)

    def context(self, batch: Batch, vectors: Array) -> Float[Array, "B D"]:
        """The context after the last history item.

        Models override this where it is cheaper than computing all contexts.
        """
        return self.contexts(batch, vectors)[:, -1]

    def logits(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B P C"]:
        """Training logits, of the catalogue at every position or of a pair's classes.

        The first is for the task 'rank', the second for 'rate'.
        """
        return self.factors(batch, rngs=rngs).dense()

    def training_scores(
        self, batch: Batch, *, rngs: nnx.Rngs | None = None
    ) -> Factors | Float[Array, "B P C"]:
        """``factors`` where there are such, else ``logits``."""
        return (
            self.factors(batch, rngs=rngs)
            if self.factorised and "item" not in batch
            else self.logits(batch, rngs=rngs)
        )

    def catalogue(self) -> PyTree:
        """The part of the scoring that depends on the items alone, shared by all users."""
        return self.items()

    def runtime_context(self) -> Context | None:
        """Its model of histories for ``kd_jax.runtime``, in NumPy.

        None for a student with a table of users, which gets a ``HistoryMap``, for one that is
        exported as a program of JAX, and for a teacher that needs its language model.
        """
        return None

    def scores(self, batch: Batch, catalogue: PyTree) -> Factors | Float[Array, "B I"]:
        """Scores of the whole catalogue after the last history item; factors, if it has any."""
        vectors, bias = catalogue
        return Factors(self.context(batch, vectors), vectors, bias)
