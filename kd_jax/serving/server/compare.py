"""The lists of several models side by side, for the page of the server."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.lookup import folded
from kd_jax.runtime import Runtime, compared, explanation
from kd_jax.runtime.compared import Described
from kd_jax.runtime.live import Live, contexts, histories
from kd_jax.serving.server import answers
from kd_jax.serving.server.feedback import Feedback
from kd_jax.serving.server.log import report
from kd_jax.serving.server.requests import Compare

FOUND = 20  # items of a search
NEWEST = 10  # items of a known user's history that the page shows
REASONS = 3  # history items of an explanation

Answer = dict[str, Any]


class Models(NamedTuple):
    """What the page shows. others: the models beside the exported one, by name."""

    described: list[Described]
    others: dict[str, Runtime]


def load(folder: Path, runtime: Runtime) -> Models:
    """The models beside an export in ``folder``; a damaged one is reported and left out."""
    export = runtime.export
    name = str(export.description.get("model", "model"))
    alone = Described(name, "", _bytes(runtime), "", "")
    try:
        listed, others = compared.described(folder, export), {}
        for one in listed:
            found = compared.load(folder, one.name, export, runtime.lookup)
            if found is not None and one.name != name:
                others[one.name] = found
    except InputError as error:
        report(f"the page shows {name} alone: {error}")
        return Models([alone], {})
    kept = [one for one in listed if one.name in others or one.name == name]
    return Models(kept if any(one.name == name for one in kept) else [alone, *kept], others)


def _bytes(runtime: Runtime) -> int:
    """The bytes of an export's vectors in float32."""
    export = runtime.export
    users = export.user_vectors.size if export.context.linear else 0
    return 4 * (export.item_vectors.size + export.item_bias.size + users)


def answer(runtime: Runtime, models: Models, feedback: Feedback, ask: Compare) -> Answer:
    """The list of every model for one user, how they differ, and where a new text ranks.

    Raises Refused for an unknown user or item.
    """
    user = answers.live(runtime, feedback, ask)
    disliked = answers.items(runtime, ask.disliked)
    user = user._replace(without=np.union1d(user.without, disliked))
    rows = [_Row(one, models.others.get(one.name, runtime), user, ask) for one in models.described]
    shown = np.unique(np.concatenate([row.best for row in rows]))
    ranks = {row.name: dict(zip(shown.tolist(), row.ranks(shown), strict=True)) for row in rows}
    export = runtime.export
    known = [] if user.user is None else runtime.seen(user.user)[-NEWEST:].tolist()
    return {
        "models": [row.answer(ranks) for row in rows],
        "history": [_named(export, item) for item in answers.items(runtime, ask.history or ())],
        "disliked": [_named(export, item) for item in disliked.tolist()],
        "known": [_named(export, item) for item in known],
    }


def _named(export: Any, item: int) -> Answer:
    return {"item": export.item_ids[item], "title": export.titles[item]}


class _Row:
    """One model's scores for a user, and its list."""

    def __init__(self, described: Described, runtime: Runtime, user: Live, ask: Compare):
        self.name, self._described, self._runtime, self._ask = (
            described.name,
            described,
            runtime,
            ask,
        )
        began = time.perf_counter()
        count = runtime.num_items  # items that were added to the exported model are unknown to it
        user = Live(user.user, *(items[items < count] for items in (user.newer, user.without)))
        self._seen = histories(runtime, [user])[0]
        self._context = contexts(runtime, [user], [self._seen])
        self._scores = runtime.scores(self._context)[0]
        self._scores[self._seen] = -np.inf
        self._scores[user.without] = -np.inf
        found = runtime.best(self._scores, ask.k, ask.diversity)
        self._seconds = time.perf_counter() - began
        self.best = np.array([runtime.lookup.item(one.item) for one in found], np.int64)

    def ranks(self, items: np.ndarray) -> list[int | None]:
        """The place of items among all that may be recommended; None for one that may not."""
        known = items < len(self._scores)
        values = np.where(known, self._scores[np.where(known, items, 0)], -np.inf)
        better = (self._scores[None] > values[:, None]).sum(1) + 1
        return [int(n) if v > -np.inf else None for n, v in zip(better, values, strict=True)]

    def answer(self, ranks: dict[str, dict[int, int | None]]) -> Answer:
        explained = self._runtime.explained(self.best, self._context, self._seen, REASONS)
        listed = []
        for place, (item, parts) in enumerate(zip(self.best.tolist(), explained, strict=True), 1):
            row = {"rank": place, "score": round(float(self._scores[item]), 4)}
            elsewhere = {name: found[item] for name, found in ranks.items()}
            row |= _named(self._runtime.export, item) | {"ranks": elsewhere}
            listed.append(row | {"parts": _parts(parts)})
        return dataclasses.asdict(self._described) | {
            "milliseconds": round(1e3 * self._seconds, 3),
            "items": listed,
            "text": self._text(),
        }

    def _text(self) -> Answer | None:
        """Where an item with the asked text ranks; None for a model that reads no texts."""
        text, read = self._ask.text, self._runtime.export.text_map
        if not text or read is None:
            return None
        score = float(self._runtime.scores_of(self._context, *read([text]))[0, 0])
        rank = int(np.sum(self._scores >= score)) + 1
        return {"rank": rank, "of": int(np.sum(self._scores > -np.inf)) + 1, "score": score}


def _parts(parts: Sequence[explanation.Part]) -> list[Answer]:
    """The parts of a score as JSON, without those that are 0; history items stay."""
    return [
        {"part": part, "title": title, "share": round(share, 4)}
        for part, _, title, share in parts
        if share or part == "history"
    ]


class Titles:
    """Finds items by words of their title; the most frequent ones of the data set come first."""

    def __init__(self, runtime: Runtime):
        export = runtime.export
        self._runtime = runtime
        self._counts = np.bincount(export.items, minlength=runtime.num_items)
        self._order = np.argsort(-self._counts, kind="stable").tolist()
        self._titles = [folded(title) for title in export.titles]

    def search(self, words: str) -> list[Answer]:
        """At most ``FOUND`` items with all ``words``; those that begin with them come first."""
        wanted = folded(words)
        parts = wanted.split()
        found = [item for item in self._order if all(part in self._titles[item] for part in parts)]
        exact = self._runtime.lookup.items(words) if wanted else []
        first = [item for item in found if self._titles[item].startswith(wanted)]
        chosen = list(dict.fromkeys([*exact, *first[:FOUND], *found]))[:FOUND]
        export, counts = self._runtime.export, self._counts
        return [_named(export, item) | {"clicks": int(counts[item])} for item in chosen]
