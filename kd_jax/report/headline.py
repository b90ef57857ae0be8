"""The result of a run in two sentences, worded by the confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    LOWER_IS_BETTER,
    as_number,
    interval_ends,
    interval_text,
    metric_label,
    percent,
)

# Four wordings each: better, worse, an interval that includes zero, no interval.
GAIN = (
    "Distillation improves {what} by {size} over the same student trained on its own ({interval}).",
    "Distillation makes {what} worse: {size} against the same student trained on its own"
    " ({interval}).",
    "Distillation makes no reliable difference to {what}: {size} against the same student trained"
    " on its own, and the interval includes zero ({interval}).",
    "Distillation changes {what} by {size} against the same student trained on its own; {interval}"
    " was computed, so this may be chance.",
)
OVER_TRENDING = (
    "Over the recent-popularity baseline, the same list for every user, it is {size} ({interval}).",
    "It is worse than the recent-popularity baseline, the same list for every user: {size}"
    " ({interval}).",
    "It does not differ significantly from the recent-popularity baseline (the same list for every"
    " user): {size} ({interval}).",
    "Over the recent-popularity baseline, the same list for every user, it is {size}; {interval}"
    " was computed.",
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


def headline(metrics: dict[str, Any], legend: Legend) -> str:
    """The gain of distillation and the language model's share of it, as plain text.

    Both are given with their confidence intervals.
    """
    return " ".join(claim(metrics, legend)).strip()


def claim(metrics: dict[str, Any], legend: Legend) -> tuple[str, str]:
    """The statements of the headline: the gain over the student, and what explains it.

    The second is the language model's own share and, where it was measured, the gain over recent
    popularity.
    """
    metric, gain, share = main_gain(metrics)
    if as_number(gain.get("relative")) is None:
        if {legend.baseline, legend.candidate} <= gain.keys():
            return (
                f"The plain student's {metric_label(metric)} is 0: there is no relative gain.",
                "",
            )
        return NOTHING, ""
    trending = gain.get("over_trending") or {}
    known = as_number(share.get("relative")) is not None
    second = [_verdict(metric, share, LM_SHARE) if known else NO_CONTROL]
    if as_number(trending.get("relative")) is not None:
        second.append(_verdict(metric, trending, OVER_TRENDING))
    return _verdict(metric, gain, GAIN), " ".join(second)


def _verdict(metric: str, difference: dict[str, Any], wordings: Sequence[str]) -> str:
    better, worse, unclear, no_interval = wordings
    if metric in LOWER_IS_BETTER:
        better, worse = worse, better
    ends = interval_ends(difference.get("ci95"))
    wording = unclear
    if ends is None:
        wording = no_interval
    elif ends[0] > 0:
        wording = better
    elif ends[1] < 0:
        wording = worse
    return wording.format(
        what=metric_label(metric),
        size=percent(as_number(difference.get("relative"))),
        interval=interval_text(difference.get("ci95")),
    )


def main_gain(metrics: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(metric, its gain over the student, its gain over the control)"""
    gains = metrics.get("gain") or {}
    metric = next((key for key in gains if "/" not in key), "")
    gain = gains.get(metric) or {}
    return metric, gain, gain.get("lm_share") or {}
