"""The head of a teacher, all that it computes above its language model, as files for others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from kd_jax.core.files import write_json, write_tensors
from kd_jax.models.language.encoder import TextEncoder
from kd_jax.models.scorer import Scorer

HEAD, DESCRIPTION = "head.safetensors", "head.json"
# Texts and their vectors, which the language model computes again, and what training alone reads.
LEFT_OUT = ("vectors", "ids", "mask", "states", "starts", "own", "share", "warm")
_LINEAR = "A linear map is x · kernel + bias; gelu is its tanh approximation."
_TOWER = (
    "x = the language model's vector of the text; where there is a whitening, x = (x -"
    " whitening.mean) · whitening.map; linear(x) + down(gelu(up(x)))"
)
# What is computed with the tensors whose names start so, in order.
HOW = {
    "text.": f"item vector, with text.*, of the item's text: {_TOWER}",
    "id": "item vector: plus id[item] (alone, where there is no text.*)",
    "written.": f"context vector, with written.*, of the history as text: {_TOWER}",
    "transformer.": (
        "context vector: a causal Transformer over x = 3 · the item vectors of the newest"
        " model.history items, oldest first. x + the last rows of transformer.position; per block x"
        " + out(attention(qkv(norm1(x)))), then x + down(gelu(up(norm2(x)))), where qkv holds q, k"
        " and v, each of model.heads heads, and logits are divided by the square root of the width"
        " of a head; at the last position transformer.norm. Layer norms have epsilon 1e-6"
    ),
    "rating.": "class of a history item: its row of rating.embedding is added to its x",
    "trend": (
        "popularity: f = trends[item], at the end of training, v = item vector, c = context vector;"
        " bias + f · trend + f · (v · trend_of_item); item vector = [v, f]; context vector ="
        " [gain · c, c · trend_of_context]"
    ),
    "bias": "score = context vector · item vector + bias[item]",
    "item_class": "class logits = head([c, v, c * v]) + item_class[item]",
    "smoothing": (
        "class logits of a pair = linear(x) + down(gelu(up(x))) of head.*, x = head.norm(the"
        " language model's vector of the pair's text), plus log(n + w · a) - log(sum(n) + w): n ="
        " counts[item], a = the sum of counts over items, divided by its sum, w = exp(smoothing)"
    ),
}


def write(folder: Path, model: Scorer, settings: Mapping[str, Any]) -> None:
    """Writes ``head.safetensors`` and ``head.json`` to the folder of the language model.

    Tensors have the names of their paths in the model. Those of the language model and of its texts
    are left out, as are those that training alone reads; of the popularity features, the newest are
    written. The description has the shapes, how scores are computed, and ``settings``.
    """
    tensors = tensors_of(model)
    write_tensors(folder / HEAD, tensors)
    how = [line for name, line in HOW.items() if any(x.startswith(name) for x in tensors)]
    description = {
        "how": [_LINEAR, *how],
        "settings": dict(settings),
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
    }
    write_json(folder / DESCRIPTION, description)


def tensors_of(model: Scorer) -> dict[str, np.ndarray]:
    """The arrays of the head by the names of their paths, such as 'text.linear.kernel'."""
    encoders = [path for path, part in nnx.iter_modules(model) if isinstance(part, TextEncoder)]
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        inside = any(path[: len(encoder)] == encoder for encoder in encoders)
        if inside or path[-1] in LEFT_OUT:
            continue
        value = leaf[...]
        newest = path == ("trends",)
        found[".".join(map(str, path))] = np.asarray(jax.device_get(value[-1] if newest else value))
    return found
