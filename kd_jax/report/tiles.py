"""The figures at the top of the report, one to a tile."""

from __future__ import annotations

from html import escape
from typing import Any

from kd_jax.report import transfer
from kd_jax.report.headline import best_simple, main_gain
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    EMPTY,
    Models,
    as_number,
    mean_std,
    metric_label,
    percent,
    share,
    spoken,
)


def tiles(metrics: dict[str, Any], models: Models, legend: Legend) -> str:
    """The changes, the transfer ratio, and what the candidate saves, where they are known."""
    metric, gain, lm_share = main_gain(metrics)
    simple, over_simple = best_simple(metrics, legend, metric, gain)
    candidate, teacher = spoken(legend.candidate), transfer.teacher_of(gain, legend.large)
    large = spoken(teacher)
    found = [
        (
            percent(as_number(gain.get("relative"))),
            f"{metric_label(metric)}, {candidate} over {spoken(legend.baseline)}",
        ),
        (
            percent(as_number(over_simple.get("relative"))),
            f"{candidate} over {spoken(simple)}, the best simple baseline",
        ),
        (
            percent(as_number(lm_share.get("relative"))),
            f"{candidate} over control, a student whose teacher has no language model: the language"
            " model’s own share",
        ),
        (
            share(transfer.ratio(gain, metric)),
            f"transfer ratio: of the {large}’s lead over the {spoken(legend.baseline)}, what the"
            f" {candidate} student has",
        ),
    ]
    for key, form, text in (
        ("params", "{:.2%}", f"of the {large}’s parameters are in the {candidate} student"),
        (
            "users_per_second",
            "{:.3g} ×",
            f"the {large}’s users per second, with cached item vectors, on this run’s machine under"
            " its load",
        ),
    ):
        one = mean_std(models.get(legend.candidate, ()), key)[0]
        other = mean_std(models.get(teacher, ()), key)[0]
        if one and other:
            found.append((form.format(one / other).replace("%", " %"), text))
    return "".join(
        f"<div><dt>{escape(text)}</dt><dd>{value}</dd></div>"
        for value, text in found
        if value != EMPTY
    )
