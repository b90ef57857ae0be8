"""New items in an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.lookup import Lookup
from kd_jax.runtime.store import Export, Ids


def factors(
    export: Export,
    vectors: np.ndarray | None,
    biases: np.ndarray | None,
    texts: Sequence[str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors and biases of new items: those given, or those of their texts.

    Raises InputError unless there are either both or texts that the export can read.
    """
    if texts is None:
        if vectors is None or biases is None:
            raise InputError("add_items: give texts, or both vectors and biases")
        return vectors, biases
    if vectors is not None or biases is not None:
        raise InputError("add_items: give texts, or vectors and biases, not both")
    if export.text_map is None:
        raise InputError(
            "add_items: this export has no text map; run the stage 'export' again, or give vectors"
            " and biases"
        )
    if isinstance(texts, str):
        raise InputError(f"add_items: texts must be a list; use [{texts[:100]!r}]")
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"add_items: text {place} is {str(text)[:100]!r}; give the item's columns as one"
                " text, like the texts of the data set"
            )
    return export.text_map(texts)


def extended(
    export: Export,
    lookup: Lookup,
    ids: Ids,
    titles: Sequence[str],
    factors: tuple[np.ndarray, np.ndarray],
) -> Export:
    """An export with more items. factors: their vectors f32 [N, D] and biases f32 [N].

    Raises InputError for an id that exists or is of another type, and for factors that do not fit.
    """
    with np.errstate(over="ignore"):
        vectors, biases = (np.asarray(values, np.float32) for values in factors)
    dim = export.item_vectors.shape[1]
    if vectors.shape != (len(ids), dim) or biases.shape != (len(ids),) or len(titles) != len(ids):
        raise InputError(
            f"add_items: {len(ids)} items need as many titles and biases, and vectors of {dim}"
            f" numbers; got vectors {list(vectors.shape)}"
        )
    if not (np.isfinite(vectors).all() and np.isfinite(biases).all()):
        raise InputError("add_items: the vectors and biases must be finite")
    whole = isinstance(next(iter(export.item_ids), ""), int)
    new = [item_id(value, whole) for value in ids]
    taken = [value for value in new if lookup.item(value) is not None]
    if taken or len(set(new)) < len(new):
        raise InputError(f"add_items: item {str((taken or new)[0])!r} exists; give a new id")
    return dataclasses.replace(
        export,
        item_ids=[*export.item_ids, *new],
        titles=[*export.titles, *titles],
        item_vectors=np.concatenate([export.item_vectors, vectors]),
        item_bias=np.concatenate([export.item_bias, biases]),
    )


def item_id(value: object, whole: bool) -> int | str:
    """A new item's id in the type of the data set's ids. whole: whether those are integers."""
    text = str(value)
    if not whole:
        return text
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdigit() and len(digits) < 20 and str(int(text)) == text
    if not (plain and -(2**63) <= int(text) < 2**63):
        raise InputError(
            f"add_items: item id {text[:100]!r} must be a whole number, as in the data set"
        )
    return int(text)
