"""What metrics.json says: means and spreads over seeds, numbers and labels as they are shown, the
claim in words.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

Models = dict[str, list[dict[str, Any]]]  # name -> one entry of metrics.json per seed

ORDER = ("popularity", "trending", "control_teacher", "teacher", "student", "control", "distilled")
RATE_METRICS = ("auc", "log_loss", "accuracy", "f1", "precision", "recall", "rmse", "mae")
LOWER_IS_BETTER = ("log_loss", "rmse", "mae")
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
}
EMPTY = "–"
CONFIDENCE = "95 % CI "
POWERS = ("", "k", "M", "G", "T")


def headline(metrics: dict[str, Any]) -> str:
    """What distillation bought and how much of it is the language model's own share, with
    intervals, in plain text.
    """
    return " ".join(claim(metrics)).strip()


def claim(metrics: dict[str, Any]) -> tuple[str, str]:
    """The gain over the student; then the language model's own share and, where it was measured,
    the gain over what is popular of late. Each is worded by its confidence interval.
    """
    metric, gain, share = main_gain(metrics)
    if as_number(gain.get("relative")) is None:
        if {"student", "distilled"} <= gain.keys():
            return (
                (
                    f"The plain student's {metric_label(metric)} is 0: there is no relative gain to"
                    " tell."
                ),
                "",
            )
        return (
            (
                "Nothing to compare yet: this run does not hold both a student and a distilled"
                " student."
            ),
            "",
        )

    def verdict(difference: dict[str, Any], wording: Sequence[str]) -> str:
        """wording: better, worse, interval includes zero, no interval."""
        ends, lower = interval_ends(difference.get("ci95")), metric in LOWER_IS_BETTER
        which = (
            3
            if ends is None
            else int(lower)
            if ends[0] > 0
            else int(not lower)
            if ends[1] < 0
            else 2
        )
        size, interval = (
            percent(as_number(difference.get("relative"))),
            interval_text(difference.get("ci95")),
        )
        return wording[which].format(what=metric_label(metric), size=size, interval=interval)

    first = verdict(
        gain,
        (
            (
                "Distillation improves {what} by {size} over the same student trained on its own"
                " ({interval})."
            ),
            (
                "Distillation makes {what} worse: {size} against the same student trained on its"
                " own ({interval})."
            ),
            (
                "Distillation makes no reliable difference to {what}: {size} against the same"
                " student trained on its own, and the interval includes zero ({interval})."
            ),
            (
                "Distillation changes {what} by {size} against the same student trained on its own;"
                " {interval} was computed, so this may be chance."
            ),
        ),
    )
    trending = gain.get("over_trending") or {}
    last = ""
    if as_number(trending.get("relative")) is not None:
        last = " " + verdict(
            trending,
            (
                (
                    "Over what is popular of late, the same list for everybody, it is {size}"
                    " ({interval})."
                ),
                (
                    "It is worse than what is popular of late, the same list for everybody: {size}"
                    " ({interval})."
                ),
                (
                    "It cannot be told from what is popular of late, the same list for everybody:"
                    " {size} ({interval})."
                ),
                (
                    "Over what is popular of late, the same list for everybody, it is {size};"
                    " {interval} was computed."
                ),
            ),
        )
    if as_number(share.get("relative")) is None:
        taught = "a control distilled from an ID-only teacher"
        return (
            first,
            f"Without {taught}, the language model's own share of this is not known.{last}",
        )
    own = verdict(
        share,
        (
            (
                "The language model's own share, over a control distilled from an ID-only teacher,"
                " is {size} ({interval})."
            ),
            (
                "The language model has no share in it: against a control distilled from an ID-only"
                " teacher, {what} is worse, {size} ({interval})."
            ),
            (
                "The language model's own share, over a control distilled from an ID-only teacher,"
                " cannot be told from zero: {size} ({interval})."
            ),
            (
                "The language model's own share, over a control distilled from an ID-only teacher,"
                " is {size}; {interval} was computed, so this may be chance."
            ),
        ),
    )
    return first, own + last


def main_gain(metrics: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(metric, its gain over the student, its gain over the control)"""
    gains = metrics.get("gain") or {}
    metric = next((key for key in gains if "/" not in key), "")
    return metric, gains.get(metric) or {}, (gains.get(metric) or {}).get("lm_share") or {}


def by_model(metrics: dict[str, Any]) -> Models:
    found: Models = {}
    for entry in metrics.get("models") or ():
        found.setdefault(str(entry.get("name", "unnamed")), []).append(entry)
    return {name: found[name] for name in sorted(found, key=model_order)}


def model_order(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER)), name


def shown_metrics(metrics: dict[str, Any]) -> list[str]:
    """The metrics to show, the main one first: NDCG and recall for `rank`, all known ones for
    `rate`.
    """
    have = sorted({key for entry in metrics.get("models") or () for key in entry.get("test") or {}})
    main = [key for key in metrics.get("gain") or {} if "/" not in key][:1]
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


def mean_std(entries: Sequence[Any], *path: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds of the value at ``path``; None where it cannot be
    known.
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
    return EMPTY if value is None else f"{100 * value:+,.1f} %".replace("-", "−")


def interval_text(pair: Any) -> str:
    ends = interval_ends(pair)
    return (
        f"{CONFIDENCE}{percent(ends[0])} to {percent(ends[1])}"
        if ends
        else "no confidence interval"
    )


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
    if value is None or value >= 100:
        return (
            EMPTY
            if value is None
            else f"{value / 60:.1f} min"
            if value < 6000
            else f"{value / 3600:,.1f} h"
        )
    return (
        f"{value:.3g} s"
        if value >= 1
        else f"{value * 1e3:.3g} ms"
        if value >= 1e-3
        else f"{value * 1e6:.3g} µs"
    )


def spoken(name: str) -> str:
    return name.replace("_", " ")


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
