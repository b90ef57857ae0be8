"""Sections of a configuration, checked and completed with their defaults.

The fields of a section are declared by the function or dataclass that takes them as arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.core.errors import InputError, nearest


def defaults(reads: Callable[..., Any]) -> dict[str, Any]:
    """The fields of the section that ``reads`` takes: its parameters that have a default."""
    parameters = inspect.signature(reads).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {name: dict(x) if isinstance(x, Mapping) else x for name, x in found.items()}


def complete(section: Mapping[str, Any], reads: Callable[..., Any], where: str) -> dict[str, Any]:
    """``section`` with the defaults of what it lacks: keyword arguments for ``reads``.

    A field that is a mapping is merged with its default; ``reads`` checks its keys. where: the
    section's place in the configuration, for errors. Raises InputError for a field that ``reads``
    does not have, or a value of another type than the default's.
    """
    known = defaults(reads)
    found = dict(known)
    for name, value in section.items():
        if name not in known:
            raise InputError(f"{where}: there is no field {name!r}{nearest(name, known)}")
        found[name] = _like(known[name], value, f"{where}.{name}")
    return found


def _like(default: Any, value: Any, where: str) -> Any:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        return {**default, **value}
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(
            f"{where}={value!r} must be of type {type(default).__name__}, like its default"
            f" {default!r}"
        )
    return value
