"""Top-k recommendations for known and new users, from the workdir of an exported run.

python -m kd_jax.recommend --workdir=runs/quickstart --user=42 -k 10
python -m kd_jax.recommend --workdir=runs/quickstart --history="Gravity (2013)|Argo (2012)"
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.core.types import Batch
from kd_jax.data import dataset as datasets
from kd_jax.data.examples.base import last_items
from kd_jax.data.examples.user import MAX_TARGETS, recency_weights
from kd_jax.data.lookup import Lookup
from kd_jax.data.splits import TEST
from kd_jax.evaluation.evaluator import top_k
from kd_jax.models.scorer import Scorer
from kd_jax.serving.exporters import safetensors
from kd_jax.serving.fold_in import FOLD_IN_RECENCY, fold_in


@dataclasses.dataclass(frozen=True)
class Recommender:
    """A student and the data set it was trained on."""

    dataset: datasets.Dataset
    model: Scorer
    description: dict[str, Any]

    def recommend(
        self, user: object = None, history: Sequence[object] | None = None, k: int = 10
    ) -> pl.DataFrame:
        """The ``k`` best items that were not seen: columns rank, item, title, score.

        user: an id of the data set. history: item ids or titles, oldest first, of somebody who need
        not be in it. Fewer than ``k`` rows where the catalogue has no more. Raises InputError for
        an unknown user, item or title, for a title that several items share, and unless exactly one
        of ``user`` and ``history`` is given.
        """
        if (user is None) == (history is None):
            raise InputError("recommend: give either a user or a history")
        if isinstance(history, str):
            raise InputError(
                f"recommend: the history must be a list of ids or titles; use history=[{history!r}]"
            )
        if not isinstance(k, int | np.integer):
            raise InputError(f"recommend: k is {k!r}; it must be a whole number")
        if self.description["task"] != "rank":
            raise InputError(
                "recommend: this workdir was trained with task='rate', which scores pairs; train"
                " task='rank'"
            )
        if user is not None:
            index = self._user(user)
            indptr, items = self.dataset.history(TEST + 1)
            seen = items[indptr[index] : indptr[index + 1]]
            window = last_items(*self.dataset.history(TEST), self.description["history"])[index]
            scores = self._scores(
                self.model, {"user": jnp.array([index]), "history": jnp.asarray(window)[None]}
            )
        else:
            seen = np.array([self._item(entry) for entry in history or ()], np.int32)
            if not len(seen):
                raise InputError("recommend: the history is empty; name at least one item")
            scores = self._scores_of_history(seen)
        pointers = np.array([0, len(seen)])
        items, values = top_k(
            lambda _: scores, np.zeros(1, np.int32), k, (pointers, seen), batch_size=1
        )
        found = items[0] >= 0
        return pl.DataFrame(
            {
                "rank": np.arange(1, found.sum() + 1),
                "item": self.dataset.item_ids[items[0][found]],
                "title": [self.dataset.titles[item] for item in items[0][found]],
                "score": values[0][found],
            }
        )

    def _scores(self, model: Any, batch: Batch) -> Factors | jax.Array:
        return model.scores(batch, model.catalogue())

    def _scores_of_history(self, seen: np.ndarray) -> Factors | jax.Array:
        pointers = np.array([0, len(seen)])
        if self.model.positions != "user":  # it reads histories
            window = last_items(pointers, seen, self.description["history"])
            return self._scores(
                self.model, {"user": jnp.zeros(1, jnp.int32), "history": jnp.asarray(window)}
            )
        width = min(len(seen), MAX_TARGETS)
        age = np.arange(width - 1.0, -1, -1)[None]
        shares = recency_weights(age, FOLD_IN_RECENCY)
        batch = {
            "user": jnp.zeros(1, jnp.int32),
            "targets": jnp.asarray(last_items(pointers, seen, width))[:, None],
            "target_weights": jnp.asarray(shares / shares.sum(), jnp.float32)[:, None],
            "weights": jnp.ones((1, 1)),
        }
        return self._scores(fold_in(self.model, batch), batch)

    @functools.cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.dataset)

    def _user(self, user: object) -> int:
        found = self._lookup.user(user)
        if found is None:
            some = ", ".join(self.dataset.user_ids.head(3).cast(pl.String).to_list())
            raise InputError(
                f"recommend: user {str(user)!r} is not in the data set (ids are like {some}; users"
                " with few interactions are left out)"
            )
        return found

    def _item(self, entry: object) -> int:
        same = self._lookup.items(entry)
        if not same:
            hint = _closest(str(entry), self.dataset.titles)
            raise InputError(f"recommend: item {str(entry)!r} is not in the data set{hint}")
        if len(same) > 1:
            ids = ", ".join(str(self.dataset.item_ids[index]) for index in same[:5])
            raise InputError(
                f"recommend: {len(same)} items are called {entry!r} (ids {ids}); give the id"
                " instead"
            )
        return same[0]


def _closest(value: str, titles: Sequence[str]) -> str:
    lowered = value.lower()
    close = [title for title in titles if lowered in title.lower()][:3]
    close = close or difflib.get_close_matches(value, titles, n=3)
    return (
        f"; did you mean {' or '.join(map(repr, close))}?"
        if close
        else "; give an item id or a title as in the data"
    )


def load(workdir: str | Path) -> Recommender:
    """Loads the exported student of a finished run.

    Raises InputError if the workdir is missing, unfinished or damaged.
    """
    folder = Path(workdir).expanduser()
    if not (folder / "dataset").is_dir():
        raise InputError(
            f"{folder} is not the workdir of a run (no dataset/ in it); give the --workdir of"
            " launch.py"
        )
    dataset = datasets.load(folder / "dataset")
    model, description = safetensors.read(folder / "export", dataset)
    return Recommender(dataset, model, description)


def print_top(workdir: Path, user: str | None, history: str | None, k: int) -> None:
    """Prints the result of ``recommend``, a line per item; history: ids or titles joined by |."""
    items = None
    if history is not None:
        items = [part.strip() for part in history.split("|") if part.strip()]
    table = load(workdir).recommend(user=user, history=items, k=k)
    for row in table.iter_rows(named=True):
        print(f"{row['rank']:>3}  {row['score']:8.4f}  {row['title']}  [{row['item']}]")
    if len(table) < k:
        print(f"{len(table)} items: the catalogue has no more that were not seen", file=sys.stderr)
