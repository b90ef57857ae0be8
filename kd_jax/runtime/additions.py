"""New items in an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.lookup import Lookup
from kd_jax.runtime.store import Export, Ids


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
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(text)) == text):
        raise InputError(
            f"add_items: item id {text[:100]!r} must be a whole number, as in the data set"
        )
    return int(text)
