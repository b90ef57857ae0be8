"""Evaluation: every held-out item ranked against the full catalogue, a batch of users at a time.

A scorer is a function of user indices (int32 [B], numpy) that returns scores [B, I] on the device,
or their factors (contexts [B, D], vectors [I, D] and bias [I]), of which no [B, I] array is ever
made; with more items at the end where the devices that share them do not divide I. It is called
with one fixed batch shape. Ranks stay on the device until all users are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.data.dataset import Dataset
from kd_jax.devices.sharding import fetch, mesh_of, spare
from kd_jax.evaluation import metrics as m
from kd_jax.evaluation import ranking

ScoreFn = Callable[[np.ndarray], Array | Factors]
CSR = tuple[np.ndarray, np.ndarray]  # (indptr [U + 1], items)

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
NOWHERE = np.iinfo(np.int32).max  # the item of a pair that fills up
_NO_PAIRS = (np.zeros(0, np.int32), np.zeros(0, np.int32))
_LOOK_AHEAD = (
    2  # batches in flight: the device never idles, and memory stays at a few blocks of scores
)


@dataclass(frozen=True)
class RankResult:
    """What `evaluate_rank` found. `metrics` and `slices` are means over users; the rest is what
    they are made of.

    A slice that no evaluated user has a target in is absent. Per-user values are f32 [U], in the
    order of `users`, NaN where the user has no target (in that slice). `counts` gives users and
    targets of 'all' and of each slice.
    """

    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    per_user: dict[str, np.ndarray]
    per_user_slices: dict[str, dict[str, np.ndarray]]
    users: np.ndarray
    counts: dict[str, dict[str, int]]
    repeats: int  # targets left out because the user had already seen the item


def item_slices(item_counts: Int[np.ndarray, " I"]) -> dict[str, Bool[np.ndarray, " I"]]:
    """Kinds of items by their number of training interactions.

    'cold' has none, 'warm' has some; 'head' is the most popular fifth of the warm items (rounded
    up, ties by index) and 'tail' the other four fifths. Cold items belong to neither.
    """
    warm = item_counts > 0
    by_popularity = np.argsort(-item_counts, kind="stable")
    head = np.zeros_like(warm)
    head[by_popularity[: -(-int(warm.sum()) // 5)]] = True
    return {"warm": warm, "cold": ~warm, "head": head, "tail": warm & ~head}


def popularity(dataset: Dataset) -> ScoreFn:
    """The baseline that scores every item by its number of training interactions, the same for
    everybody.
    """
    return same_for_all(dataset.item_counts)


def same_for_all(scores: np.ndarray) -> ScoreFn:
    """A scorer of items [I] that knows nothing of users."""
    bias = jnp.asarray(scores, jnp.float32)
    return lambda users: Factors(jnp.zeros((len(users), 1)), jnp.zeros((len(bias), 1)), bias)


def eval_users(dataset: Dataset, split: int) -> Int[np.ndarray, " U"]:
    """Users with a target in the split and a train (or fold-in) interaction, in ascending order:
    those of whom every kind of model can know something.
    """
    known, held_out = dataset.history(1), dataset.targets(split)
    return np.flatnonzero((np.diff(known[0]) > 0) & (np.diff(held_out[0]) > 0)).astype(np.int32)


def _gather(csr: CSR, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flattened (position in `users`, item) pairs, without a loop over users."""
    indptr, items = csr
    length = indptr[users + 1] - indptr[users]
    rows = np.repeat(np.arange(len(users), dtype=np.int32), length)
    shift = np.repeat(indptr[users] - (np.cumsum(length) - length), length)
    return rows, items[np.arange(len(rows)) + shift].astype(np.int32)


def _distinct(rows: np.ndarray, items: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs in their order, each only once: an item listed twice for a user is one target."""
    first = np.sort(np.unique(rows.astype(np.int64) * num_items + items, return_index=True)[1])
    return rows[first], items[first]


def _count(targets: np.ndarray) -> dict[str, int]:
    return {"users": int(np.sum(targets > 0)), "targets": int(targets.sum())}


def _pad(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])


class _RowItemBatches:
    """(row, item) pairs sorted by row, cut into batches of rows that are padded to one length with
    row = B.
    """

    def __init__(self, pairs: tuple[np.ndarray, np.ndarray], num_rows: int, batch_size: int):
        (self.rows, self.items), self.batch_size = pairs, batch_size
        self.edges = np.searchsorted(self.rows, np.arange(0, num_rows + batch_size, batch_size))
        self.size = (
            -(-int(np.diff(self.edges).max(initial=1)) // 64) * 64
        )  # rounded: similar splits share a program

    def batch(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.edges[b], self.edges[b + 1])
        rows = self.rows[part] - np.int32(b * self.batch_size)
        return _pad(rows, self.size, self.batch_size), _pad(self.items[part], self.size, NOWHERE)

    def collect(self, batches: list[np.ndarray]) -> np.ndarray:
        """The values of all pairs, padding cut off, from the values of each batch's pairs."""
        return np.concatenate([v[:n] for v, n in zip(batches, np.diff(self.edges), strict=True)])


def _stream(
    step: Callable[[int, np.ndarray], Any], users: np.ndarray, batch_size: int
) -> list[Any]:
    """step(b, users [B]) for every batch; the last is filled up with its last user. One fetch, at
    the very end.
    """
    results: list[Any] = []
    for b, start in enumerate(range(0, len(users), batch_size)):
        block = users[start : start + batch_size].astype(np.int32)
        results.append(step(b, _pad(block, batch_size, block[-1])))
        if b >= _LOOK_AHEAD:
            jax.block_until_ready(results[b - _LOOK_AHEAD])
    return fetch(results)


def _scores(
    score_fn: ScoreFn, users: np.ndarray, num_items: int | None
) -> tuple[Array | Factors, int]:
    """The scores, and how many items they are of."""
    scores = score_fn(users)
    shape = (
        (len(scores.contexts), len(scores.bias)) if isinstance(scores, Factors) else scores.shape
    )
    more = 0 if num_items is None else spare(num_items, mesh_of(scores))
    if (
        len(shape) != 2
        or num_items not in (None, shape[1], shape[1] - more)
        or shape[0] != len(users)
    ):
        raise ValueError(
            f"score_fn returned shape {shape} for {len(users)} users and {num_items} items"
        )
    return scores, num_items or shape[1]


def top_k(
    score_fn: ScoreFn,
    users: Int[np.ndarray, " U"],
    k: int,
    seen: CSR | None = None,
    *,
    batch_size: int = 256,
    num_items: int | None = None,
) -> tuple[Int[np.ndarray, "U k"], Float[np.ndarray, "U k"]]:
    """The k best items of each user, best first, and their scores; ties go to the lower index, NaN
    ranks last.

    `seen` is a CSR over all users (such as `dataset.history(split)`) of items that are never
    returned. Where a user has fewer than k candidates the list ends in PAD with score -inf.
    num_items: of the columns of the scores; all. Raises InputError if k < 1.
    """
    if k < 1:
        raise InputError(f"top-k: k is {k}; it must be at least 1")
    users = np.asarray(users)
    if not len(users):
        return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
    masked = _RowItemBatches(
        _gather(seen, users) if seen is not None else _NO_PAIRS, len(users), batch_size
    )

    def step(b: int, block: np.ndarray) -> tuple[Array, Array]:
        scores, count = _scores(score_fn, block, num_items)
        return ranking.top_k(scores, masked.batch(b), num_items=count, k=k, mesh=mesh_of(scores))

    items, values = zip(*_stream(step, users, batch_size), strict=True)
    return np.concatenate(items)[: len(users)], np.concatenate(values)[: len(users)]


def evaluate_rank(
    score_fn: ScoreFn,
    dataset: Dataset,
    split: int,
    *,
    metrics: Sequence[str] = METRICS,
    ks: Sequence[int] = (10, 20),
    batch_size: int = 256,
    slices: bool = True,
    exclude_seen: bool = True,
    max_users: int = 0,
) -> RankResult:
    """Ranks every target of the split (1 valid, 2 test) among all items the user has not seen, and
    scores the ranks.

    Slices by target count only the targets of that kind, still ranked among all items: 'warm',
    'cold', 'head', 'tail' (see `item_slices`). 'cold_only' ranks cold targets among cold items.
    'short' and 'long' are the users whose history is at most, or longer than, the median of the
    evaluated users. A target the user has seen before cannot be recommended: it is left out and
    counted in `repeats`; with exclude_seen=False nothing is masked and it counts.

    batch_size: users at once. max_users: judge no more than so many, drawn once and for all; 0:
    all.

    Raises InputError on an unknown metric and when nobody can be evaluated.
    """
    names = m.expand(metrics, ks)
    history, held_out = dataset.history(split), dataset.targets(split)
    users = eval_users(dataset, split)
    if not len(users):
        raise InputError(
            f"{dataset.name}: no user has both an item to predict in split {split} and an earlier"
            " interaction; choose another data.split or lower data.min_interactions"
        )
    if 0 < max_users < len(users):
        users = np.sort(np.random.default_rng(0).choice(users, max_users, replace=False))
    rows, items = _distinct(*_gather(held_out, users), dataset.num_items)
    seen = _RowItemBatches(
        _gather(history, users) if exclude_seen else _NO_PAIRS, len(users), batch_size
    )
    targets = _RowItemBatches((rows, items), len(users), batch_size)
    kinds = item_slices(dataset.item_counts)
    is_cold = kinds["cold"][items]
    cold = _RowItemBatches((rows[is_cold], items[is_cold]), len(users), batch_size)
    with_cold = slices and bool(is_cold.any())
    cold_items = jnp.asarray(kinds["cold"])
    lists_k = max((k or 0 for base, k in map(m.split_name, names) if base in m.LISTS), default=0)

    def step(b: int, block: np.ndarray) -> dict[str, Array]:
        scores, count = _scores(score_fn, block, dataset.num_items)
        cold_part = (cold_items, cold.batch(b)) if with_cold else None
        how: Any = {"num_items": count, "k": lists_k, "mesh": mesh_of(scores)}
        return ranking.rank(scores, seen.batch(b), targets.batch(b), cold_part, **how)

    results = _stream(step, users, batch_size)
    fetched = {key: [part[key] for part in results] for key in results[0]}

    ranks, candidates = (
        targets.collect(fetched["ranks"]),
        np.concatenate(fetched["candidates"])[: len(users)],
    )
    kept = ranks <= dataset.num_items  # a masked target has rank I + 1
    ranked = {"all": m.Ranking(ranks[kept], rows[kept], candidates)}
    if slices:
        for kind, of_kind in kinds.items():
            part = kept & of_kind[items]
            ranked[kind] = m.Ranking(ranks[part], rows[part], candidates)
    if with_cold:
        cold_ranks, cold_candidates = (
            cold.collect(fetched["cold_ranks"]),
            np.concatenate(fetched["cold_candidates"]),
        )
        part = kept[is_cold]
        ranked["cold_only"] = m.Ranking(
            cold_ranks[part], cold.rows[part], cold_candidates[: len(users)]
        )
    counts = {
        name: _count(r.total()) for name, r in ranked.items() if len(r.ranks) or name == "all"
    }
    values = {name: m.rank_metrics(names, ranked[name]) for name in counts}
    per_user = values.pop("all")
    if slices:
        length, total = np.diff(history[0])[users], ranked["all"].total()
        short = length <= np.median(length)
        for name, those in (("short", short), ("long", ~short)):
            if total[those].any():
                values[name] = {
                    key: np.where(those, v, np.float32(np.nan)) for key, v in per_user.items()
                }
                counts[name] = _count(total[those])

    means = {key: m.mean(v) for key, v in per_user.items()}
    for name, (base, k) in zip(names, map(m.split_name, names), strict=True):
        if base in m.LISTS:
            lists = np.concatenate(fetched["lists"])[: len(users), :k]
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
        users=users,
        counts=counts,
        repeats=int(np.sum(~kept)),
    )


def evaluate_rate(
    logits_fn: Callable[[np.ndarray], Array],
    labels: Int[np.ndarray, " N"],
    *,
    values: Float[np.ndarray, " C"],
    ratings: Float[np.ndarray, " N"] | None = None,
    batch_size: int = 4096,
) -> tuple[dict[str, float], Float[np.ndarray, "N C"]]:
    """`metrics.rate_metrics` of a model that maps row numbers (int32 [B], numpy) to class logits
    [B, C], and the class probabilities they come from.

    `values` gives the rating each class stands for, `ratings` the true ratings (default: those of
    the labels). The softmax is taken in f64, so that log-loss is not cut off early. Raises
    InputError if there is no row.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise InputError("rate evaluation: no rated pair to evaluate; choose another data.split")
    results = _stream(lambda _, rows: logits_fn(rows), np.arange(len(labels)), batch_size)
    logits = np.concatenate(results)[: len(labels)].astype(np.float64)
    with np.errstate(
        invalid="ignore"
    ):  # a row with an infinite logit becomes NaN, which the metrics count as wrong
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return (
        m.rate_metrics(probabilities, labels, np.asarray(values, np.float64), ratings),
        probabilities,
    )
