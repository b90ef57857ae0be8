"""The result of a run in two sentences, worded by the confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    as_number,
    by_model,
    decimals,
    has_text,
    interval_ends,
    interval_text,
    metric_label,
    model_means,
    open_end,
    percent,
    shown_metrics,
)
from kd_jax.report.transfer import teacher_of, transfer_sentence

FLOOR = 0.005  # of a value; changes of smaller ones are shown as values
# Four wordings each: better, worse, an interval that includes zero, no interval.
GAIN = (
    "Distillation {verb} {what} {by} over the same student trained on its own ({interval}).",
    "Distillation makes {what} worse: {size} against the same student trained on its own"
    " ({interval}).",
    "Distillation makes no reliable difference to {what}: {size} against the same student trained"
    " on its own, and the interval includes zero ({interval}).",
    "Distillation changes {what} {by} against the same student trained on its own; {interval}"
    " was computed, so this may be chance.",
)
OVER_SIMPLE = (
    "Over {simple}, {kind}, the {candidate} student is at {stands} ({interval}).",
    "The {candidate} student is worse than {simple}, which is {kind}: {what}"
    " {after} against {before} ({interval}).",
    "The {candidate} student does not differ significantly from {simple}, {kind}:"
    " {stands} ({interval}).",
    "{simple}, {kind}, has {before}, the {candidate} student {after}; {interval} was computed.",
)
LM_SHARE = (
    "The language model's own share, over a control distilled from an ID-only teacher, is {size}"
    " ({interval}).",
    "The language model has no share in it: against a control distilled from an ID-only teacher,"
    " {what} is worse, {size} ({interval}).",
    "The language model's own share, over a control distilled from an ID-only teacher, is not"
    " significantly different from zero: {size} ({interval}).",
    "The language model's own share, over a control distilled from an ID-only teacher, is {size};"
    " {interval} was computed, so this may be chance.",
)
NO_CONTROL = (
    "Without a control distilled from an ID-only teacher, the language model's own share of this"
    " is not known."
)
NOTHING = "Nothing to compare yet: this run does not hold both a student and a distilled student."
NO_STUDENT = "Without a plain student in this run, the gain of distillation is not known."


def headline(metrics: dict[str, Any], legend: Legend) -> str:
    """The gain of distillation and the language model's share of it, as plain text.

    Both are given with their confidence intervals.
    """
    return " ".join(claim(metrics, legend)).strip()


def claim(metrics: dict[str, Any], legend: Legend) -> tuple[str, str]:
    """The statements of the headline: the gain over the student, and what explains it.

    The second is how the distilled student stands to the best of the simple baselines, the language
    model's own share, and the transfer ratio. Where it is worse than that baseline, this comes
    first.
    """
    metric, gain, share = main_gain(metrics)
    metric = metric or next(iter(shown_metrics(metrics)), "")
    worse, simple = _over_simple(metrics, legend, metric, gain)
    if as_number(gain.get("relative")) is None:
        if {legend.baseline, legend.candidate} <= gain.keys():
            first = f"The plain student's {metric_label(metric)} is 0: there is no relative gain."
            return (simple, first) if worse else (first, simple)
        return (simple, NO_STUDENT) if simple else (NOTHING, "")
    values = (as_number(gain.get(name)) for name in (legend.baseline, legend.candidate))
    first = _verdict(metric, gain, GAIN, *values)
    known = as_number(share.get("relative")) is not None
    second = _verdict(metric, share, LM_SHARE) if known else ""
    if not known and has_text(metrics) and teacher_of(gain, legend.large) == legend.large:
        second = NO_CONTROL
    second = f"{second} {transfer_sentence(gain, metric, legend)}".strip()
    if worse:
        return simple, f"{first} {second}"
    return first, f"{simple} {second}".strip()


def best_simple(
    metrics: dict[str, Any], legend: Legend, metric: str, gain: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The best of the simple baselines by its mean, '' for none, and the gain over it, if known."""
    found = _means(metrics, legend, metric)
    means = {name: mean for name, mean in found.items() if name in legend.simple}
    if not means or not legend.comparisons:
        return "", {}
    lower = metric.partition("/")[0] in LOWER_IS_BETTER
    best = (min if lower else max)(means, key=lambda name: means[name])
    field = legend.comparisons[0].over.get(best, "")
    return best, (gain.get(field) or {}) if field else {}


def _means(metrics: dict[str, Any], legend: Legend, metric: str) -> dict[str, float]:
    """Means on test of the simple baselines, the candidate and the plain student."""
    return {
        name: mean
        for name, (mean, _) in model_means(by_model(metrics, legend), metric, "").items()
        if name in {*legend.simple, legend.candidate, legend.baseline}
    }


def _over_simple(
    metrics: dict[str, Any], legend: Legend, metric: str, gain: dict[str, Any]
) -> tuple[bool, str]:
    """Whether the candidate is worse than the best simple baseline, and a sentence; '' if none."""
    best, difference = best_simple(metrics, legend, metric, gain)
    means = _means(metrics, legend, metric)
    after = means.get(legend.candidate)
    if not best or after is None:
        return False, ""
    lower = metric.partition("/")[0] in LOWER_IS_BETTER
    simple = legend.simple[best]
    words = {"simple": simple.name, "kind": simple.kind, "candidate": legend.candidate}
    sentence = _verdict(metric, difference, OVER_SIMPLE, means[best], after, **words)
    worse = after > means[best] if lower else after < means[best]
    if worse and _bounds(difference.get("ci95")) is None:
        sentence = OVER_SIMPLE[1].format(
            what=_in_sentence(metric), before=decimals(means[best]), after=decimals(after),
            interval=f"{interval_text(None)} was computed", **words,
        )  # fmt: skip
    return (
        worse,
        f"{sentence[0].upper()}{sentence[1:]}{_plain_is_worse(means, best, lower, legend)}",
    )


def _plain_is_worse(means: dict[str, float], best: str, lower: bool, legend: Legend) -> str:
    """A sentence where the plain student is worse than the best simple baseline, else ''."""
    plain, simple = means.get(legend.baseline), means[best]
    if plain is None or (plain <= simple if lower else plain >= simple):
        return ""
    pair = decimals(plain), decimals(simple)
    if pair[0] == pair[1]:
        return ""
    return (
        f" The student trained on its own is behind that baseline: {pair[0]} against {pair[1]} (not"
        " tested)."
    )


def _verdict(
    metric: str,
    difference: dict[str, Any],
    wordings: Sequence[str],
    before: float | None = None,
    after: float | None = None,
    **words: str,
) -> str:
    """The sentence that fits the interval; before, after: the two values, if known."""
    better, worse, unclear, no_interval = wordings
    lower = metric.partition("/")[0] in LOWER_IS_BETTER
    if lower:
        better, worse = worse, better
    ends = _bounds(difference.get("ci95"))
    wording = unclear
    if ends is None:
        wording = no_interval
    elif ends[0] > 0:
        wording = better
    elif ends[1] < 0:
        wording = worse
    size = percent(as_number(difference.get("relative")))
    tiny = before is not None and after is not None and abs(before) < FLOOR
    stands = size
    by = f"by {size.lstrip('−') if lower else size}"
    if tiny:
        by = size = f"from {decimals(before)} to {decimals(after)}"
        stands = f"{decimals(after)} against {decimals(before)}"
    return wording.format(
        verb="lowers" if lower else "improves",
        what=_in_sentence(metric),
        size=size,
        by=by,
        stands=stands,
        before=decimals(before),
        after=decimals(after),
        interval=interval_text(difference.get("ci95")),
        **words,
    )


def _bounds(pair: Any) -> tuple[float, float] | None:
    """The ends of an interval, of which the upper one may be infinite; None if there is none."""
    if ends := interval_ends(pair):
        return ends
    low = open_end(pair)
    return None if low is None else (low, math.inf)


def _in_sentence(metric: str) -> str:
    """The label of a metric, with a small first letter unless it is an abbreviation."""
    label = metric_label(metric)
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def main_gain(metrics: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(metric, its gain over the student, its gain over the control)"""
    gains = metrics.get("gain") or {}
    metric = next((key for key in gains if "/" not in key), "")
    gain = gains.get(metric) or {}
    return metric, gain, gain.get("lm_share") or {}
