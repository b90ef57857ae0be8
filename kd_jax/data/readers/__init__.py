"""Readers: one file a format and one line in ``READERS``.

A reader is a function of its section of the configuration, ``config.data.<name>``: its parameters,
all with a default, are the section's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.data.prepared.folder import PreparedDataset
from kd_jax.data.raw import RawData
from kd_jax.data.readers import amazon, embedded, files, mind, movielens, prepared, tfds

READERS: dict[str, Callable[..., RawData | PreparedDataset]] = {
    "movietweetings": embedded.movietweetings,
    "online_retail": embedded.online_retail,
    "movielens": movielens.read,
    "tfds": tfds.read,
    "files": files.read,
    "mind": mind.read,
    "amazon": amazon.read,
    "prepared": prepared.read,
}
# Of a reader that reads more than its section names: the section to all paths.
PATHS: dict[str, Callable[..., tuple[str, ...]]] = {"amazon": amazon.paths}


def reader_section(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The ``section`` of a reader, completed with the reader's defaults.

    Raises InputError for an unknown reader or field.
    """
    if name not in READERS:
        raise InputError(f"data.reader={name!r} is unknown{nearest(name, READERS)}")
    return fields.complete(section, READERS[name], f"data.{name}")


def read(name: str, section: Mapping[str, Any] | None = None) -> RawData | PreparedDataset:
    """The data that the reader ``name`` reads; prepared data are filtered and split already.

    Raises InputError with what is wrong, where, and how to fix it.
    """
    values = reader_section(name, section or {})
    return READERS[name](**values)
