"""Repeated interactions, and events of several types, as one weighted interaction per pair.

A pair is a user and an item. Its events are read in order of time:

- a type with weight 0 takes back all earlier events of the pair (an unlike);
- a type with a negative weight is a dislike: it takes back all earlier events, too, and later ones
  count only from its weight on, without the sign (a view does not make up for it, a like does);
- of the events that are left the heaviest is the interaction, with its time and weight, so a view
  never hides a like. ``data.repeats`` chooses among equally heavy ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int64

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.splits import TEST, TRAIN, level

FIELD = "data.events"
EVENT, WEIGHT = "event", "weight"  # columns of typed interactions
NEVER = np.iinfo(np.int64).max
Weights = Mapping[str, float | None]  # type of event -> weight; None: left out


def parse(text: str) -> dict[str, float | None]:
    """'view=0.2, like=1, login=None' -> the weight of each type; None leaves the type out.

    Raises InputError for text of another form, and where no type has a positive weight.
    """
    found: dict[str, float | None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = None if value == "None" else float(value)
        except ValueError:
            weight = math.nan
        if not name or name in found or (weight is not None and not math.isfinite(weight)):
            raise InputError(
                f"{FIELD}={text!r}: {part!r} is not <type>=<number or None>, once per type; give"
                " for example 'view=0.2, like=1, unlike=0, dislike=-1, login=None'"
            )
        found[name] = weight
    if found and not any(weight is not None and weight > 0 for weight in found.values()):
        raise InputError(
            f"{FIELD}={text!r}: no type has a weight above 0, so nothing is a choice; give one"
        )
    return found


def weighed(raw: RawData, weights: Weights) -> tuple[pl.DataFrame, int]:
    """The interactions with the ``WEIGHT`` of their type, and how many rows are left out.

    Without ``weights``: the interactions as they are. Raises InputError for a type without a
    weight, and where there is a column of types or there are weights, but not both.
    """
    frame = raw.interactions
    if EVENT not in frame.columns:
        if weights:
            raise InputError(
                f"{raw.place}: {FIELD} weighs types of events, and no column has them; name it:"
                " data.files.columns.event"
            )
        return frame, 0
    counts = dict(frame[EVENT].value_counts(sort=True).iter_rows())
    unknown = {name: count for name, count in counts.items() if name not in weights}
    if unknown:
        several = ", ".join(f"{name!r} ({count:,})" for name, count in unknown.items())
        known = nearest(next(iter(unknown)), weights) if weights else ""
        raise InputError(
            f"{raw.place}: no weight for events of type {several}{known}; give each one in {FIELD}"
            " (type=number; 0 takes back, below 0 is a dislike, None leaves out)"
        )
    left_out = [name for name, weight in weights.items() if weight is None]
    kept = frame.filter(~pl.col(EVENT).is_in(left_out))
    if not kept.height:
        raise InputError(f"{raw.place}: {FIELD} leaves out all {frame.height:,} events; keep some")
    value = pl.col(EVENT).replace_strict(
        {name: weight for name, weight in weights.items() if weight is not None},
        return_dtype=pl.Float32,
    )
    return kept.with_columns(value.alias(WEIGHT)), frame.height - kept.height


@dataclasses.dataclass(frozen=True)
class Reduced:
    """The interactions, one per pair.

    rows: user, item, rating, timestamp, split and, with types, ``WEIGHT``; as they were sorted.
    repeated, taken_back: how many rows are left out because the pair has another one, and because
    they were taken back or take back themselves. counted: the events that count in
    data.repeats='count', with their ``pair``; None for other choices. disliked: users and items
    of the pairs that were disliked last. notes: for people.
    """

    rows: pl.DataFrame
    repeated: int
    taken_back: int = 0
    counted: pl.DataFrame | None = None
    disliked: tuple[pl.Series, pl.Series] | None = None
    notes: tuple[str, ...] = ()


def reduce(rows: pl.DataFrame, num_items: int, repeats: str, weights: Weights) -> Reduced:
    """One row of each pair of a user and one of the ``num_items``.

    rows: sorted by (user, time), with indices. repeats: see ``DatasetOptions``. weights: of the
    types, {} where there are none.
    """
    pairs = (rows["user"].cast(pl.Int64) * num_items + rows["item"]).alias("pair")
    if weights:
        return _typed(rows.with_columns(pairs), repeats, weights)
    if pairs.n_unique() == rows.height:
        return Reduced(rows, 0)
    counted = rows.with_columns(pairs) if repeats == "count" else None
    if repeats in ("first", "count"):
        kept = rows.filter(pl.Series(_first_distinct(pairs.to_numpy())))
    else:
        kept = _one(rows.with_columns(pairs), repeats).drop("pair")
    return Reduced(kept, rows.height - kept.height, counted=counted)


def _one(rows: pl.DataFrame, repeats: str) -> pl.DataFrame:
    """The row of each ``pair`` that ``repeats`` chooses, in their order."""
    if repeats in ("first", "count"):
        return rows.unique("pair", keep="first", maintain_order=True)
    kept = rows.with_columns(row=pl.int_range(pl.len()))
    if repeats == "max":
        kept = kept.sort("pair", "rating", "row")
    return kept.unique("pair", keep="last", maintain_order=True).sort("row").drop("row")


def _typed(rows: pl.DataFrame, repeats: str, weights: Weights) -> Reduced:
    takes_back = pl.col(WEIGHT) <= 0
    rows = rows.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    rows = rows.with_columns(
        since=pl.col("row").filter(takes_back).max().over("pair").fill_null(-1),
        least=-pl.col(WEIGHT).filter(takes_back).last().over("pair").fill_null(0.0),
    )
    counts = ~takes_back & (pl.col("row") > pl.col("since")) & (pl.col(WEIGHT) >= pl.col("least"))
    counted = rows.filter(counts)
    heaviest = counted.filter(pl.col(WEIGHT) == pl.col(WEIGHT).max().over("pair"))
    kept = _one(heaviest, repeats)
    gone = rows.filter(~pl.col("pair").is_in(kept["pair"].implode()))
    low = gone.filter((pl.col("least") > 0) & (pl.col("row") == pl.col("since")))
    columns = ["user", "item", "rating", "timestamp", "split", WEIGHT]
    return Reduced(
        kept.select(columns),
        counted.height - kept.height,
        rows.height - counted.height,
        counted.select("pair", "timestamp", "split", WEIGHT) if repeats == "count" else None,
        (low["user"], low["item"]),
        (_described(rows, counted, kept, low, weights),),
    )


def _described(
    rows: pl.DataFrame,
    counted: pl.DataFrame,
    kept: pl.DataFrame,
    low: pl.DataFrame,
    weights: Weights,
) -> str:
    """What became of the events of each type, in one line."""
    found, left, one, disliked = (
        dict(frame[EVENT].value_counts().iter_rows()) for frame in (rows, counted, kept, low)
    )
    parts = []
    for name, weight in weights.items():
        if weight is None:
            continue
        total, rest, stays = (count.get(name, 0) for count in (found, left, one))
        if weight > 0:
            text = f"{stays:,} kept, {rest - stays:,} merged, {total - rest:,} taken back"
        else:
            text = "takes back" if weight == 0 else f"{disliked.get(name, 0):,} pairs disliked"
        parts.append(f"{name} ({weight:g}): {total:,}, {text}")
    return f"events: {'; '.join(parts)}"


def totals(
    reduced: Reduced,
    rows: pl.DataFrame,
    codes: Int8[np.ndarray, " N"],
    num_items: int,
    split: str,
) -> Float32[np.ndarray, " N"] | None:
    """The weight of each row; None where all are 1.

    rows: of ``reduced.rows``, those that are left, with indices as then. codes: of their splits.
    With data.repeats='count' it is the sum of the weights of the pair's events; those from the time
    on at which a later split begins (of any user under ``split`` 'temporal', else of this one) are
    unknown then and do not count.
    """
    if reduced.counted is None:
        if WEIGHT not in rows.columns:
            return None
        found = rows[WEIGHT].to_numpy()
    else:
        pairs = (rows["user"].cast(pl.Int64) * num_items + rows["item"]).to_numpy()
        found = _summed(reduced.counted, pairs, rows, codes, split)
    return None if (found == 1).all() else found.astype(np.float32)


def _summed(
    events: pl.DataFrame,
    pairs: Int64[np.ndarray, " N"],
    rows: pl.DataFrame,
    codes: Int8[np.ndarray, " N"],
    split: str,
) -> np.ndarray:
    order = np.argsort(pairs)
    pair, when = events["pair"].to_numpy(), events["timestamp"].to_numpy()
    row = order[np.minimum(np.searchsorted(pairs, pair, sorter=order), len(pairs) - 1)]
    own = rows["timestamp"].to_numpy()
    known = (when < ends(rows["user"].to_numpy(), own, codes, split)[row]) | (when <= own[row])
    known &= level(events["split"].to_numpy()) <= level(codes)[row]
    known &= pairs[row] == pair
    weights = events[WEIGHT].to_numpy() if WEIGHT in events.columns else np.ones(len(pair))
    return np.bincount(row[known], weights[known], len(pairs))


def ends(
    user: np.ndarray,
    time: Int64[np.ndarray, " N"],
    codes: Int8[np.ndarray, " N"],
    split: str,
) -> Int64[np.ndarray, " N"]:
    """For each row, the first time of a later split: what happens then is not known in its own.

    It is that of any user under ``split`` 'temporal', else that of the row's user.
    """
    group = np.zeros_like(user) if split == "temporal" else user
    levels, found = level(codes), np.full(len(user), NEVER)
    for code in range(TRAIN, TEST):
        first = np.full(int(group.max(initial=0)) + 1, NEVER)
        later, here = levels > code, levels == code
        np.minimum.at(first, group[later], time[later])
        found[here] = first[group[here]]
    return found


def _first_distinct(values: Int64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """True at the first of equal values.

    The values are nearly sorted, which makes a stable sort faster than a hash table.
    """
    order = np.argsort(values, kind="stable")
    first = np.ones(len(values), bool)
    first[order[1:]] = values[order[1:]] != values[order[:-1]]
    return first
