"""The unit of timestamps: seconds, milliseconds, microseconds or nanoseconds since 1970."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

EXPONENTS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
UNITS = ("auto", *EXPONENTS)
DAY = 86_400  # seconds
# Numbers below are taken for counts (in seconds: before 1973), numbers up to each limit for times
# in its unit: up to the year 5138.
COUNTS = 10**8
LIMITS = {"s": 10**11, "ms": 10**14, "us": 10**17}


def per_day(unit: str) -> int:
    """How many units a day has."""
    return int(DAY * 10 ** EXPONENTS[unit])


def resolve(
    times: Int64[np.ndarray, " N"], unit: str, digits: int, option: str
) -> tuple[Int64[np.ndarray, " N"], str, tuple[str, ...]]:
    """The times in the coarsest unit that has them all exactly, that unit, and notes for people.

    times: written numbers times 10^digits. unit: their unit; '': it is recognised by their size, or
    is ``option`` (data.time_unit) where that is not 'auto'. Numbers below 10^8 are counts, which
    everything that needs days takes for seconds.
    """
    notes: tuple[str, ...] = ()
    if not unit:
        unit, notes = _recognised(times, digits) if option == "auto" else (option, ())
    exponent = EXPONENTS[unit] + digits
    if exponent > 9:  # nanoseconds with digits after the point
        times, exponent = times // 10 ** (exponent - 9), 9
    names = {value: name for name, value in EXPONENTS.items()}
    return *coarsest(times, names[exponent]), notes


def resolve_all(
    parts: list[Int64[np.ndarray, " N"]], unit: str, digits: int, option: str
) -> tuple[list[Int64[np.ndarray, " N"]], str, tuple[str, ...]]:
    """As ``resolve``, for several arrays together: they get the same unit."""
    whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    times, found, notes = resolve(whole, unit, digits, option)
    return np.split(times, np.cumsum([len(part) for part in parts])[:-1]), found, notes


def coarsest(times: Int64[np.ndarray, " N"], unit: str) -> tuple[Int64[np.ndarray, " N"], str]:
    """The times in the coarsest unit that has them all exactly, and that unit."""
    exponent = EXPONENTS[unit]
    while exponent and not (times % 1000).any():
        times, exponent = times // 1000, exponent - 3
    return times, next(name for name, value in EXPONENTS.items() if value == exponent)


def _recognised(times: Int64[np.ndarray, " N"], digits: int) -> tuple[str, tuple[str, ...]]:
    size = np.abs(times) // 10**digits
    bounds = [COUNTS, *LIMITS.values()]
    classes = np.searchsorted(bounds, size, side="right")
    names = ["counts", "seconds", "milliseconds", "microseconds", "nanoseconds"]
    kind = int(np.median(classes)) if len(times) else 0
    unit = ["s", "s", "ms", "us", "ns"][kind]
    notes = []
    if other := int((classes > kind).sum() + ((classes < kind) & (size > 0)).sum()):
        some = int(size[classes != kind][0])
        notes.append(
            f"warning: most timestamps have the size of {names[kind]}, but {other:,} have not (such"
            f" as {some}); correct them, or set data.time_unit"
        )
    return unit, tuple(notes)
