"""The transfer ratio: how much of the teacher's lead over the plain student was passed on."""

from __future__ import annotations

from html import escape
from typing import Any

from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.evaluation.significance import TRANSFER, Comparison
from kd_jax.report import html
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    CONFIDENCE,
    as_number,
    decimals,
    interval_ends,
    metric_label,
    share,
    spoken,
)

MEANING = (
    "The transfer ratio is ({candidate} − {plain}) / ({large} − {plain}): 0 % where"
    " distillation changes nothing, 100 % where the student is as good as its teacher."
)
UNCERTAIN = "the confidence interval of the {large}’s lead over the {plain} contains 0"
WORSE = "the {large} is worse than the {plain}"


def _of(gain: dict[str, Any]) -> dict[str, Any]:
    found = gain.get(TRANSFER)
    return found if isinstance(found, dict) else {}


def ratio(gain: dict[str, Any], metric: str) -> float | None:
    """The ratio in an entry of ``gain``; None where it is unknown or says nothing."""
    found = _of(gain)
    return None if why_not(found, metric) else as_number(found.get("ratio"))


def teacher_of(gain: dict[str, Any], default: str) -> str:
    """The model whose lead is passed on; reports of older runs do not say it."""
    return str(_of(gain).get("taught_by") or default)


def why_not(found: dict[str, Any], metric: str) -> str:
    """Why there is no ratio to tell, with {large} and {plain} to fill in; '' if there is one.

    A teacher that is worse than the student has no lead that could be passed on.
    """
    lead = as_number(found.get("lead"))
    if as_number(found.get("ratio")) is None or lead is None:
        return UNCERTAIN
    lower = metric.partition("/")[0] in LOWER_IS_BETTER
    return WORSE if (lead > 0) == lower else ""


def _interval(found: dict[str, Any]) -> str:
    ends = interval_ends(found.get("ci95"))
    return f"{CONFIDENCE}{share(ends[0])} to {share(ends[1])}" if ends else "no confidence interval"


def transfer_sentence(gain: dict[str, Any], metric: str, legend: Legend) -> str:
    """The ratio of the main metric, as a sentence of the headline; '' where it was not measured."""
    found = _of(gain)
    if not found:
        return ""
    large = spoken(teacher_of(gain, legend.large))
    plain = f"plain {spoken(legend.baseline)}"
    if why := why_not(found, metric):
        return f"The transfer ratio is not computed: {why.format(large=large, plain=plain)}."
    return (
        f"The {spoken(legend.candidate)} student has {share(as_number(found['ratio']))} of the"
        f" {large}’s lead over the {plain} (transfer ratio, {_interval(found)})."
    )


def transfer_table(gains: dict[str, Any], comparison: Comparison) -> str:
    """The ratio of each metric, after a sentence that says what it is; '' where there is none."""
    large = next((teacher_of(gain, "") for gain in gains.values() if _of(gain)), "")
    names = {
        "candidate": spoken(comparison.candidate),
        "large": spoken(large or comparison.teacher),
        "plain": spoken(comparison.baseline),
    }
    if not comparison.teacher:
        return ""
    rows = []
    for metric, gain in gains.items():
        if not (found := _of(gain)):
            continue
        if why := why_not(found, metric):
            cell = f"not computed<small>{escape(why.format(**names))}"
        else:
            cell = f"{share(as_number(found['ratio']))}<small>"
            cell += _interval(found).removeprefix(CONFIDENCE)
        lead, ends = as_number(found.get("lead")), interval_ends(found.get("lead_ci95"))
        interval = f"<small>{decimals(ends[0])} to {decimals(ends[1])}</small>" if ends else ""
        rows.append([escape(metric_label(metric)), decimals(lead) + interval, f"{cell}</small>"])
    if not rows:
        return ""
    head = ("Metric", f"{escape(names['large'])} − {escape(names['plain'])}".capitalize(),
            "Transfer ratio")  # fmt: skip
    caption = f"{MEANING.format(**names)} With 95 % confidence intervals."
    return html.table(escape(caption), head, rows)
