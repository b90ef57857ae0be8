"""Readers: one file a format, one line each in ``READERS``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import movielens, tables, tfds
from kd_jax.data.readers.embedded import EMBEDDED, embedded
from kd_jax.data.readers.files import files

SOURCES = (*EMBEDDED, "movielens", "tfds", "files")


def read(
    source: str,
    path: str | Path | None = None,
    *,
    items_path: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    tfds_name: str = "movielens/1m-ratings",
    tfds_fields: Mapping[str, str] | None = None,
) -> RawData:
    """Reads one of SOURCES. Raises InputError: what is wrong, where, and the cure.

    path: movielens: the folder; files: the interactions; tfds: its data_dir (default
    ~/tensorflow_datasets). items_path, columns: of 'files'; tfds_name, tfds_fields: of 'tfds'. They
    are ignored elsewhere.
    """
    if source not in SOURCES:
        raise InputError(f"data.reader={source!r} is unknown{nearest(source, SOURCES)}")
    if source in EMBEDDED:
        return embedded(source)
    if source == "tfds":
        return tfds.read(tfds_name, tfds_fields or tfds.FIELDS, path or None)
    if not path:
        raise InputError(
            f"data.reader={source!r} needs data.{source}.path; set it to what is to be read"
        )
    if source == "movielens":
        return movielens.read(tables.existing(path, "MovieLens folder"))
    return files(path, items_path or None, columns)
