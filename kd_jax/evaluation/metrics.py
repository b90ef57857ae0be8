"""Metrics: one value per user (or per example), and one place that reduces them.

Ranking metrics start from the *ranks* of the held-out items, which `count_not_below` and `ranks_of`
find on the device without sorting the catalogue; everything after that is small and done in numpy.
Ties are pessimistic, a NaN score never helps, and a user (or a slice) without any target has the
value NaN, which `sum_count` leaves out.

Conventions: relevance is binary; recall = hits / number of targets; precision = hits / k; F1 is
their harmonic mean; NDCG (Järvelin & Kekäläinen 2002, log2 discount) and MAP are normalised by the
best that min(k, number of targets) allows; MRR is the reciprocal rank of the best target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import PAD

LOWEST = float(np.finfo(np.float32).min)
_CHUNK = (
    64  # pairs compared at once: [64, I] scores stay in cache, and padding costs at most one chunk
)


def not_below(candidates: Array, targets: Array) -> Array:
    """Whether a candidate scores at least as high as a target: true for NaN, false for a masked one
    (-inf). The score of a target that is NaN counts as the lowest.
    """
    return ~(candidates < jnp.where(jnp.isnan(targets), LOWEST, targets))


def count_not_below(
    scores: Float[Array, "B I"], rows: Int[Array, " P"], targets: Float[Array, " P"]
) -> Int[Array, " P"]:
    """How many candidates of each target's row are ``not_below`` it, itself included.

    targets: their scores. A pair with rows[p] == B is not counted: 0. A score of -inf marks
    an item that is no candidate. Costs P * I comparisons.
    """
    num_rows, num_pairs = scores.shape[0], rows.shape[0]
    if num_pairs == 0:
        return jnp.zeros(0, jnp.int32)
    padding = (0, -num_pairs % _CHUNK)
    padded_rows = jnp.pad(rows, padding, constant_values=num_rows)
    padded_targets = jnp.pad(targets, padding)

    def count_chunk(i: Array, count: Array) -> Array:
        candidates = scores.at[lax.dynamic_slice_in_dim(padded_rows, i * _CHUNK, _CHUNK)].get(
            mode="clip"
        )
        threshold = lax.dynamic_slice_in_dim(padded_targets, i * _CHUNK, _CHUNK)
        # A float sum vectorises where an integer one does not (five times faster on CPU); exact up
        # to 2^24 items.
        found = jnp.sum(jnp.where(not_below(candidates, threshold[:, None]), 1.0, 0.0), axis=1)
        return lax.dynamic_update_slice_in_dim(count, found, i * _CHUNK, axis=0)

    index = jnp.arange(num_pairs, dtype=jnp.int32)
    counted = rows < num_rows
    first = jnp.min(jnp.where(counted, index, num_pairs)) // _CHUNK
    stop = (jnp.max(jnp.where(counted, index + 1, 0)) + _CHUNK - 1) // _CHUNK
    counts = lax.fori_loop(first, stop, count_chunk, jnp.zeros(padded_rows.shape))[:num_pairs]
    return jnp.where(counted, counts.astype(jnp.int32), 0)


def ranks_of(
    counts: Int[Array, " P"],
    targets: Float[Array, " P"],
    rows: Int[Array, " P"],
    num_rows: int,
    num_items: int,
) -> Int[Array, " P"]:
    """1-based rank of each target among the candidates of its row, pessimistic about ties.

    counts: how many other candidates of the row are ``not_below`` it (``count_not_below`` less
    itself).

    A pair p is a target of row rows[p] with score targets[p]; a row may have any number of distinct
    targets, and a pair with rows[p] == num_rows is padding (its rank means nothing).

    rank = 1 + (candidates that are no target of the row, with a score at least as high)
             + (targets of the row with a higher score, or the same score and an earlier place in
                the list)

    A NaN score is the worst there is: that of a target counts as the lowest, that of any other item
    as the highest. A target that is itself masked can never be recommended; its rank is num_items +
    1.
    """
    if not len(rows):
        return jnp.zeros(0, jnp.int32)
    target = jnp.where(jnp.isnan(targets), LOWEST, targets)
    index = jnp.arange(len(rows), dtype=jnp.int32)
    # The count holds, wrongly, the row's other targets that tie with it but come later ...
    by_row, by_score, order = lax.sort((rows, target, index), num_keys=3)
    run_ends = jnp.append((by_row[1:] != by_row[:-1]) | (by_score[1:] != by_score[:-1]), True)
    run_end = lax.cummin(jnp.where(run_ends, index, len(rows)), reverse=True)
    later_ties = jnp.zeros_like(index).at[order].set(run_end - index)
    # ... and the row's NaN targets, which were counted as if they were competitors.
    nan_targets = (
        jax.ops.segment_sum(jnp.isnan(targets).astype(jnp.int32), rows, num_rows)
        .at[rows]
        .get(mode="clip")
    )
    ranks = 1 + counts - later_ties - jnp.where(target > LOWEST, nan_targets, 0)
    return jnp.where(targets == -jnp.inf, num_items + 1, ranks)


@dataclass(frozen=True)
class Ranking:
    """The ranks of all targets: flattened pairs, in any order, and the number of candidates of each
    user.
    """

    ranks: Int[np.ndarray, " P"]
    rows: Int[np.ndarray, " P"]
    candidates: Int[np.ndarray, " U"]

    def total(self, values: Float[np.ndarray, " P"] | None = None) -> Float[np.ndarray, " U"]:
        """Sum over the targets of each user; without values, the number of targets."""
        return np.bincount(self.rows, weights=values, minlength=len(self.candidates)).astype(
            np.float64
        )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )


def _hits(r: Ranking, k: int | None) -> np.ndarray:
    return (r.ranks <= (k or np.inf)).astype(np.float64)


def ndcg(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return _ratio(
        r.total(_hits(r, k) / np.log2(r.ranks + 1)), ideal[np.minimum(r.total(), k).astype(int)]
    )


def recall(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    return _ratio(r.total(_hits(r, k)), r.total())


def precision(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    return _ratio(r.total(_hits(r, k)), k * (r.total() > 0))


def f1(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    return _ratio(2 * r.total(_hits(r, k)), (k + r.total()) * (r.total() > 0))


def hit_rate(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    return _ratio((r.total(_hits(r, k)) > 0).astype(np.float64), r.total() > 0)


def average_precision(r: Ranking, k: int) -> Float[np.ndarray, " U"]:
    order = np.lexsort((r.ranks, r.rows))
    rows = r.rows[order]
    found = np.arange(1, len(rows) + 1) - np.searchsorted(
        rows, rows
    )  # targets of the user ranked this high or higher
    precisions = np.empty(len(rows))
    precisions[order] = found / r.ranks[order]
    return _ratio(r.total(_hits(r, k) * precisions), np.minimum(r.total(), k))


def mrr(r: Ranking, k: int | None = None) -> Float[np.ndarray, " U"]:
    best = np.zeros(len(r.candidates))
    np.maximum.at(best, r.rows, _hits(r, k) / r.ranks)
    return _ratio(best, r.total() > 0)


def auc(r: Ranking) -> Float[np.ndarray, " U"]:
    """Chance that a target outranks a candidate that is no target; ties count against it. 1 if
    there is no other.
    """
    n = r.total()
    others = np.maximum(r.candidates - n, 0)
    above = (
        r.total(r.ranks.astype(np.float64)) - n * (n + 1) / 2
    )  # pairs in which the other item wins
    return np.where(n > 0, 1 - above / np.maximum(n * others, 1), np.nan)


def coverage(lists: Int[np.ndarray, "U K"], num_items: int) -> float:
    """Share of the catalogue that is in at least one list; PAD entries are skipped."""
    return len(np.unique(lists[lists != PAD])) / num_items


def novelty(
    lists: Int[np.ndarray, "U K"], item_counts: Int[np.ndarray, " I"]
) -> Float[np.ndarray, " U"]:
    """Mean self-information -log2 p(item) of each list, in bits; PAD entries are skipped.

    p is an item's share of the training interactions with add-one smoothing, (count + 1) / (total +
    I), so that an item nobody has touched is very novel instead of infinitely so (Zhou et al.
    2010).
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
    """('ndcg', 'mrr', 'recall@5'), (10, 20) -> ['ndcg@10', 'ndcg@20', 'mrr', 'recall@5'].

    Raises InputError on an unknown metric or a cut-off below 1.
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
    """Per-user values, f32, NaN for a user without targets. Names of list metrics (coverage,
    novelty) are skipped.
    """
    values = {}
    for name in names:
        base, k = split_name(name)
        if base not in LISTS:
            value = (
                AT_K[base](r, k)
                if base in AT_K and k
                else mrr(r, k)
                if base == "mrr"
                else WHOLE[base](r)
            )
            values[name] = value.astype(np.float32)
    return values


def sum_count(values: Float[np.ndarray, " N"]) -> tuple[float, int]:
    """The one reduction: (sum, count) of the values that exist. Sums and counts of several parts
    may be added.
    """
    there = ~np.isnan(values)
    return float(np.sum(values[there], dtype=np.float64)), int(there.sum())


def mean(values: Float[np.ndarray, " N"]) -> float:
    """Mean of the values that exist, NaN if there is none."""
    total, count = sum_count(values)
    return total / count if count else float("nan")


def log_loss(
    probabilities: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """-ln p(label), with p kept above the machine epsilon of its type; a NaN counts as p = 0."""
    eps = np.finfo(probabilities.dtype).eps
    picked = np.nan_to_num(probabilities[np.arange(len(labels)), labels], nan=0.0)
    return -np.log(np.clip(picked, eps, 1 - eps))


def rating_error(
    probabilities: Float[np.ndarray, "N C"],
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
    """|expected rating - rating|, the expectation taken over the classes; a NaN counts as the worst
    possible answer.
    """
    worst = np.abs(values[None, :] - ratings[:, None]).max(axis=1)
    error = np.abs(probabilities @ values - ratings)
    return np.where(np.isnan(error), worst, error)


def binary_auc(scores: Float[np.ndarray, " N"], positive: np.ndarray) -> float:
    """Chance that a positive outscores a negative, ties counted half; NaN scores lose. NaN if a
    side is empty.
    """
    worst = np.where(positive, -np.inf, np.inf)
    scores = np.where(np.isnan(scores), worst, scores)
    wins, negatives = scores[positive], np.sort(scores[~positive])
    if not (len(wins) and len(negatives)):
        return float("nan")
    below = np.searchsorted(negatives, wins, "left") + np.searchsorted(negatives, wins, "right")
    return float(below.mean() / (2 * len(negatives)))


def predictions(probabilities: Float[np.ndarray, "N C"]) -> Int[np.ndarray, " N"]:
    """The first most probable class of each row; C, which is none, for a row with NaN."""
    bad = np.isnan(probabilities).any(axis=1)
    return np.where(bad, probabilities.shape[1], np.argmax(probabilities, axis=1))


def rate_metrics(
    probabilities: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"],
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"] | None = None,
) -> dict[str, float]:
    """accuracy, precision, recall, f1, auc, log_loss (nats), rmse and mae of the expected rating.

    `values` gives the rating each class stands for; `ratings` the true ratings (default:
    values[labels]). With two classes precision, recall, F1 and AUC are those of the last class;
    with more they are macro averages, over the classes that occur among labels or predictions (AUC:
    one against the rest, over the classes among the labels). A row with NaN predicts nothing and is
    wrong (``predictions``). 0 / 0 counts as 0.
    """
    num_classes = probabilities.shape[1]
    bad, predicted = np.isnan(probabilities).any(axis=1), predictions(probabilities)
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
