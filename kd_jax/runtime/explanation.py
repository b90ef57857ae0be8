"""The parts of an item's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.runtime.contexts import HistoryMap
from kd_jax.runtime.store import Export


class Part(NamedTuple):
    """A part of an item's score.

    part: 'history', of the history's ``item``; 'others', of all other items of the history; 'bias',
    of the scored item; 'intercept', what an empty history has; 'user', the difference of a trained
    user vector; 'rest', the remainder. item, title: None and '' where the part is of no history
    item.
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
    most: int | None = None,
) -> list[list[Part]]:
    """The parts of the score of each of the items ``targets`` for one user; their sum is the score.

    With a ``HistoryMap`` and factorised scores the share of a history item is its term of the map.
    Otherwise it is what the score of the history loses without the item.

    targets: int [N]. context: f32 [1, D], of the user. seen: the items of their history. read,
    score: ``Runtime.contexts`` and ``Runtime.scores``. most: history items with a part of their
    own; None: all.
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
    order = np.argsort(-shares, axis=0, kind="stable")
    named, others = order[:most], order[:0] if most is None else order[most:]
    bias = export.item_bias[targets]
    parts = {"bias": bias, rest: bases - bias - shares.sum(0), "user": totals - bases}
    if len(others):
        parts = {"others": np.take_along_axis(shares, others, 0).sum(0)} | parts
    values = np.take_along_axis(shares, named, 0)
    items, ids, titles = seen.tolist(), export.item_ids, export.titles
    found = []
    columns = zip(named.T.tolist(), values.T.tolist(), strict=True)
    for column, (places, listed) in enumerate(columns):
        row = [
            Part("history", ids[items[place]], titles[items[place]], share)
            for place, share in zip(places, listed, strict=True)
        ]
        row += [Part(name, None, "", float(share[column])) for name, share in parts.items()]
        found.append(row)
    return found
