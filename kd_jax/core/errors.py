"""The exception for faults that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad data, configuration, weights or workdir.

    The message is one line: what is wrong, where, and the fix. Commands print it and exit with
    status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def nearest(value: object, options: Iterable[str]) -> str:
    """The tail of an error about an unknown name: '; did you mean X? known: …'."""
    names = sorted(str(option) for option in options)
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"; {hint}known: {', '.join(names)}"
