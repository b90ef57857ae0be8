"""Recommendations from an exported student."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.lookup import Lookup
from kd_jax.runtime import additions, explanation, store, threads, topk
from kd_jax.runtime.contexts import PAD
from kd_jax.runtime.filters import Filters, Recommendation, as_list, check_diversity, check_k
from kd_jax.runtime.store import Export, Ids

# Of the average user's score in that of a similar item, beside the cosine; docs/serving.md has the
# measurement.
SIMILAR_POPULARITY = 0.1
POOL = 10  # diversified lists of k items are chosen from the POOL · k best
USERS_AT_ONCE = 256
SCORES_AT_ONCE = 1 << 24  # of users times items in one block


@dataclasses.dataclass(frozen=True)
class Query:
    """Users to recommend to.

    contexts: f32 [B, D]. seen: the items of each one's history. disliked: items that are not
    recommended to each; (): none.
    """

    contexts: np.ndarray
    seen: list[np.ndarray]
    disliked: Sequence[np.ndarray] = ()


class Runtime:
    """An exported student that recommends with NumPy alone.

    Users and items are given by the ids of the data set; items also by title, where it is unique,
    or as 'id:…' and 'title:…'. All methods raise InputError for an unknown or ambiguous name.
    """

    def __init__(self, export: Export, lookup: Lookup | None = None):
        self.export = export
        self.lookup = lookup or Lookup(export.user_ids, export.item_ids, export.titles)
        self._hidden = self._hidden_items(export)

    def add_items(
        self,
        ids: Ids,
        titles: Sequence[str],
        vectors: np.ndarray | None = None,
        biases: np.ndarray | None = None,
        *,
        texts: Sequence[str] | None = None,
    ) -> Runtime:
        """A runtime with these items as well; this one is unchanged, so that threads may read it.

        texts: of the items, as the template of the data set makes them of its columns; the text map
        computes their vectors and biases. Without it, vectors: f32 [N, D] and biases: f32 [N].
        Raises InputError for ids that exist or do not fit, an empty text, and an export without a
        text map.
        """
        factors = additions.factors(self.export, vectors, biases, texts)
        export = additions.extended(self.export, self.lookup, ids, titles, factors)
        return Runtime(export, self.lookup.extended(export.item_ids[self.num_items :], titles))

    @property
    def num_items(self) -> int:
        return len(self.export.item_bias)

    @property
    def num_users(self) -> int:
        return len(self.export.user_vectors)

    def recommend(
        self,
        user: object = None,
        history: Iterable[object] | None = None,
        k: int = 10,
        *,
        filters: Filters | None = None,
        diversity: float = 0.0,
    ) -> list[Recommendation]:
        """The ``k`` best items that the user has not seen, best first.

        user: an id of the data set. history: items, oldest first; with a user, what they chose
        after the interactions of the data set; without, all that is known of somebody new. Fewer
        than ``k`` where no more items are left. diversity: 0 to 1, the weight of the difference
        between the items of the list against their scores (``topk.diversified``).
        """
        check_k(k)
        check_diversity(diversity)
        filters = filters or Filters()
        query = self.query(user, history)
        return self.best(self._masked(query, filters)[0], k, diversity)

    def best(self, scores: np.ndarray, k: int, diversity: float = 0.0) -> list[Recommendation]:
        """The ``k`` best items by their scores f32 [I], without those of score -inf."""
        if diversity:
            vectors = self.export.item_vectors
            found = topk.diversified(scores, vectors, k, diversity, POOL * k)
        else:
            found = topk.best(scores, k)
        return self.rows(found, scores[found])

    def rows(self, items: np.ndarray, scores: np.ndarray) -> list[Recommendation]:
        """Item indices and scores as a list of recommendations."""
        ids, titles = self.export.item_ids, self.export.titles
        return [
            Recommendation(rank, ids[item], titles[item], score)
            for rank, (item, score) in enumerate(
                zip(items.tolist(), scores.tolist(), strict=True), 1
            )
        ]

    def query(self, user: object = None, history: Iterable[object] | None = None) -> Query:
        """The context and the seen items of one user."""
        if user is None and history is None:
            raise InputError("give a user, a history or both")
        if user is None:
            seen = self._history(history)
            return Query(self.contexts([seen]), [seen])
        newer = self.items(() if history is None else history)
        index = self.user(user)
        disliked = np.setdiff1d(self.disliked(index), newer)
        seen = np.concatenate([self.seen(index), newer])
        return Query(self._user_context(index, newer), [seen], [disliked])

    def many(
        self,
        users: Sequence[object] | None = None,
        histories: Sequence[Iterable[object]] | None = None,
        k: int = 10,
        *,
        filters: Filters | None = None,
    ) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
        """The lists of many users, a block at a time.

        users: ids; None: all users of the data set. histories: in place of users. Yields the places
        of a block's users in the argument, their items int32 [B, k] as indices, padded with -1, and
        scores f32 [B, k].
        """
        check_k(k)
        filters = filters or Filters()
        if histories is not None and users is not None:
            raise InputError("give a list of users or of histories, not both")
        histories = None if histories is None else as_list(histories, "histories")
        users = None if users is None else as_list(users, "users")
        chosen = users if histories is None else histories
        count = self.num_users if chosen is None else len(chosen)
        k = min(k, self.num_items)
        step = max(1, min(USERS_AT_ONCE, SCORES_AT_ONCE // max(1, self.num_items)))

        def listed(block: range) -> tuple[range, np.ndarray, np.ndarray]:
            if histories is not None:
                seen = [self._history(histories[place]) for place in block]
                query = Query(self.contexts(seen), seen)
            else:
                indices = list(block) if users is None else [self.user(users[i]) for i in block]
                seen = [self.seen(index) for index in indices]
                disliked = [self.disliked(index) for index in indices]
                query = Query(self.vectors(indices, seen), seen, disliked)
            return block, *topk.best_rows(self._masked(query, filters), k)

        blocks = [range(n, min(count, n + step)) for n in range(0, count, step)]
        yield from threads.ahead(listed, blocks)

    def similar(self, item: object, k: int = 10) -> list[Recommendation]:
        """The ``k`` items that fit best to an item, best first, by ``similarity``."""
        check_k(k)
        index = self.item(item)
        scores = self.similarity(index)
        scores[index] = -np.inf
        return self.best(scores, k)

    def similarity(self, item: int, popularity: float = SIMILAR_POPULARITY) -> np.ndarray:
        """How well all items fit to the item with index ``item``, f32 [I].

        The cosine of the two item vectors, less the mean vector of items with interactions, plus
        ``popularity`` times the score of an average user: a cosine alone puts items without
        interactions first.
        """
        directions, average = self._directions
        return directions @ directions[item] + np.float32(popularity) * average

    @functools.cached_property
    def _directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors f32 [I, D], and the scores of the average user f32 [I]."""
        export = self.export
        warm = np.bincount(export.items, minlength=self.num_items) > 0
        centre = export.item_vectors[warm].mean(0) if warm.any() else np.float32(0)
        vectors = export.item_vectors - centre
        norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        users = export.user_vectors[export.user_vectors.any(1)]
        average = users.mean(0, keepdims=True) if len(users) else users.sum(0, keepdims=True)
        return vectors / norms, self.scores(average)[0]

    def explain(
        self, item: object, user: object = None, history: Iterable[object] | None = None
    ) -> list[explanation.Part]:
        """The parts of the score of ``item`` for a user; their sum is the score.

        The parts of history items come first, the greatest first (``explanation.explain``).
        """
        target, query = self.item(item), self.query(user, history)
        return self.explained(np.array([target]), query.contexts, query.seen[0])[0]

    def explained(
        self, targets: np.ndarray, context: np.ndarray, seen: np.ndarray, most: int | None = None
    ) -> list[list[explanation.Part]]:
        """As ``explain``, of several items (indices) for one context f32 [1, D] and its history.

        most: history items with a part of their own; the others share one. None: all.
        """
        read, score = self.contexts, self.scores
        return explanation.explain(self.export, targets, context, seen, read, score, most)

    def user(self, name: object) -> int:
        """The index of a user."""
        found = self.lookup.user(name)
        if found is None:
            some = ", ".join(str(value) for value in self.export.user_ids[:3])
            raise InputError(
                f"user {str(name)!r} is not in the data set (ids are like {some}; users"
                " with few interactions are left out)"
            )
        return found

    def items(self, names: Iterable[object]) -> np.ndarray:
        """The indices of items, int64 [N]."""
        return np.array([self.item(name) for name in as_list(names, "items")], np.int64)

    def _history(self, names: object) -> np.ndarray:
        """The items of a new user. Raises InputError if there is none."""
        found = self.items(as_list(names, "a history"))
        if not len(found):
            raise InputError("the history is empty; name at least one item")
        return found

    def item(self, name: object) -> int:
        """The index of an item."""
        same = self.lookup.items(name)
        if not same:
            hint = closest(str(name), self.export.titles)
            raise InputError(f"item {str(name)!r} is not in the data set{hint}")
        if len(same) > 1:
            ids = ", ".join(f"id:{self.export.item_ids[index]}" for index in same[:5])
            raise InputError(
                f"{len(same)} items have the id or the title {name!r}; give one of {ids}"
            )
        return same[0]

    def seen(self, user: int) -> np.ndarray:
        """The items of a user's interactions in the data set, oldest first."""
        start, stop = self.export.indptr[user], self.export.indptr[user + 1]
        return self.export.items[start:stop].astype(np.int64)

    def disliked(self, user: int) -> np.ndarray:
        """The items that a user of the data set has rated too low to be a choice."""
        found = self.export.disliked
        if found is None:
            return np.zeros(0, np.int64)
        return found.items[found.indptr[user] : found.indptr[user + 1]].astype(np.int64)

    def contexts(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Context vectors f32 [B, D] of histories of item indices, oldest first."""
        context = self.export.context
        longest = max((len(history) for history in histories), default=0)
        length = min(longest, context.length)
        padded = np.full((len(histories), max(1, length)), PAD, np.int64)
        for row, history in enumerate(histories):
            newest = history[len(history) - min(len(history), length) :]
            if len(newest):
                padded[row, -len(newest) :] = newest
        return context(padded, self.export.item_vectors).astype(np.float32)

    def scores(self, contexts: np.ndarray, items: np.ndarray | None = None) -> np.ndarray:
        """The scores f32 [B, N] of ``items`` (indices; None: all items) for contexts [B, D]."""
        chosen: Any = slice(None) if items is None else items
        rows = self.export.item_vectors if self.export.hidden is None else self._hidden
        return self._scores(contexts, rows[chosen], self.export.item_bias[chosen])

    def scores_of(self, contexts: np.ndarray, vectors: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """As ``scores``, of items that are not in the export: vectors f32 [N, D], bias f32 [N]."""
        hidden = self.export.hidden
        return self._scores(contexts, hidden.of_items(vectors) if hidden else vectors, bias)

    def _scores(self, contexts: np.ndarray, rows: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """rows: the items' vectors [N, D], or with ``hidden`` their part of that layer [N, H]."""
        hidden = self.export.hidden
        if hidden is None:
            scores = contexts @ rows.T
            scores += bias
            return scores
        users = contexts @ hidden.user + hidden.user_bias
        out = hidden.out[:, 0]
        found = [np.maximum(rows + row, 0) @ out for row in users]
        return np.stack(found) + hidden.out_bias + bias

    def _hidden_items(self, export: Export) -> np.ndarray:
        if export.hidden is None:
            return np.zeros((0, 0), np.float32)
        return export.hidden.of_items(export.item_vectors)

    def vectors(self, indices: Sequence[int], seen: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of users of the data set.

        They know all interactions of the data set; a user without one has the context of ``seen``.
        A student that reads histories has none.
        """
        if not self.export.context.linear:
            return self.contexts(seen)
        vectors = self.export.user_vectors[indices]
        untrained = np.flatnonzero(~vectors.any(1))
        if len(untrained):
            vectors[untrained] = self.contexts([seen[row] for row in untrained.tolist()])
        return vectors

    def _user_context(self, user: int, newer: np.ndarray) -> np.ndarray:
        seen = self.seen(user)
        whole = np.concatenate([seen, newer])
        if not self.export.context.linear:
            return self.contexts([whole])
        known = self.vectors([user], [seen])
        if not len(newer):
            return known
        before, after = self.contexts([seen, whole])
        return known + (after - before)

    def _masked(self, query: Query, filters: Filters) -> np.ndarray:
        """Scores f32 [B, I] with -inf at the items that may not be recommended."""
        scores = self.scores(query.contexts)
        for row, items in zip(scores, query.disliked, strict=False):
            row[items] = -np.inf
        filters.mask(scores, query.seen)
        return scores


def closest(value: str, titles: Sequence[str]) -> str:
    """The tail of an error about an unknown item: the titles that are most like it."""
    lowered = value.lower()
    close = [title for title in titles if lowered in title.lower()][:3]
    close = close or difflib.get_close_matches(value, titles, n=3)
    return (
        f"; did you mean {' or '.join(map(repr, close))}?"
        if close
        else "; give an item id or a title as in the data"
    )


def load(path: str | Path) -> Runtime:
    """The runtime of an export: its folder, its file, or the workdir of a finished run.

    Raises InputError if there is none, or if it is damaged.
    """
    path = Path(path).expanduser()
    folders = [path, path / store.FILE, path / "export" / store.FILE]
    file = next((place for place in folders if place.is_file()), None)
    missing = path if path.name == store.FILE else path / store.FILE
    return Runtime(store.read(file or missing))
