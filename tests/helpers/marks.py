"""Marks of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def first_fast(cases: Sequence[Any]) -> list[Any]:
    """The cases of a parametrised test, all but the first marked slow.

    A case is a tuple of all arguments, or the only argument if that is no tuple.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=(pytest.mark.slow,) if place else (),
        )
        for place, case in enumerate(cases)
    ]
