"""The options of ``dataset.build``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.events import parse
from kd_jax.data.splits import SPLITS
from kd_jax.data.time_units import UNITS

REPEATS = ("first", "last", "max", "count")


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """How ``build`` filters and splits the interactions.

    split: 'leave_one_out', 'temporal', 'ratio', 'strong' or 'column' (``data/splits.py``).
    min_user_interactions, min_item_interactions: the k-core, to its fixed point, over the
    interactions of all splits together, as published protocols do. With min_item_interactions=0 the
    catalogue is the whole items table, with or without interactions; otherwise the items of the
    core. min_rating: keep ratings of at least this. ratios: train, valid and test shares, of
    interactions ('temporal', 'ratio') or of users ('strong'). max_malformed: the tolerated share of
    malformed rows. missing_text: an item without text is an 'error', or gets its 'id' as text.
    seed: of the random choice of users under 'strong'. text_columns: the item columns that form its
    text, in order; None or () = all. max_users: keep only the first so many of the remaining users,
    for quick trials; 0 = all. time_unit: of timestamps that are numbers: 's', 'ms', 'us' or 'ns'
    since 1970; 'auto': by their size. repeats: which of the interactions of a user with the same
    item counts: the 'first', the 'last', or the one with the greatest rating ('max', the last of
    equal ones); 'count': the first, with the number of them as its weight. events: the weights of
    types of events, as text (``events.parse``); '': interactions have no type.
    """

    split: str = "temporal"
    min_user_interactions: int = 1
    min_item_interactions: int = 0
    min_rating: float | None = None
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    max_malformed: float = 0.0
    missing_text: str = "error"
    seed: int = 0
    text_columns: Sequence[str] | None = None
    max_users: int = 0
    time_unit: str = "auto"
    repeats: str = "first"
    events: str = ""

    def __post_init__(self) -> None:
        parse(self.events)
        if self.repeats not in REPEATS:
            raise InputError(
                f"data.repeats={self.repeats!r} is unknown{nearest(self.repeats, REPEATS)}"
            )
        if self.time_unit not in UNITS:
            raise InputError(
                f"data.time_unit={self.time_unit!r} is unknown{nearest(self.time_unit, UNITS)}"
            )
        if self.split not in SPLITS:
            raise InputError(f"data.split={self.split!r} is unknown{nearest(self.split, SPLITS)}")
        ratios = tuple(self.ratios)
        if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
            raise InputError(
                f"data.ratios={ratios}: give three positive shares (train, valid, test) that sum"
                " to 1"
            )
        if self.max_users < 0:
            raise InputError(f"data.max_users={self.max_users} must be 0 (all users) or more")

    @property
    def minima(self) -> str:
        """The fields of the k-core that have an effect, for messages."""
        fields = (
            ("data.min_interactions", self.min_user_interactions),
            ("data.min_item_interactions", self.min_item_interactions),
        )
        return " and ".join(f"{name}={least}" for name, least in fields if least > 1)
