"""User and item vectors as Parquet tables, for other programs: score = user · item + bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from kd_jax.core.files import atomic
from kd_jax.serving.exporters.bundle import Bundle

USERS, ITEMS = "user_vectors.parquet", "item_vectors.parquet"


def write(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """Writes user and item vectors as Parquet tables; returns the files written.

    They are ``user_vectors.parquet`` (user, vector) and ``item_vectors.parquet`` (item, vector,
    bias, title); nothing is written for a model with scores that do not factorise.
    """
    found, dataset = bundle.vectors, bundle.dataset
    if found is None:
        return ()
    items = _table("item", dataset.item_ids, found.items).with_columns(
        pl.Series("bias", found.bias), pl.Series("title", dataset.titles)
    )
    users = _table("user", dataset.user_ids, found.contexts)
    files = {folder / ITEMS: items, folder / USERS: users}
    for path, table in files.items():
        with atomic(path) as temporary:
            table.write_parquet(temporary)
    return tuple(files)


def _table(name: str, ids: pl.Series, vectors: np.ndarray) -> pl.DataFrame:
    width = vectors.shape[1]
    return pl.DataFrame(
        {name: ids, "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, width))}
    )
