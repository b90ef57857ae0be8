"""Reads report/metrics.json for display: means and spreads over seeds, numbers, labels."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from kd_jax.evaluation.names import RATE_METRICS
from kd_jax.report.legend import Legend

Models = dict[str, list[dict[str, Any]]]  # name -> one entry of metrics.json per seed

SLICES = {
    "warm": "warm items",
    "cold": "cold items",
    "head": "head items",
    "tail": "tail items",
    "short": "short histories",
    "long": "long histories",
    "cold_only": "cold among cold only",
}
LABELS = {
    "ndcg": "NDCG",
    "f1": "F1",
    "mrr": "MRR",
    "map": "MAP",
    "auc": "AUC",
    "rmse": "RMSE",
    "mae": "MAE",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "bpr": "BPR",
    "ials": "iALS",
}
EMPTY = "–"
CONFIDENCE = "95 % CI "
POWERS = ("", "k", "M", "G", "T")


def by_model(metrics: dict[str, Any], legend: Legend) -> Models:
    found: Models = {}
    for entry in metrics.get("models") or ():
        found.setdefault(str(entry.get("name", "unnamed")), []).append(entry)
    return {name: found[name] for name in sorted(found, key=legend.order)}


def shown_metrics(metrics: dict[str, Any]) -> list[str]:
    """The names of the metrics to show, the main one first.

    The main one is what models are selected by. With it come NDCG and recall for `rank`, and all
    known metrics for `rate`.
    """
    have = sorted({key for entry in metrics.get("models") or () for key in entry.get("test") or {}})
    gains = (key for key in metrics.get("gain") or {} if "/" not in key)
    main = [key for key in (metrics.get("select"), *gains) if key in have][:1]
    if metrics.get("task") == "rate":
        return list(dict.fromkeys([*main, *(name for name in RATE_METRICS if name in have)]))
    ndcg, recall = (
        sorted((key for key in have if key.startswith(kind)), key=lambda key: key != best)[:1]
        for kind, best in (("ndcg@", "ndcg@10"), ("recall@", "recall@20"))
    )
    return list(dict.fromkeys((main or ndcg) + recall)) or have[:2]


def metric_path(metric: str, part: str) -> tuple[str, ...]:
    return ("slices", part, metric) if part else ("test", metric)


def metric_columns(models: Models, shown: list[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """(metric, slice) pairs that any model has a value for; '' stands for all targets."""
    return [
        (metric, part)
        for metric in shown
        for part in ("", *parts)
        if any(
            mean_std(entries, *metric_path(metric, part))[0] is not None
            for entries in models.values()
        )
    ]


def as_number(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def has_text(metrics: dict[str, Any]) -> bool:
    """Whether an item has a text other than its id; reports of older runs do not say it."""
    data = metrics.get("dataset") or {}
    return not data.get("items") or data.get("items_without_text") != data["items"]


def mean_std(entries: Sequence[Any], *path: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds of the value at ``path``.

    The mean is None without any value, the standard deviation with fewer than two.
    """
    for key in path:
        entries = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
    finite = [value for value in map(as_number, entries) if value is not None]
    return (statistics.fmean(finite) if finite else None), (
        statistics.stdev(finite) if len(finite) > 1 else None
    )


def model_means(models: Models, metric: str, part: str) -> dict[str, tuple[float, float]]:
    """Model -> (mean, spread or 0), for those that have it."""
    stats = {
        name: mean_std(entries, *metric_path(metric, part)) for name, entries in models.items()
    }
    return {name: (mean, std or 0.0) for name, (mean, std) in stats.items() if mean is not None}


def interval_ends(pair: Any) -> tuple[float, float] | None:
    ends = (
        [end for end in map(as_number, pair) if end is not None]
        if isinstance(pair, list | tuple)
        else []
    )
    return (min(ends), max(ends)) if len(ends) == 2 else None


def decimals(value: float | None) -> str:
    """Four decimals, no zero before the point: .0734"""
    return EMPTY if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.4f}").replace("-", "−")


def percent(value: float | None) -> str:
    """A change in percent with its sign; one that rounds to zero has none."""
    if value is None:
        return EMPTY
    text = f"{100 * value:+,.1f}"
    return f"{'0.0' if text in ('+0.0', '-0.0') else text} %".replace("-", "−")


def share(value: float | None) -> str:
    """A part of something in percent, with a sign only if it is negative."""
    return percent(value).removeprefix("+")


def open_end(pair: Any) -> float | None:
    """The lower end of an interval without an upper one: of a gain over almost nothing."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or as_number(pair[1]) is not None:
        return None
    return as_number(pair[0])


def interval_text(pair: Any) -> str:
    if ends := interval_ends(pair):
        return f"{CONFIDENCE}{percent(ends[0])} to {percent(ends[1])}"
    low = open_end(pair)
    return "no confidence interval" if low is None else f"{CONFIDENCE}at least {percent(low)}"


def thousands(value: float | None) -> str:
    """Thousands separators; three digits below a hundred."""
    return EMPTY if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def scaled(value: float | None, units: Sequence[str]) -> str:
    power = 0
    while value is not None and abs(value) >= 999.5 and power + 1 < len(units):
        value, power = value / 1000, power + 1
    return thousands(value) + (units[power] if value is not None else "")


def human_bytes(value: float | None) -> str:
    return scaled(value, (" B", " kB", " MB", " GB", " TB"))


def human_time(value: float | None) -> str:
    if value is None:
        return EMPTY
    if value >= 6000:
        return f"{value / 3600:,.1f} h"
    if value >= 100:
        return f"{value / 60:.1f} min"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def spoken(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def a_student(name: str) -> str:
    """The name of a student in a sentence: 'plain student', 'distilled student'."""
    return f"{spoken(name)} student".replace("student student", "plain student")


def metric_label(metric: str) -> str:
    """ndcg@10/warm -> NDCG@10, warm items"""
    name, _, part = metric.partition("/")
    base, at, k = name.partition("@")
    return (
        LABELS.get(base, spoken(base).capitalize())
        + at
        + k
        + (f", {SLICES.get(part, part)}" if part else "")
    )
