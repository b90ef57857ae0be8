"""Users as a server knows them: what they chose or refused after the export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.runtime.runtime import Runtime


class Live(NamedTuple):
    """A user, the items chosen after the data set ended, and those refused.

    user: the index in the data set; None: a new user. newer: items chosen after the data set ended,
    oldest first. without: items that do not count as chosen. Items are indices, int64 [N].
    """

    user: int | None
    newer: np.ndarray
    without: np.ndarray


def histories(runtime: Runtime, users: Sequence[Live]) -> list[np.ndarray]:
    """The items that each user chose, oldest first."""
    found = []
    for live in users:
        items = live.newer
        if live.user is not None:
            items = np.concatenate([runtime.seen(live.user), items])
        found.append(items[~np.isin(items, live.without)] if len(live.without) else items)
    return found


def contexts(runtime: Runtime, users: Sequence[Live], chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Context vectors f32 [B, D]; ``chosen`` is ``histories`` of the same users.

    As ``Runtime.query``: with a linear context, a known user's vector moves by the difference that
    the newer and the removed items make.
    """
    known = [row for row, live in enumerate(users) if live.user is not None]
    whole = list(chosen)
    found = np.zeros((len(users), runtime.export.user_vectors.shape[1]), np.float32)
    moved = [True] * len(users)
    if known:
        indices = [live.user for live in users if live.user is not None]
        seen = [runtime.seen(index) for index in indices]
        found[known] = runtime.vectors(indices, seen)
        for row, items in zip(known, seen, strict=True):
            moved[row] = len(items) != len(whole[row]) or bool((items != whole[row]).any())
            if moved[row] and runtime.export.context.linear:
                found[row] -= runtime.contexts([items])[0]
            elif moved[row]:
                found[row] = 0
    # Histories of like length share a call, so that a long one does not pad all others.
    groups: dict[int, list[int]] = {}
    for row, items in enumerate(whole):
        if moved[row]:
            groups.setdefault(len(items).bit_length(), []).append(row)
    for rows in groups.values():
        found[rows] += runtime.contexts([whole[row] for row in rows])
    return found
