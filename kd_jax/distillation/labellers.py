"""Labels of a trained model, and labels of the lists that another system wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD, Array, Batch, PyTree
from kd_jax.data.lists import Lists
from kd_jax.devices import sharding
from kd_jax.distillation.label_cache import Labeller
from kd_jax.distillation.sources import TARGET
from kd_jax.distillation.teachers import last_context
from kd_jax.losses.dense import listed
from kd_jax.models.scorer import catalogue


def of_model(
    graphdef: nnx.GraphDef,
    params: PyTree,
    constants: PyTree,
    *,
    example_kind: str,
    rates: bool = False,
    confidence: str = "",
) -> Labeller:
    """Labels by a trained model, whole on every device of this process, which share the examples.

    example_kind: those of the student. rates: whether it rates pairs, and has no item vectors.
    confidence: '', 'entropy', see ``certainty``, or 'target', see ``target_probability``.
    """

    def targets_of(batch: Batch) -> tuple[Array, ...]:
        return (batch["targets"], batch["target_weights"]) if confidence == TARGET else ()

    weight: Callable[..., Array] = target_probability if confidence == TARGET else certainty

    @jax.jit
    def label(params: PyTree, constants: PyTree, items: Any, batch: Batch) -> dict[str, Array]:
        model: Any = nnx.merge(graphdef, params, constants)
        if "item" in batch:
            found = {"logits": model.logits(batch)}
            if confidence:
                found["weights"] = weight(found["logits"], *targets_of(batch))
            return found
        found = {"contexts": last_context(model.contexts(batch, items[0]), example_kind)}
        if confidence:
            flat = [x.reshape(-1, x.shape[-1]) for x in (found["contexts"], *targets_of(batch))]
            one = jax.lax.map(
                lambda row: weight(Factors(row[0], *items).dense(), *row[1:]), flat, batch_size=64
            )
            found["weights"] = one.reshape(found["contexts"].shape[:2])
        return found

    mesh = sharding.local_mesh()
    params, constants = sharding.put_whole((params, constants), mesh)
    items = None if rates else catalogue(graphdef, params, constants)
    shared = {}
    if items is not None:
        shared = {"items": np.asarray(items[0]), "bias": np.asarray(items[1], np.float32)}
    return Labeller(
        shared, lambda batch: label(params, constants, items, sharding.put_rows(batch, mesh))
    )


def of_lists(lists: Lists, num_items: int, *, example_kind: str, confidence: str = "") -> Labeller:
    """Labels by lists; list 0 has weight 0 and is that of positions without a list."""
    weights = lists.weights
    if confidence:
        _, entropy = listed(jnp.asarray(lists.items), jnp.asarray(lists.logits))
        weights = (weights * (1 - np.asarray(entropy) / np.log(num_items))).astype(np.float32)
    shared = {"list_items": lists.items, "list_logits": lists.logits, "list_weights": weights}
    return Labeller(
        shared, lambda batch: {"list": lists.place(batch["user"], batch["history"], example_kind)}
    )


def target_probability(
    logits: Float[Array, "*B C"], targets: Int[Array, "*B T"], weights: Float[Array, "*B T"]
) -> Float[Array, "*B"]:
    """The probability that softmax(logits) gives the targets; of several, the geometric mean.

    weights: of the targets, whose logarithms are averaged with them. Targets are padded with
    ``PAD``. At least 1e-30, so that a share of it is a number.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    found = jnp.take_along_axis(log_p, jnp.maximum(targets, 0), axis=-1)
    weights = jnp.where(targets == PAD, 0.0, weights)
    mean = jnp.sum(found * weights, -1) / jnp.maximum(jnp.sum(weights, -1), 1e-9)
    return jnp.maximum(jnp.exp(mean), 1e-30)


def certainty(logits: Array) -> Array:
    """The certainty of a distribution over C classes, 1 - H(softmax(logits)) / log C.

    It is 1 if one class has all the probability, and 0 if all classes are equally probable.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return 1 + jnp.sum(jnp.exp(log_p) * log_p, axis=-1) / np.log(logits.shape[-1])
