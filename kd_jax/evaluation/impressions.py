"""Judges what users were shown: are the clicked items of a list ranked above the others?

The metrics are those of the MIND news data set (Wu et al., "MIND: A Large-scale Dataset for News
Recommendation", ACL 2020, section 5.1), each a mean over impressions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from kd_jax.core.scores import Factors
from kd_jax.core.types import Array
from kd_jax.data.dataset import Dataset
from kd_jax.data.impressions import Impressions
from kd_jax.evaluation.batching import NO_ITEM, RowItemBatches, stream

ScoreFn = Callable[[np.ndarray], Array | Factors]
CUTS = (5, 10)
METRICS = ("auc", "mrr", *(f"ndcg@{k}" for k in CUTS))


def judged(dataset: Dataset, split: int) -> Impressions | None:
    """The impressions of ``split`` that can be judged; None where there is none.

    They have a clicked item and one that is not, and a user with a train or fold-in interaction,
    as every user whose ranking is evaluated.
    """
    found = dataset.impressions
    if found is None:
        return None
    known = np.diff(dataset.history(1)[0]) > 0
    found = found.select((found.split == split) & found.mixed & known[found.user])
    return found if len(found) else None


def evaluate(
    score_fn: ScoreFn, dataset: Dataset, split: int, batch_size: int
) -> dict[str, float | int]:
    """The means of METRICS over the ``judged`` impressions of ``split`` (1 valid, 2 test).

    score_fn: see ``evaluator``; scores are of the history before ``split``. batch_size: users that
    are scored at once. 'impressions' and 'users' say how many were judged; {} if none can be.
    """
    shown = judged(dataset, split)
    if shown is None:
        return {}
    values = metrics(_scores(score_fn, shown, batch_size), shown.clicked, shown.lengths)
    found: dict[str, float | int] = {name: float(each.mean()) for name, each in values.items()}
    return found | {"impressions": len(shown), "users": len(np.unique(shown.user))}


def _scores(score_fn: ScoreFn, shown: Impressions, batch_size: int) -> Float[np.ndarray, " S"]:
    """The score of every shown item, for the user who saw it."""
    users, row = np.unique(shown.user, return_inverse=True)
    rows = np.repeat(row.astype(np.int32), shown.lengths)  # sorted, as the impressions are
    pairs = RowItemBatches((rows, shown.item), len(users), batch_size)
    batches = stream(
        lambda b, block: _of_pairs(score_fn(block), *pairs.batch(b)), users, batch_size
    )
    return pairs.collect(batches)


@jax.jit
def _of_pairs(scores: Array | Factors, rows: Array, items: Array) -> Array:
    """The scores of pairs (row, item); those of padding mean nothing."""
    rows, items = jnp.where(items == NO_ITEM, 0, rows), jnp.where(items == NO_ITEM, 0, items)
    if not isinstance(scores, Factors):
        return scores[rows, items].astype(jnp.float32)
    contexts, vectors, bias, *_ = scores
    found = jnp.einsum(
        "pd,pd->p", contexts[rows], vectors[items], preferred_element_type=jnp.float32
    )
    return found + bias[items].astype(jnp.float32)


def metrics(
    scores: Float[np.ndarray, " S"],
    clicked: Bool[np.ndarray, " S"],
    lengths: Int[np.ndarray, " Q"],
) -> dict[str, Float[np.ndarray, " Q"]]:
    """The METRICS of each of Q lists, which follow one another in ``scores`` and ``clicked``.

    'auc': the share of pairs of a clicked and another item that are in the right order, ties
    counting half. 'mrr': the mean of 1 / rank over the clicked items, as in MIND's own evaluation.
    'ndcg@k': with gain 1 for a clicked item and discount log2(rank + 1). Of equal scores the
    clicked items rank last; a score that is NaN ranks below all others. Every list has an item of
    both kinds.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    lists = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    order = np.lexsort((clicked, -scores, lists))
    rank = np.arange(len(scores)) - np.repeat(starts, lengths) + 1
    hit, value = clicked[order], scores[order]
    clicks = np.bincount(lists, hit, len(lengths))
    found = {
        "auc": _auc(value, hit, lists, lengths, clicks),
        "mrr": np.bincount(lists, hit / rank, len(lengths)) / clicks,
    }
    discount = 1 / np.log2(rank + 1.0)
    for k in CUTS:
        best = np.bincount(lists, discount * (rank <= np.minimum(clicks, k)[lists]), len(lengths))
        gain = np.bincount(lists, discount * (hit & (rank <= k)), len(lengths))
        found[f"ndcg@{k}"] = gain / best
    return found


def _auc(
    value: np.ndarray, hit: np.ndarray, lists: np.ndarray, lengths: np.ndarray, clicks: np.ndarray
) -> np.ndarray:
    """The area under the ROC curve of each list; arrays are sorted by list and falling score."""
    new = np.ones(len(value), bool)  # the first of items with equal scores
    new[1:] = (value[1:] != value[:-1]) | (lists[1:] != lists[:-1])
    tie = np.cumsum(new) - 1
    others = np.bincount(tie, ~hit)  # in each tie
    last = np.cumsum(others)[tie]  # others up to the end of the tie, over all lists
    before = np.concatenate([[0], np.cumsum(np.bincount(lists, ~hit, len(lengths)))])
    below = before[lists + 1] - last + others[tie] / 2
    pairs = clicks * (lengths - clicks)
    return np.bincount(lists, np.where(hit, below, 0), len(lengths)) / pairs
