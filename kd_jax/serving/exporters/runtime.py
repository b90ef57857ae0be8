"""What ``kd_jax.runtime`` reads: vectors, models of new users and items, histories and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.data.splits import TEST
from kd_jax.runtime import store
from kd_jax.runtime.contexts import Program
from kd_jax.runtime.runtime import Runtime
from kd_jax.serving.exporters.bundle import USERS_AT_ONCE, Bundle


def check(bits: int) -> None:
    """Raises InputError for an unknown number of bits."""
    store.check_bits(bits, "export.runtime.bits")


def write(bundle: Bundle, folder: Path, bits: int = 32) -> tuple[Path, ...]:
    """``runtime.safetensors``; nothing for a student that ``export_of`` has no arrays of.

    bits: see ``store.write``.
    """
    export = export_of(bundle)
    if export is None:
        return ()
    path = folder / store.FILE
    store.write(path, export, bits)
    return (path,)


def export_of(bundle: Bundle) -> store.Export | None:
    """What the runtime reads, as arrays; None for a student that NumPy cannot score.

    That is a student of task 'rate', one that neither factorises nor has a ``runtime_hidden``, and
    one without histories to which no map was fitted.
    """
    model: Any = bundle.model
    hidden = model.runtime_hidden()
    if bundle.description["task"] != "rank" or (hidden is None and not model.factorised):
        return None
    context = model.runtime_context() or bundle.history_map
    if context is None and model.example_kind == "user":
        return None
    if hidden is not None:
        users, items, bias = (np.asarray(v[...]) for v in (model.user, model.item, model.bias))
    else:
        assert bundle.vectors is not None
        users, items, bias = bundle.vectors.contexts, bundle.vectors.items, bundle.vectors.bias
    context = context or _program(bundle)
    dataset = bundle.dataset
    indptr, seen = dataset.history(TEST + 1)
    description = {key: value for key, value in bundle.description.items() if key != "spec"}
    description["dataset"] = {"name": dataset.name, "checksum": dataset.checksum}
    return store.Export(
        description,
        dataset.user_ids.to_list(),
        dataset.item_ids.to_list(),
        dataset.titles,
        items,
        bias,
        users,
        indptr,
        seen,
        context,
        hidden,
        bundle.text_map,
        None if dataset.disliked is None else store.Disliked(*dataset.disliked),
    )


def served_vectors(export: store.Export) -> np.ndarray:
    """The vectors with which the runtime serves the users of the data set, f32 [U, D]."""
    served = Runtime(export)
    starts = range(0, served.num_users, USERS_AT_ONCE)
    blocks = [range(at, min(served.num_users, at + USERS_AT_ONCE)) for at in starts]
    found = [served.vectors(list(block), [served.seen(user) for user in block]) for block in blocks]
    return np.concatenate(found)


def _program(bundle: Bundle) -> Program:
    """The context vectors as a program of JAX, for histories as long as those of training."""
    graphdef, state = nnx.split(bundle.model)
    length = bundle.description["history"]

    def contexts(history: jax.Array, vectors: jax.Array) -> jax.Array:
        model: Any = nnx.merge(graphdef, state)
        users = jnp.zeros(history.shape[0], jnp.int32)
        return model.context({"user": users, "history": history}, vectors)

    rows, count = jax.export.symbolic_shape("b, i")  # items may be added
    assert bundle.vectors is not None
    vectors = bundle.vectors.items
    given = (
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((count, vectors.shape[1]), vectors.dtype),
    )
    program = jax.export.export(jax.jit(contexts), platforms=("cpu", "cuda", "tpu"))(*given)
    return Program(np.frombuffer(bytes(program.serialize()), np.uint8), length)
