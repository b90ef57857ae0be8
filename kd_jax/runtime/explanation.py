"""The parts of an item's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.runtime.contexts import HistoryMap
from kd_jax.runtime.store import Export


class Part(NamedTuple):
    """A part of an item's score.

    part: 'history', of the history's ``item``; 'bias', of the scored item; 'intercept', what an
    empty history has; 'user', the difference of a trained user vector; 'rest', the remainder.
    item, title: None and '' where the part is of no history item.
    """

    part: str
    item: Any
    title: str
    share: float


def explain(
    export: Export,
    target: int,
    context: np.ndarray,
    seen: np.ndarray,
    read: Callable[[Sequence[np.ndarray]], np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[Part]:
    """The parts of the score of item ``target`` for one user; their sum is the score.

    With a ``HistoryMap`` and factorised scores the share of a history item is its term of the map.
    Otherwise it is what the score of the history loses without the item.

    context: f32 [1, D], of the user. seen: the items of their history. read, score:
    ``Runtime.contexts`` and ``Runtime.scores``.
    """
    seen = seen[-export.context.length :]
    one = np.array([target])
    total = float(score(context, one)[0, 0])
    base = float(score(read([seen]), one)[0, 0])
    bias = float(export.item_bias[target])
    model = export.context
    if export.hidden is None and isinstance(model, HistoryMap):
        vector = export.item_vectors[target]
        rows = export.item_vectors[seen] * model.shares(seen[None])[0][:, None]
        shares = rows @ (model.weight @ vector)
        rest = "intercept"
    else:
        without = [np.delete(seen, place) for place in range(len(seen))]
        left = score(read(without), one)[:, 0] if without else np.zeros(0)
        shares = base - left
        rest = "rest"
    parts = [
        Part("history", export.item_ids[index], export.titles[index], float(share))
        for index, share in zip(seen.tolist(), shares, strict=True)
    ]
    parts.sort(key=lambda part: -part.share)
    others = {"bias": bias, rest: base - bias - float(shares.sum()), "user": total - base}
    return parts + [Part(name, None, "", share) for name, share in others.items()]
