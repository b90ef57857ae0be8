"""Packages that an export format needs and kd_jax does not install."""

from __future__ import annotations

import importlib.util

from kd_jax.core.errors import InputError


def needed(form: str, module: str, package: str) -> None:
    """Raises InputError without ``module`` of a ``package``; the extra has the format's name."""
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"export.formats: {form!r} needs the package {package}; pip install 'kd_jax[{form}]',"
            " or leave the format out"
        )
