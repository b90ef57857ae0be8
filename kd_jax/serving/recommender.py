"""Top-k tables for known users and for new ones, from the workdir of a finished run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kd_jax import runtime
from kd_jax.core.errors import InputError
from kd_jax.data import dataset as datasets
from kd_jax.data.prepared.folder import check_stored
from kd_jax.runtime import Filters, Runtime
from kd_jax.runtime.filters import as_list
from kd_jax.runtime.store import FILE, Ids

ROWS_AT_ONCE = 1 << 15  # of a table
Block = tuple[range, np.ndarray, np.ndarray]  # places of users, items and scores


@dataclasses.dataclass(frozen=True)
class Recommender:
    """An exported student and the data set it was trained on.

    ``runtime`` does the work with NumPy alone; it can be loaded without the rest
    (``kd_jax.runtime.load``).
    """

    dataset: datasets.Dataset
    runtime: Runtime

    def recommend(
        self,
        user: object = None,
        history: Iterable[object] | None = None,
        k: int = 10,
        *,
        diversity: float = 0.0,
        **filters: Any,
    ) -> pl.DataFrame:
        """The ``k`` best items of one user: columns rank, item, title, score.

        user: an id of the data set. history: item ids or titles, oldest first, of somebody new; or,
        with a user, what they chose after the data set ended. diversity: 0 to 1
        (``runtime.topk.diversified``). filters: exclude and only, item ids or titles;
        include_seen=True keeps the items of the history. Fewer than ``k`` rows where the catalogue
        has no more. Raises InputError for an unknown or ambiguous user or item.
        """
        found = self.runtime.recommend(
            user, history, k, filters=self.filters(**filters), diversity=diversity
        )
        return self._table(found)

    def recommend_all(
        self,
        users: Sequence[object] | None = None,
        histories: Sequence[Iterable[object]] | None = None,
        k: int = 10,
        **filters: Any,
    ) -> pl.DataFrame:
        """The ``k`` best items of many users: columns user, rank, item, title, score.

        users: ids; None: all users of the data set. histories: in place of users; then ``user`` is
        the place in the list. ``blocks`` gives the same part by part.
        """
        parts = self.blocks(users, histories, k, **filters)
        return pl.concat([pl.DataFrame(schema=self.schema(histories is not None)), *parts])

    def schema(self, histories: bool = False) -> pl.Schema:
        """The columns of ``recommend_all``: users are ids, or places in a list of histories."""
        user = pl.Int64() if histories else self.dataset.user_ids.dtype
        item = self.dataset.item_ids.dtype
        kinds = {"user": user, "rank": pl.Int64(), "item": item}
        return pl.Schema(kinds | {"title": pl.String(), "score": pl.Float32()})

    def blocks(
        self,
        users: Sequence[object] | None = None,
        histories: Sequence[Iterable[object]] | None = None,
        k: int = 10,
        **filters: Any,
    ) -> Iterator[pl.DataFrame]:
        """The table of ``recommend_all``, a block of users at a time."""
        schema, chosen = self.schema(histories is not None), self.filters(**filters)
        if users is not None:
            users = as_list(users, "users")
        for block, items, scores in _joined(self.runtime.many(users, histories, k, filters=chosen)):
            if histories is not None:
                names = pl.Series(block)
            elif users is None:
                names = self.dataset.user_ids[block.start : block.stop]
            else:
                indices = [self.runtime.user(users[place]) for place in block]
                names = self.dataset.user_ids[indices]
            yield self._block(names, items, scores).cast(dict(schema))  # type: ignore[arg-type]

    def add_items(self, ids: Ids, titles: Sequence[str], texts: Sequence[str]) -> Recommender:
        """A recommender with these items as well; this one is unchanged.

        texts: see ``Runtime.add_items``, which raises InputError for bad ones.
        """
        return Recommender(self.dataset, self.runtime.add_items(ids, titles, texts=texts))

    def similar(self, item: object, k: int = 10) -> pl.DataFrame:
        """The ``k`` most similar items (``Runtime.similarity``): rank, item, title, score."""
        return self._table(self.runtime.similar(item, k))

    def explain(
        self, item: object, user: object = None, history: Iterable[object] | None = None
    ) -> pl.DataFrame:
        """The parts of an item's score: columns part, item, title, share. Their sum is the score.

        See ``Runtime.explain``.
        """
        rows = self.runtime.explain(item, user, history)
        ids = pl.Series("item", [row.item for row in rows], self.dataset.item_ids.dtype)
        return pl.DataFrame(
            {
                "part": [row.part for row in rows],
                "item": ids,
                "title": [row.title for row in rows],
                "share": pl.Series([row.share for row in rows], dtype=pl.Float64),
            }
        )

    def filters(
        self,
        exclude: Iterable[object] = (),
        only: Iterable[object] | None = None,
        include_seen: bool = False,
    ) -> Filters:
        """``Filters`` from item ids and titles."""
        chosen = None if only is None else self.runtime.items(only)
        return Filters(self.runtime.items(exclude), chosen, include_seen)

    def _table(self, rows: Sequence[runtime.Recommendation]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "rank": pl.Series([row.rank for row in rows], dtype=pl.Int64),
                "item": pl.Series([row.item for row in rows], dtype=self.dataset.item_ids.dtype),
                "title": pl.Series([row.title for row in rows], dtype=pl.String),
                "score": pl.Series([row.score for row in rows], dtype=pl.Float32),
            }
        )

    def _block(self, names: pl.Series, items: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
        places, ranks = np.nonzero(items >= 0)
        found = items[places, ranks]
        return pl.DataFrame(
            {
                "user": names.gather(places),
                "rank": ranks + 1,
                "item": self._ids.gather(found),
                "title": self._titles.gather(found),
                "score": scores[places, ranks],
            }
        )

    @functools.cached_property
    def _titles(self) -> pl.Series:
        return pl.Series(self.runtime.export.titles, dtype=pl.String)

    @functools.cached_property
    def _ids(self) -> pl.Series:
        return pl.Series(self.runtime.export.item_ids, dtype=self.dataset.item_ids.dtype)


def _joined(blocks: Iterable[Block]) -> Iterator[Block]:
    """Consecutive blocks of ``Runtime.many`` as fewer ones: a table has costs of its own."""
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(items.size for _, items, _ in held) >= ROWS_AT_ONCE:
            yield _join(held)
            held = []
    if held:
        yield _join(held)


def _join(blocks: Sequence[Block]) -> Block:
    places, items, scores = zip(*blocks, strict=True)
    return range(places[0].start, places[-1].stop), np.concatenate(items), np.concatenate(scores)


def load(workdir: str | Path) -> Recommender:
    """The exported student of a finished run.

    Raises InputError if the workdir is missing, unfinished or damaged.
    """
    folder = Path(workdir).expanduser()
    if not (folder / "dataset").is_dir():
        raise InputError(
            f"{folder} is not the workdir of a run (no dataset/ in it); give the --workdir of"
            " launch.py"
        )
    check_stored(folder)
    dataset = datasets.load(folder / "dataset")
    found = runtime.load(folder / "export" / FILE)
    checksum = found.export.description["dataset"]["checksum"]
    if checksum != dataset.checksum:
        raise InputError(
            f"{folder}: export/{FILE} is of another data set (checksum {checksum}, that of dataset/"
            f" is {dataset.checksum}); run the stage 'export' again"
        )
    return Recommender(dataset, found)
