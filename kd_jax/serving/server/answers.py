"""Answers to groups of requests, from one runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.runtime import Filters, Recommendation, Runtime
from kd_jax.runtime.live import Live, contexts, histories
from kd_jax.runtime.runtime import SCORES_AT_ONCE
from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.feedback import Feedback
from kd_jax.serving.server.requests import Compare, Name, Recommend, Similar

NONE = np.zeros(0, np.int64)
Items = list[dict[str, Any]]
Ask = Recommend | Similar


def item(runtime: Runtime, name: Name) -> int:
    """The index of an item. Raises Refused.

    ``Runtime.item`` also looks for titles that are alike, which takes long in a large catalogue.
    """
    found = runtime.lookup.items(name)
    if not found:
        raise Refused(
            404,
            f"item {str(name)[:100]!r} is not in the data set; give an id or a title as in the"
            " data",
        )
    if len(found) > 1:
        ids = ", ".join(f"id:{runtime.export.item_ids[index]}" for index in found[:5])
        raise Refused(
            400,
            f"{len(found)} items have the id or the title {str(name)[:100]!r}; give one of {ids}",
        )
    return found[0]


def items(runtime: Runtime, names: Sequence[Name]) -> np.ndarray:
    return np.array([item(runtime, name) for name in names], np.int64) if names else NONE


def answer(runtime: Runtime, feedback: Feedback, asks: Sequence[Ask]) -> list[Items | Exception]:
    """The list of each request, or the exception to raise for it."""
    found: list[Items | Exception] = [Refused(500, "not answered")] * len(asks)
    listed: list[int] = []
    users: list[Live] = []
    filters: list[Filters] = []
    for place, ask in enumerate(asks):
        try:
            if isinstance(ask, Similar):
                item(runtime, ask.item)
                found[place] = rows(runtime.similar(ask.item, ask.k))
                continue
            allowed, user = _filters(runtime, ask), live(runtime, feedback, ask)
        except InputError as error:
            found[place] = error
            continue
        listed.append(place)
        users.append(user)
        filters.append(allowed)
    step = max(1, SCORES_AT_ONCE // max(1, runtime.num_items))
    for start in range(0, len(listed), step):
        part = slice(start, start + step)
        lists = _lists(runtime, users[part], filters[part], [asks[n] for n in listed[part]])
        for place, one in zip(listed[part], lists, strict=True):
            found[place] = one
    return found


def rows(recommendations: Sequence[Recommendation]) -> Items:
    return [
        {"rank": rank, "item": item, "title": title, "score": score}
        for rank, item, title, score in recommendations
    ]


def _filters(runtime: Runtime, ask: Recommend) -> Filters:
    only = None if ask.only is None else items(runtime, ask.only)
    return Filters(items(runtime, ask.exclude), only, ask.include_seen)


def live(runtime: Runtime, feedback: Feedback, ask: Recommend | Compare) -> Live:
    """The user of a request with their feedback. Raises Refused for an unknown one."""
    newer = items(runtime, ask.history or ())
    if ask.user is None:
        return Live(None, newer, NONE)
    name = str(ask.user).strip()
    index, events = runtime.lookup.user(name), feedback.of(name)
    if index is None and not events and not len(newer):
        some = ", ".join(str(value) for value in runtime.export.user_ids[:3])
        raise Refused(
            404,
            f"user {name[:100]!r} is neither in the data set (ids are like {some}) nor has"
            " feedback; give a history",
        )
    places = [(runtime.lookup.item(one), liked) for one, liked in events]
    known = [(place, liked) for place, liked in places if place is not None]
    liked = np.array([place for place, liked in known if liked], np.int64)
    disliked = np.array([place for place, liked in known if not liked], np.int64)
    if index is not None:
        disliked = np.union1d(disliked, np.setdiff1d(runtime.disliked(index), [*liked, *newer]))
    return Live(index, np.concatenate([liked, newer]), disliked)


def _lists(
    runtime: Runtime, users: list[Live], filters: list[Filters], asks: list[Any]
) -> list[Items | Exception]:
    chosen = histories(runtime, users)
    scores = runtime.scores(contexts(runtime, users, chosen))
    found: list[Items | Exception] = []
    for row, seen, live, filter_, ask in zip(scores, chosen, users, filters, asks, strict=True):
        try:
            filter_.mask(row[None], [seen])
        except InputError as error:  # of this request: the others are answered
            found.append(error)
            continue
        row[live.without] = -np.inf
        found.append(rows(runtime.best(row, ask.k, ask.diversity)))
    return found
