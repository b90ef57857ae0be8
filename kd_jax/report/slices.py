"""The part of the report about kinds of items and users, and about what nobody is shown."""

from __future__ import annotations

from html import escape
from typing import Any

from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.report import html
from kd_jax.report.charts import slice_chart
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    SLICES,
    Models,
    decimals,
    mean_std,
    metric_columns,
    metric_label,
    metric_path,
    model_means,
    share,
    spoken,
)

NOTHING = 0.001  # a quality below it is put into words
COVERAGE = "coverage@"
OF_ITEMS = ("warm", "cold", "head", "tail")


def slices(metrics: dict[str, Any], models: Models, shown: list[str], legend: Legend) -> str:
    """Charts, sentences and a table; '' where nothing was measured."""
    columns = [column for column in metric_columns(models, shown[:2], tuple(SLICES)) if column[1]]
    rows = [
        [
            escape(metric_label(f"{metric}/{part}")),
            *(
                html.spread(*mean_std(entries, *metric_path(metric, part)))
                for entries in models.values()
            ),
        ]
        for metric, part in columns
    ]
    table = html.table(
        "Slices of the test split", ("Slice", *(escape(spoken(name)) for name in models)), rows
    )
    # Cold targets among cold items alone are another, easier question: they would stretch the axis.
    charts = [
        slice_chart(
            models,
            metric,
            [part for other, part in columns if other == metric and part != "cold_only"],
            legend,
        )
        for metric in dict.fromkeys(metric for metric, _ in columns)
    ]
    if not columns:
        return ""
    return (
        html.grid(charts)
        + _targets(metrics)
        + _nothing(models, columns)
        + _coverage(models)
        + html.details("The slices as a table", table)
    )


def _targets(metrics: dict[str, Any]) -> str:
    """A sentence about the number of test targets in the slices of items; '' if it is unknown."""
    judged = ((metrics.get("dataset") or {}).get("judged") or {}).get("test") or {}
    counts = {part: judged[f"targets/{part}"] for part in OF_ITEMS if f"targets/{part}" in judged}
    if not counts:
        return ""
    phrases = ", ".join(f"{count:,} of {SLICES[part]}" for part, count in counts.items())
    return f"<p>{judged['targets']:,} test interactions are judged: {phrases}.</p>"


def _nothing(models: Models, columns: list[tuple[str, str]]) -> str:
    """A sentence about the slices in which no model finds anything, by the first metric."""
    phrases = []
    first = columns[0][0]
    for metric, part in columns:
        if metric != first:
            continue
        best = max(mean for mean, _ in model_means(models, metric, part).values())
        if metric not in LOWER_IS_BETTER and best < NOTHING:
            phrases.append(f"{SLICES[part]} ({metric_label(metric)} at most {decimals(best)})")
    if not phrases:
        return ""
    return f"<p>No model finds {escape(', '.join(phrases))}.</p>"


def _coverage(models: Models) -> str:
    """A sentence about the share of the catalogue that anybody is shown."""
    names = {key for rows in models.values() for row in rows for key in row.get("test") or {}}
    cuts = sorted(
        (int(key.removeprefix(COVERAGE)), key)
        for key in names
        if key.startswith(COVERAGE) and key.removeprefix(COVERAGE).isdigit()
    )
    if not cuts:
        return ""
    k, key = cuts[0]
    phrases = ", ".join(
        f"{spoken(name)} {share(mean)}" for name, (mean, _) in model_means(models, key, "").items()
    )
    return f"<p>Of the catalogue, this much is in anybody’s list of {k}: {escape(phrases)}.</p>"
