"""Evaluates rankings of the full catalogue and class probabilities, a batch at a time.

A score function maps user indices (int32 [B], numpy) to scores [B, I] on the device, or to their
factors (contexts [B, D], vectors [I, D] and bias [I]), from which no [B, I] array is ever created.
On a mesh that does not divide I it may have further items at the end. It is called with one batch
shape. What it finds stays on the device until all users are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.data.dataset import Dataset
from kd_jax.data.splits import TEST
from kd_jax.devices.sharding import mesh_of, on_one_device, spare
from kd_jax.evaluation import metrics as m
from kd_jax.evaluation import ranking
from kd_jax.evaluation.batching import CSR, NO_PAIRS, RowItemBatches, distinct, gather, stream

ScoreFn = Callable[[np.ndarray], Array | Factors]

WIDTH = 64  # of the factors of a baseline

METRICS = (
    "ndcg",
    "recall",
    "precision",
    "f1",
    "map",
    "hit_rate",
    "mrr",
    "auc",
    "coverage",
    "novelty",
)


@dataclass(frozen=True)
class RankResult:
    """The result of ``evaluate_rank``.

    metrics, slices: means over users; a slice without any target is absent. per_user,
    per_user_slices: the values of each user, f32 [U] in the order of ``users``, NaN where the user
    has no target (in that slice). counts: users and targets of 'all' and of each slice. repeats:
    targets that are left out because the user has already seen the item.
    """

    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    per_user: dict[str, np.ndarray]
    per_user_slices: dict[str, dict[str, np.ndarray]]
    users: np.ndarray
    counts: dict[str, dict[str, int]]
    repeats: int


def item_slices(item_counts: Int[np.ndarray, " I"]) -> dict[str, Bool[np.ndarray, " I"]]:
    """The kinds of items by their number of train interactions, as masks.

    'cold' items have none and 'warm' items have some. 'head' is the most popular fifth of the warm
    items (rounded up, ties by index), and 'tail' the other four fifths.
    """
    warm = item_counts > 0
    by_popularity = np.argsort(-item_counts, kind="stable")
    head = np.zeros_like(warm)
    head[by_popularity[: -(-int(warm.sum()) // 5)]] = True
    return {"warm": warm, "cold": ~warm, "head": head, "tail": warm & ~head}


def popularity(dataset: Dataset) -> ScoreFn:
    """The popularity baseline: the score of an item is its number of train interactions."""
    return same_for_all(dataset.item_counts)


def same_for_all(scores: np.ndarray) -> ScoreFn:
    """A score function that gives all users the same scores [I].

    Its factors are zeros, of the default width of models: they are then ranked by one program.
    """
    bias = jnp.asarray(scores, jnp.float32)
    vectors = jnp.zeros((len(bias), WIDTH))
    return lambda users: Factors(jnp.zeros((len(users), WIDTH)), vectors, bias)


def eval_users(dataset: Dataset, split: int) -> Int[np.ndarray, " U"]:
    """The users with a target in the split and a train or fold-in interaction, in ascending order.

    Every kind of model has a history of these users.
    """
    known = dataset.history(1)
    held_out = dataset.targets(split)
    return np.flatnonzero((np.diff(known[0]) > 0) & (np.diff(held_out[0]) > 0)).astype(np.int32)


def chosen_users(users: Int[np.ndarray, " U"], most: int) -> Int[np.ndarray, " V"]:
    """At most so many ``users``, always the same, drawn at random; 0: all."""
    if not 0 < most < len(users):
        return users
    return np.sort(np.random.default_rng(0).choice(users, most, replace=False))


def judged_users(
    dataset: Dataset, split: int, max_users: int, with_cold: bool
) -> Int[np.ndarray, " U"]:
    """The users of an evaluation, ascending; see ``RankOptions``."""
    users = eval_users(dataset, split)
    found = chosen_users(users, max_users)
    if with_cold and len(found) < len(users):
        rows, items = gather(dataset.targets(split), users)
        found = np.union1d(found, users[rows[dataset.item_counts[items] == 0]])
    return found


def _scores(
    score_fn: ScoreFn, users: np.ndarray, num_items: int | None
) -> tuple[Array | Factors, int]:
    """The scores of ``users`` and the number of items; raises ValueError for a wrong shape."""
    scores = score_fn(users)
    if isinstance(scores, Factors):
        shape: tuple[int, ...] = (len(scores.contexts), len(scores.bias))
    else:
        shape = scores.shape
    more = 0 if num_items is None else spare(num_items, mesh_of(scores))
    items_fit = len(shape) == 2 and num_items in (None, shape[1], shape[1] - more)
    if not items_fit or shape[0] != len(users):
        raise ValueError(
            f"score_fn returned shape {shape} for {len(users)} users and {num_items} items"
        )
    # Of baselines and of models on a mesh of one device alike, so that one program ranks both.
    return on_one_device(scores), num_items or shape[1]


def top_k(
    score_fn: ScoreFn,
    users: Int[np.ndarray, " U"],
    k: int,
    seen: CSR | None = None,
    *,
    batch_size: int = 256,
    num_items: int | None = None,
) -> tuple[Int[np.ndarray, "U k"], Float[np.ndarray, "U k"]]:
    """The k best items of each user, best first, and their scores.

    Ties go to the lower index, and NaN ranks last. seen: items that are excluded, as a CSR array
    over all users, such as ``dataset.history(split)``. Where a user has fewer than k candidates,
    the list ends with PAD and scores of -inf. batch_size: users that are scored at once. num_items:
    the number of columns of the scores that are items; None: all. Raises InputError if k < 1.
    """
    if k < 1:
        raise InputError(f"top-k: k is {k}; it must be at least 1")
    users = np.asarray(users)
    if not len(users):
        return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
    pairs = gather(seen, users) if seen is not None else NO_PAIRS
    masked = RowItemBatches(pairs, len(users), batch_size)

    def step(b: int, block: np.ndarray) -> tuple[Array, Array]:
        scores, count = _scores(score_fn, block, num_items)
        return ranking.top_k(scores, masked.batch(b), num_items=count, k=k, mesh=mesh_of(scores))

    items, values = zip(*stream(step, users, batch_size), strict=True)
    return np.concatenate(items)[: len(users)], np.concatenate(values)[: len(users)]


@dataclass(frozen=True)
class RankOptions:
    """The options of ``evaluate_rank``.

    metrics, ks: names, and the cut-offs of those that have one (``metrics.expand``). batch_size:
    users that are scored at once. slices: whether to compute the metrics of slices. exclude_seen:
    whether items of the history are excluded from the ranking. max_users: evaluate at most so many
    users, a fixed random sample; 0: all. with_cold: evaluate all users with a cold target, too.
    """

    metrics: Sequence[str] = METRICS
    ks: Sequence[int] = (10, 20)
    batch_size: int = 256
    slices: bool = True
    exclude_seen: bool = True
    max_users: int = 0
    with_cold: bool = False


@dataclass(frozen=True)
class _Targets:
    """The users of an evaluation, and their distinct targets as pairs (index into users, item)."""

    users: Int[np.ndarray, " U"]
    rows: Int[np.ndarray, " P"]
    items: Int[np.ndarray, " P"]
    kinds: dict[str, Bool[np.ndarray, " I"]]  # of ``item_slices``

    @property
    def is_cold(self) -> Bool[np.ndarray, " P"]:
        return self.kinds["cold"][self.items]


@dataclass(frozen=True)
class _Ranks:
    """Ranks of the targets [P], and numbers of candidates [U].

    cold_ranks, cold_candidates: those of the cold targets among the cold items. lists: the top-k
    lists [U, K]. None where not computed.
    """

    ranks: np.ndarray
    candidates: np.ndarray
    cold_ranks: np.ndarray | None
    cold_candidates: np.ndarray | None
    lists: np.ndarray | None


def evaluate_rank(score_fn: ScoreFn, dataset: Dataset, split: int, **fields: Any) -> RankResult:
    """Ranks every target of ``split`` (1 valid, 2 test) among all items outside the user's history.

    fields: those of ``RankOptions``. The slices 'warm', 'cold', 'head' and 'tail' (``item_slices``)
    have only the targets of this kind, ranked among all items. 'cold_only' ranks cold targets among
    cold items. 'short' and 'long' have the users with a history of at most, or more than, the
    median length. A target that is in the user's history cannot be recommended: it is left out and
    counted in ``repeats``, except with exclude_seen=False.

    Raises InputError for an unknown metric, and if no user can be evaluated.
    """
    options = RankOptions(**fields)
    names = m.expand(options.metrics, options.ks)
    targets = _targets(dataset, split, options)
    lists_k = max((k or 0 for base, k in map(m.split_name, names) if base in m.LISTS), default=0)
    found = _rank(score_fn, dataset, split, targets, lists_k, options)
    kept = found.ranks <= dataset.num_items  # an excluded target has rank I + 1
    rankings = _rankings(targets, found, kept, options.slices)
    counts = {
        name: _count(r.total()) for name, r in rankings.items() if len(r.ranks) or name == "all"
    }
    values = {name: m.rank_metrics(names, rankings[name]) for name in counts}
    per_user = values.pop("all")
    if options.slices:
        lengths = np.diff(dataset.history(split)[0])[targets.users]
        by_length, length_counts = _by_length(lengths, rankings["all"].total(), per_user)
        values |= by_length
        counts |= length_counts

    means = {key: m.mean(v) for key, v in per_user.items()}
    for name, (base, k) in zip(names, map(m.split_name, names), strict=True):
        if base in m.LISTS and found.lists is not None:
            lists = found.lists[:, :k]
            if base == "coverage":
                means[name] = m.coverage(lists, dataset.num_items)
            else:
                per_user[name] = m.novelty(lists, dataset.item_counts).astype(np.float32)
                means[name] = m.mean(per_user[name])
    return RankResult(
        metrics={name: means[name] for name in names},
        slices={name: {key: m.mean(v) for key, v in part.items()} for name, part in values.items()},
        per_user=per_user,
        per_user_slices=values,
        users=targets.users,
        counts=counts,
        repeats=int(np.sum(~kept)),
    )


def _targets(dataset: Dataset, split: int, options: RankOptions) -> _Targets:
    users = judged_users(dataset, split, options.max_users, options.with_cold)
    if not len(users):
        raise InputError(
            f"{dataset.name}: no user has both an item to predict in split {split} and an earlier"
            " interaction; choose another data.split ('leave_one_out' holds out two items of"
            " each user) or lower data.min_interactions"
        )
    rows, items = distinct(*gather(dataset.targets(split), users), dataset.num_items)
    return _Targets(users, rows, items, item_slices(dataset.item_counts))


def _rank(
    score_fn: ScoreFn,
    dataset: Dataset,
    split: int,
    targets: _Targets,
    lists_k: int,
    options: RankOptions,
) -> _Ranks:
    """Ranks the targets, and makes lists of the ``lists_k`` best items, a batch at a time."""
    users = targets.users
    is_cold = targets.is_cold
    with_cold = options.slices and bool(is_cold.any())

    def batches(pairs: tuple[np.ndarray, np.ndarray]) -> RowItemBatches:
        return RowItemBatches(pairs, len(users), options.batch_size)

    seen = batches(gather(dataset.history(split), users) if options.exclude_seen else NO_PAIRS)
    if options.exclude_seen:  # as large for all splits, so that they share a compiled program
        seen.size = max(seen.size, batches(gather(dataset.history(TEST), users)).size)
    all_targets = batches((targets.rows, targets.items))
    cold = batches((targets.rows[is_cold], targets.items[is_cold]))
    cold_items = jnp.asarray(targets.kinds["cold"])

    def step(b: int, block: np.ndarray) -> dict[str, Array]:
        scores, count = _scores(score_fn, block, dataset.num_items)
        cold_part = (cold_items, cold.batch(b)) if with_cold else None
        how: Any = {"num_items": count, "k": lists_k, "mesh": mesh_of(scores)}
        return ranking.target_counts(scores, seen.batch(b), all_targets.batch(b), cold_part, **how)

    results = stream(step, users, options.batch_size)
    fetched = {key: [part[key] for part in results] for key in results[0]}

    def by_user(key: str) -> np.ndarray | None:
        return np.concatenate(fetched[key])[: len(users)] if key in fetched else None

    def ranks(kind: str, pairs: RowItemBatches) -> np.ndarray:
        counts, scores = (pairs.collect(fetched[f"{kind}{name}"]) for name in ("counts", "scores"))
        return m.ranks_of(counts, scores, pairs.rows, dataset.num_items)

    candidates = by_user("candidates")
    assert candidates is not None
    return _Ranks(
        ranks("", all_targets),
        candidates,
        ranks("cold_", cold) if with_cold else None,
        by_user("cold_candidates"),
        by_user("lists"),
    )


def _rankings(
    targets: _Targets, found: _Ranks, kept: np.ndarray, slices: bool
) -> dict[str, m.Ranking]:
    """The rankings of all ``kept`` targets ('all') and of the slices by target."""
    rows = targets.rows
    rankings = {"all": m.Ranking(found.ranks[kept], rows[kept], found.candidates)}
    if slices:
        for kind, of_kind in targets.kinds.items():
            part = kept & of_kind[targets.items]
            rankings[kind] = m.Ranking(found.ranks[part], rows[part], found.candidates)
    if found.cold_ranks is not None and found.cold_candidates is not None:
        is_cold = targets.is_cold
        part = kept[is_cold]
        rankings["cold_only"] = m.Ranking(
            found.cold_ranks[part], rows[is_cold][part], found.cold_candidates
        )
    return rankings


def _by_length(
    lengths: np.ndarray, targets: np.ndarray, per_user: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, int]]]:
    """The values and counts of the slices 'short' and 'long', where a user has a target.

    lengths, targets: [U], of each user's history, and the number of each user's targets.
    """
    values = {}
    counts = {}
    short = lengths <= np.median(lengths)
    for name, chosen in (("short", short), ("long", ~short)):
        if targets[chosen].any():
            values[name] = {
                key: np.where(chosen, v, np.float32(np.nan)) for key, v in per_user.items()
            }
            counts[name] = _count(targets[chosen])
    return values, counts


def _count(targets: np.ndarray) -> dict[str, int]:
    return {"users": int(np.sum(targets > 0)), "targets": int(targets.sum())}


def evaluate_rate(
    logits_fn: Callable[[np.ndarray], Array],
    labels: Int[np.ndarray, " N"],
    *,
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"] | None = None,
    batch_size: int = 4096,
) -> tuple[dict[str, float], Float[np.ndarray, "N C"]]:
    """``metrics.rate_metrics`` of a model, and its class probabilities.

    logits_fn: maps row numbers (int32 [B], numpy) to class logits [B, C]. labels: the class of each
    row. values: the rating of each class. ratings: the true ratings; None: those of the labels. The
    softmax is in f64, so that small probabilities have an exact log loss. Raises InputError if
    there are no rows.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise InputError("rate evaluation: no rated pair to evaluate; choose another data.split")
    results = stream(lambda _, rows: logits_fn(rows), np.arange(len(labels)), batch_size)
    logits = np.concatenate(results)[: len(labels)].astype(np.float64)
    # A row with an infinite logit becomes NaN, which the metrics count as wrong.
    with np.errstate(invalid="ignore"):
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    values = np.asarray(values, np.float64)
    return m.rate_metrics(probabilities, labels, values, ratings), probabilities
