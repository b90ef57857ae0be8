"""Metrics: one value per user or example, and one function that reduces them.

Ranking metrics are computed from the *ranks* of the targets, for which ``count_not_below`` counts
on the device, without sorting the catalogue; the rest is small and uses numpy.
Ties are pessimistic, a NaN score never helps, and a user without targets (in a slice) has the value
NaN, which ``sum_count`` leaves out.

Conventions: relevance is binary; recall = hits / number of targets; precision = hits / k; F1 is
their harmonic mean; NDCG and MAP are normalised by the value of the best ranking of min(k, number
of targets) targets; MRR is the reciprocal rank of the best target. The discount of NDCG is
1 / log2(rank + 1), as in Burges et al., "Learning to rank using gradient descent", ICML 2005, and
in trec_eval. docs/metrics.md has the formulas and what other libraries count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import PAD

LOWEST = float(np.finfo(np.float32).min)
# Pairs compared at once: [64, I] scores stay in the cache, and padding costs at most one chunk.
_CHUNK = 64


def not_below(candidates: Array, targets: Array) -> Array:
    """Whether a candidate's score is at least the target's.

    True for a NaN candidate, False for a masked one (-inf). A NaN target has the lowest score.
    """
    return ~(candidates < jnp.where(jnp.isnan(targets), LOWEST, targets))


def count_not_below(
    scores: Float[Array, "B I"], rows: Int[Array, " P"], targets: Float[Array, " P"]
) -> Int[Array, " P"]:
    """The number of candidates of each target's row that are ``not_below`` it, itself included.

    scores: -inf at an item that is no candidate. rows: the row of each target; B at padding, for
    which the count is 0. targets: the targets' scores. Costs P * I comparisons.
    """
    num_rows = scores.shape[0]
    num_pairs = rows.shape[0]
    if num_pairs == 0:
        return jnp.zeros(0, jnp.int32)
    padding = (0, -num_pairs % _CHUNK)
    padded_rows = jnp.pad(rows, padding, constant_values=num_rows)
    padded_targets = jnp.pad(targets, padding)

    def count_chunk(i: Array, count: Array) -> Array:
        chunk_rows = lax.dynamic_slice_in_dim(padded_rows, i * _CHUNK, _CHUNK)
        candidates = scores.at[chunk_rows].get(mode="clip")
        threshold = lax.dynamic_slice_in_dim(padded_targets, i * _CHUNK, _CHUNK)
        # A sum of floats is vectorised, unlike one of integers (five times as fast on a CPU), and
        # exact up to 2^24 items.
        found = jnp.sum(jnp.where(not_below(candidates, threshold[:, None]), 1.0, 0.0), axis=1)
        return lax.dynamic_update_slice_in_dim(count, found, i * _CHUNK, axis=0)

    index = jnp.arange(num_pairs, dtype=jnp.int32)
    counted = rows < num_rows
    first = jnp.min(jnp.where(counted, index, num_pairs)) // _CHUNK
    stop = (jnp.max(jnp.where(counted, index + 1, 0)) + _CHUNK - 1) // _CHUNK
    counts = lax.fori_loop(first, stop, count_chunk, jnp.zeros(padded_rows.shape))[:num_pairs]
    return jnp.where(counted, counts.astype(jnp.int32), 0)


def ranks_of(
    counts: Int[np.ndarray, " P"],
    targets: Float[np.ndarray, " P"],
    rows: Int[np.ndarray, " P"],
    num_items: int,
) -> Int[np.ndarray, " P"]:
    """The 1-based rank of each target among the candidates of its row, pessimistic about ties.

    counts: the number of other candidates of the row that are ``not_below`` the target. targets:
    the targets' scores. rows: the row of each target, which may have several distinct targets.

    rank = 1 + (candidates that are no target of the row, with a score at least as high)
             + (targets of the row with a higher score, or with the same score and an earlier index)

    NaN is the worst score: a NaN target has the lowest score, any other NaN item the highest. A
    masked target cannot be recommended; its rank is num_items + 1.
    """
    if not len(rows):
        return np.zeros(0, np.int32)
    is_nan = np.isnan(targets)
    target = np.where(is_nan, np.float32(LOWEST), targets)
    # The count includes the row's other targets that tie with the target but come later ...
    order = np.lexsort((target, rows))  # stable: ties stay in the order of the pairs
    by_row, by_score = rows[order], target[order]
    run_ends = np.append((by_row[1:] != by_row[:-1]) | (by_score[1:] != by_score[:-1]), True)
    ends = np.flatnonzero(run_ends)
    later_ties = np.zeros_like(counts)
    later_ties[order] = ends[np.cumsum(run_ends) - run_ends] - np.arange(len(rows))
    # ... and the row's NaN targets, as if their scores were the highest. Both are subtracted.
    nan_targets = np.bincount(rows[is_nan], minlength=int(rows.max()) + 1)[rows]
    ranks = 1 + counts - later_ties - np.where(target > LOWEST, nan_targets, 0)
    return np.where(targets == -np.inf, num_items + 1, ranks).astype(np.int32)


@dataclass(frozen=True)
class Ranking:
    """The ranks of all targets, as pairs in any order, and the number of candidates of each user.

    rows: the user of each target, as an index into ``candidates``.
    """

    ranks: Int[np.ndarray, " P"]
    rows: Int[np.ndarray, " P"]
    candidates: Int[np.ndarray, " U"]

    def total(self, values: Float[np.ndarray, " P"] | None = None) -> Float[np.ndarray, " U"]:
        """The sum over the targets of each user; without values, the number of targets."""
        sums = np.bincount(self.rows, weights=values, minlength=len(self.candidates))
        return sums.astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nan = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def _hits(r: Ranking, k: int | None) -> np.ndarray:
    return (r.ranks <= (k or np.inf)).astype(np.float64)


def ndcg(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """Normalised discounted cumulative gain at k."""
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    gain = r.total(_hits(r, k) / np.log2(r.ranks + 1))
    return _ratio(gain, ideal[np.minimum(r.total(), k).astype(int)])


def recall(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """Hits among the k first items, divided by the number of targets."""
    return _ratio(r.total(_hits(r, k)), r.total())


def precision(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """Hits among the k first items, divided by k."""
    return _ratio(r.total(_hits(r, k)), np.where(r.total() > 0, k, 0))


def f1(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """The harmonic mean of precision and recall at k."""
    return _ratio(2 * r.total(_hits(r, k)), np.where(r.total() > 0, k + r.total(), 0))


def hit_rate(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """1 if any target is among the k first items, else 0."""
    return _ratio((r.total(_hits(r, k)) > 0).astype(np.float64), r.total() > 0)


def average_precision(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    """The precision at each hit among the k first items, averaged."""
    order = np.lexsort((r.ranks, r.rows))
    rows = r.rows[order]
    # The number of the user's targets with this rank or a better one.
    found = np.arange(1, len(rows) + 1) - np.searchsorted(rows, rows)
    precisions = np.empty(len(rows))
    precisions[order] = found / r.ranks[order]
    return _ratio(r.total(_hits(r, k) * precisions), np.minimum(r.total(), k))


def mrr(r: Ranking, k: int | None = None) -> Float[np.ndarray, " U"]:
    """The reciprocal rank of the best target; 0 if it is not among the k first items."""
    best = np.zeros(len(r.candidates))
    np.maximum.at(best, r.rows, _hits(r, k) / r.ranks)
    return _ratio(best, r.total() > 0)


def auc(r: Ranking) -> Float[np.ndarray, " U"]:
    """The probability that a target is ranked above a candidate that is no target.

    Ties count against the target; 1 if all candidates are targets.
    """
    n = r.total()
    others = np.maximum(r.candidates - n, 0)
    # The number of pairs in which the other candidate is ranked above the target.
    above = r.total(r.ranks.astype(np.float64)) - n * (n + 1) / 2
    return np.where(n > 0, 1 - above / np.maximum(n * others, 1), np.nan)


def coverage(lists: Int[np.ndarray, "U K"], num_items: int) -> float:
    """The share of the catalogue that is in at least one list; PAD entries are skipped."""
    return len(np.unique(lists[lists != PAD])) / num_items


def novelty(
    lists: Int[np.ndarray, "U K"], item_counts: Int[np.ndarray, " I"]
) -> Float[np.ndarray, " U"]:
    """The mean self-information -log2 p(item) of each list, in bits; PAD entries are skipped.

    p is the item's share of the train interactions with add-one smoothing, (count + 1) / (total +
    I), so that it is not 0 for an item without interactions. Source: Zhou et al., "Solving the
    apparent diversity-accuracy dilemma of recommender systems", PNAS 2010.
    """
    bits = np.log2(item_counts.sum() + len(item_counts)) - np.log2(item_counts + 1.0)
    there = lists != PAD
    return _ratio(np.where(there, bits[lists], 0.0).sum(axis=1), there.sum(axis=1))


AT_K: dict[str, Callable[[Ranking, int], np.ndarray]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "f1": f1,
    "map": average_precision,
    "hit_rate": hit_rate,
}
WHOLE: dict[str, Callable[[Ranking], np.ndarray]] = {"mrr": mrr, "auc": auc}
LISTS = ("coverage", "novelty")


def expand(metrics: Sequence[str], ks: Sequence[int]) -> list[str]:
    """The names of metrics with their cut-offs.

    ('ndcg', 'mrr', 'recall@5'), (10, 20) -> ['ndcg@10', 'ndcg@20', 'mrr', 'recall@5']. Raises
    InputError for an unknown metric or a cut-off below 1.
    """
    names: list[str] = []
    for metric in metrics:
        base, at, cut = metric.partition("@")
        known = [*AT_K, *LISTS, "mrr"] if at else [*AT_K, *LISTS, *WHOLE]
        if base not in known:
            raise InputError(
                f"eval.metrics: unknown ranking metric {metric!r}{nearest(base, known)}"
            )
        cuts = [cut] if at else [str(k) for k in ks]
        if wrong := [c for c in cuts if not (c.isdecimal() and int(c) > 0)]:
            raise InputError(
                f"eval.ks: cut-off {wrong[0]!r} of {metric!r} must be a whole number of at least 1"
            )
        names += [base] if base in WHOLE and not at else [f"{base}@{int(c)}" for c in cuts]
    return list(dict.fromkeys(names))


def split_name(name: str) -> tuple[str, int | None]:
    """'ndcg@10' -> ('ndcg', 10); 'mrr' -> ('mrr', None)."""
    base, at, cut = name.partition("@")
    return base, int(cut) if at else None


def rank_metrics(names: Sequence[str], r: Ranking) -> dict[str, Float[np.ndarray, " U"]]:
    """The value of each user, f32 [U], NaN for a user without targets.

    Metrics of lists (coverage, novelty) are skipped.
    """
    values = {}
    for name in names:
        base, k = split_name(name)
        if base in LISTS:
            continue
        if base in AT_K and k:
            value = AT_K[base](r, k)
        elif base == "mrr":
            value = mrr(r, k)
        else:
            value = WHOLE[base](r)
        values[name] = value.astype(np.float32)
    return values


def sum_count(values: Float[np.ndarray, " N"]) -> tuple[float, int]:
    """The sum and the count of the values that are not NaN; those of several parts may be added."""
    there = ~np.isnan(values)
    return float(np.sum(values[there], dtype=np.float64)), int(there.sum())


def mean(values: Float[np.ndarray, " N"]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    total, count = sum_count(values)
    return total / count if count else float("nan")


def log_loss(
    probabilities: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """-ln p(label), with p clipped at the machine epsilon of its type; NaN counts as p = 0."""
    eps = np.finfo(probabilities.dtype).eps
    picked = np.nan_to_num(probabilities[np.arange(len(labels)), labels], nan=0.0)
    return -np.log(np.clip(picked, eps, 1 - eps))


def rating_error(
    probabilities: Float[np.ndarray, "N C"],
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
    """|expected rating - rating|, with the expectation over the classes.

    values: the rating of each class. A row with NaN has the largest possible error.
    """
    worst = np.abs(values[None, :] - ratings[:, None]).max(axis=1)
    error = np.abs(probabilities @ values - ratings)
    return np.where(np.isnan(error), worst, error)


def binary_auc(scores: Float[np.ndarray, " N"], positive: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative; ties count one half.

    NaN scores are the worst. NaN if there are no positives or no negatives.
    """
    worst = np.where(positive, -np.inf, np.inf)
    scores = np.where(np.isnan(scores), worst, scores)
    positives = scores[positive]
    negatives = np.sort(scores[~positive])
    if not (len(positives) and len(negatives)):
        return float("nan")
    below = np.searchsorted(negatives, positives, "left")
    below = below + np.searchsorted(negatives, positives, "right")
    return float(below.mean() / (2 * len(negatives)))


def predictions(probabilities: Float[np.ndarray, "N C"]) -> Int[np.ndarray, " N"]:
    """The most probable class of each row, the first of ties; C, no class, for a row with NaN."""
    bad = np.isnan(probabilities).any(axis=1)
    return np.where(bad, probabilities.shape[1], np.argmax(probabilities, axis=1))


def rate_metrics(
    probabilities: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"],
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"] | None = None,
) -> dict[str, float]:
    """accuracy, precision, recall, f1, auc, log_loss (nats), and rmse and mae of the rating.

    values: the rating of each class. ratings: the true ratings; None: values[labels]. The predicted
    rating is the expectation over the classes. With two classes, precision, recall, F1 and AUC are
    those of the last class; with more they are macro averages over the classes that occur among
    labels or predictions (AUC: one against the rest, over the classes among the labels). A row with
    NaN predicts no class and is wrong. 0 / 0 counts as 0.
    """
    num_classes = probabilities.shape[1]
    bad = np.isnan(probabilities).any(axis=1)
    predicted = predictions(probabilities)
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    guesses = np.bincount(predicted, minlength=num_classes + 1)[:num_classes]
    actual = np.bincount(labels, minlength=num_classes)
    scored = np.array([1]) if num_classes == 2 else np.flatnonzero(guesses + actual)
    aucs = [binary_auc(np.where(bad, np.nan, probabilities[:, c]), labels == c) for c in scored]
    error = rating_error(probabilities, values, values[labels] if ratings is None else ratings)
    return {
        "accuracy": mean((predicted == labels).astype(np.float64)),
        "precision": float(np.mean((hits / np.maximum(guesses, 1))[scored])),
        "recall": float(np.mean((hits / np.maximum(actual, 1))[scored])),
        "f1": float(np.mean((2 * hits / np.maximum(guesses + actual, 1))[scored])),
        "auc": mean(np.array(aucs)),
        "log_loss": mean(log_loss(probabilities, labels)),
        "rmse": float(np.sqrt(mean(error**2))),
        "mae": mean(error),
    }
