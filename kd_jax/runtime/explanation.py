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
    targets: np.ndarray,
    context: np.ndarray,
    seen: np.ndarray,
    read: Callable[[Sequence[np.ndarray]], np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[list[Part]]:
    """The parts of the score of each of the items ``targets`` for one user; their sum is the score.

    With a ``HistoryMap`` and factorised scores the share of a history item is its term of the map.
    Otherwise it is what the score of the history loses without the item.

    targets: int [N]. context: f32 [1, D], of the user. seen: the items of their history. read,
    score: ``Runtime.contexts`` and ``Runtime.scores``.
    """
    seen = seen[-export.context.length :]
    totals = score(context, targets)[0]
    bases = score(read([seen]), targets)[0]
    model = export.context
    if export.hidden is None and isinstance(model, HistoryMap):
        vectors = export.item_vectors[targets]
        rows = export.item_vectors[seen] * model.shares(seen[None])[0][:, None]
        shares = rows @ (model.weight @ vectors.T)
        rest = "intercept"
    else:
        without = [np.delete(seen, place) for place in range(len(seen))]
        shares = np.zeros((0, len(targets)), np.float32)
        if without:
            shares = bases - score(read(without), targets)
        rest = "rest"
    found = []
    columns = zip(shares.T, totals, bases, export.item_bias[targets], strict=True)
    for column, total, base, bias in columns:
        parts = [
            Part("history", export.item_ids[index], export.titles[index], share)
            for index, share in zip(seen.tolist(), column.tolist(), strict=True)
        ]
        parts.sort(key=lambda part: -part.share)
        others = {"bias": bias, rest: base - bias - column.sum(), "user": total - base}
        found.append([*parts, *(Part(name, None, "", float(n)) for name, n in others.items())])
    return found
