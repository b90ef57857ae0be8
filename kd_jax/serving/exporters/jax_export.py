"""Programs of ``jax.export``: scores of users and of histories, for JAX without kd_jax.

Vectors are constants inside the programs (``programs.py``). A program runs on cpu, cuda and tpu,
for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.runtime.contexts import PAD, HistoryMap
from kd_jax.runtime.store import Export
from kd_jax.serving.exporters import programs
from kd_jax.serving.exporters.bundle import Bundle
from kd_jax.serving.exporters.runtime import export_of, served_vectors

FORM = "jax_export"
PLATFORMS = ("cpu", "cuda", "tpu")
COMPATIBILITY = (
    "jax.export promises that a program can be read by the jax that wrote it, by later versions for"
    " 6 months, and by earlier ones of the last 3 weeks: a hand-over, not an archive"
)


def write(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """``user_scores.jax_export``, ``history_scores.jax_export`` and ``jax_export.json``.

    ``jax.export.deserialize(content).call`` is a function of users, int32 [B], or of histories,
    int32 [B, L], oldest first, padded on the left with -1, that returns scores f32 [B, I]. Users
    and histories get the scores of ``kd_jax.runtime``; a user that is out of range gets NaN.
    Nothing is written for a student without a runtime (``runtime.export_of``). Raises InputError
    for vectors of more than 2 GB.
    """
    export = export_of(bundle)
    if export is None:
        return ()
    programs.check_size(export, FORM)
    written = {
        programs.USER: _serialised(_of_users(export)),
        programs.HISTORY: _serialised(_of_histories(export, bundle), export.context.length),
    }
    about = {"platforms": PLATFORMS, "jax": jax.__version__, "compatibility": COMPATIBILITY}
    return programs.write(folder, FORM, export, written, about)


def _serialised(function: Callable[[Any], Array], *length: int) -> bytes:
    (rows,) = jax.export.symbolic_shape(programs.BATCH)
    given = jax.ShapeDtypeStruct((rows, *length), jnp.int32)
    # As on a CPU: by default, a TPU multiplies in bfloat16 and a GPU in TF32.
    with jax.default_matmul_precision("highest"):
        program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(given)
    return bytes(program.serialize())


def _of_users(export: Export) -> Callable[[Any], Array]:
    vectors = served_vectors(export)

    def scores(users: Int[Array, " B"]) -> Float[Array, "B I"]:
        known = (users >= 0) & (users < len(vectors))
        found = jnp.asarray(vectors)[jnp.where(known, users, 0)]
        return _scores(export, jnp.where(known[:, None], found, jnp.nan), export.item_vectors)

    return scores


def _of_histories(export: Export, bundle: Bundle) -> Callable[[Any], Array]:
    graphdef, state = nnx.split(bundle.model)
    context = export.context

    def scores(history: Int[Array, "B L"]) -> Float[Array, "B I"]:
        vectors = jnp.asarray(export.item_vectors)  # one constant, read twice
        if isinstance(context, HistoryMap):
            contexts = _mapped(context, history, vectors)
        else:
            model: Any = nnx.merge(graphdef, state)
            users = jnp.zeros(history.shape[0], jnp.int32)
            contexts = model.context({"user": users, "history": history}, vectors)
        return _scores(export, contexts, vectors)

    return scores


def _mapped(
    context: HistoryMap, history: Int[Array, "B L"], vectors: Float[Array, "I D"]
) -> Float[Array, "B D"]:
    """``HistoryMap.__call__`` in JAX."""
    age = np.arange(history.shape[1] - 1, -1, -1, dtype=np.float32)
    weights = jnp.where(history == PAD, 0, np.exp(-age / np.float32(context.decay))[None])
    shares = weights / jnp.maximum(weights.sum(1, keepdims=True) + context.shrink, 1e-30)
    mean = jnp.einsum("bl,bld->bd", shares, vectors[jnp.maximum(history, 0)])
    return mean @ context.weight + context.intercept[None]


def _scores(export: Export, contexts: Any, vectors: Any) -> Float[Array, "B I"]:
    """``Runtime.scores`` in JAX."""
    bias = export.item_bias[None]
    if export.hidden is None:
        return contexts @ jnp.asarray(vectors).T + bias
    hidden, of_items = export.hidden, export.hidden.of_items(export.item_vectors)
    users = contexts @ hidden.user + hidden.user_bias[None]
    rows = jax.lax.map(lambda user: jax.nn.relu(of_items + user[None]) @ hidden.out[:, 0], users)
    return rows + hidden.out_bias[None] + bias
