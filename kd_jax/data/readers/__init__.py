"""Readers: one file a format and one line in ``READERS``.

A reader is a function of its section of the configuration, ``config.data.<name>``: its parameters,
all with a default, are the section's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import embedded, files, mind, movielens, tfds

READERS: dict[str, Callable[..., RawData]] = {
    "movietweetings": embedded.movietweetings,
    "online_retail": embedded.online_retail,
    "movielens": movielens.read,
    "tfds": tfds.read,
    "files": files.read,
    "mind": mind.read,
}


def reader_section(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """``section`` with the defaults of what it lacks. Raises InputError for an unknown reader or
    field.
    """
    if name not in READERS:
        raise InputError(f"data.reader={name!r} is unknown{nearest(name, READERS)}")
    return fields.complete(section, READERS[name], f"data.{name}")


def read(name: str, section: Mapping[str, Any] | None = None) -> RawData:
    """What the reader ``name`` reads. Raises InputError: what is wrong, where, and its fix."""
    values = reader_section(name, section or {})
    return READERS[name](**values)
