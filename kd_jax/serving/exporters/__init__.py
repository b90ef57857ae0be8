"""Export formats: one file each and one line in ``EXPORTERS``.

An exporter is a function of a bundle and a folder; its further parameters, all with a default, are
the fields of its section of the configuration, ``config.export.<format>``. It returns the files it
wrote, each whole or not at all, and none for a model that its format cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.serving.exporters import (
    ann,
    compressed,
    jax_export,
    numpy,
    onnx,
    runtime,
    vectors,
    weights,
)
from kd_jax.serving.exporters.bundle import Bundle

__all__ = ["EXPORTERS", "Bundle", "Exporter", "exporter_section", "write"]

Exporter = Callable[..., tuple[Path, ...]]

EXPORTERS: dict[str, Exporter] = {
    "runtime": runtime.write,
    "weights": weights.write,
    "vectors": vectors.write,
    "numpy": numpy.write,
    "jax_export": jax_export.write,
    "onnx": onnx.write,
    "compressed": compressed.write,
    "ann": ann.write,
}
# Checks of values and of packages, made before a run trains anything; their arguments are fields of
# the same section.
CHECKS: dict[str, Callable[..., None]] = {
    "runtime": runtime.check,
    "compressed": compressed.check,
    "ann": ann.check,
    "onnx": onnx.check,
}


def exporter_section(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The ``section`` of a format, completed with the exporter's defaults.

    Raises InputError for an unknown format or field, and what the format's check raises.
    """
    if name not in EXPORTERS:
        raise InputError(f"export.formats: {name!r} is unknown{nearest(name, EXPORTERS)}")
    found = fields.complete(section, EXPORTERS[name], f"export.{name}")
    if name in CHECKS:
        CHECKS[name](**found)
    return found


def write(
    bundle: Bundle,
    folder: Path,
    formats: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Writes ``bundle`` in each of the ``formats``; returns the files by format.

    settings: ``config.export.<format>`` by format; defaults for what it lacks. Raises InputError
    as ``exporter_section``, before anything is written.
    """
    chosen = {name: exporter_section(name, (settings or {}).get(name, {})) for name in formats}
    folder.mkdir(parents=True, exist_ok=True)
    return {name: EXPORTERS[name](bundle, folder, **values) for name, values in chosen.items()}
