"""What the exported programs (``jax_export`` and ``onnx``) share: their files and description.

A program maps users of the data set, or histories, to the scores of all items. It holds the vectors
as constants, so that one file is the whole model: a student has a few MB, and a program without its
vectors could be called with those of another run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, write_json
from kd_jax.runtime.contexts import PAD
from kd_jax.runtime.store import Export

USER, HISTORY, SCORES = "user", "history", "scores"
BATCH = "batch"  # the name of the symbolic size
MAX_BYTES = 2**31 - 2**24  # of a flatbuffer or protocol buffer, with room for the operators


def check_size(export: Export, form: str) -> None:
    """Raises InputError for vectors that do not fit into one program."""
    vectors = (export.user_vectors, export.item_vectors)
    size = sum(array.nbytes for array in vectors)
    if size > MAX_BYTES:
        raise InputError(
            f"export.formats: {form!r} holds at most 2 GB in a file, and the vectors have"
            f" {size / 1e9:.1f} GB; leave it out, or use 'vectors' or 'numpy'"
        )


def write(
    folder: Path, form: str, export: Export, programs: dict[str, bytes], about: dict[str, Any]
) -> tuple[Path, ...]:
    """Writes ``programs`` (name of the input to content) and ``<form>.json``; returns the files.

    about: further entries of the description, beside ids and shapes.
    """
    size = {USER: [BATCH], HISTORY: [BATCH, export.context.length]}
    files = {name: folder / f"{name}_scores.{form}" for name in programs}
    for name, path in files.items():
        with atomic(path) as temporary:
            temporary.write_bytes(programs[name])
    scores = {SCORES: {"dtype": "float32", "shape": [BATCH, len(export.item_ids)]}}
    description = {
        "programs": {
            path.name: {
                "inputs": {name: {"dtype": "int32", "shape": size[name]}},
                "outputs": scores,
            }
            for name, path in files.items()
        },
        USER: "places in 'users'",
        HISTORY: f"places in 'items', oldest first, padded on the left with {PAD}",
        SCORES: "of 'items', in their order; items that the user has chosen are not left out",
        **about,
        "model": export.description,
        "users": list(export.user_ids),
        "items": list(export.item_ids),
    }
    path = folder / f"{form}.json"
    write_json(path, description)
    return (*files.values(), path)
