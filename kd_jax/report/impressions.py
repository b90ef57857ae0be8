"""The part of the report about what users were shown."""

from __future__ import annotations

from html import escape

from kd_jax.report import html
from kd_jax.report.legend import Legend
from kd_jax.report.summary import Models, mean_std, metric_label, spoken

COUNTS = ("impressions", "users")  # the other fields are metrics


def impressions_table(models: Models, legend: Legend) -> str:
    """The metrics of each model per impression of the test split; '' where there is none."""
    entries = [entry for entries in models.values() for entry in entries]
    shown = next((x for e in entries if (x := (e.get("impressions") or {}).get("test"))), None)
    if shown is None:
        return ""
    names = [name for name in shown if name not in COUNTS]
    rows = []
    for name, found in models.items():
        swatch = f'<span class="swatch" style="background:var(--{legend.variable(name)})"></span>'
        cells = [html.spread(*mean_std(found, "impressions", "test", each)) for each in names]
        rows.append([swatch + escape(spoken(name)), *cells])
    caption = (
        f"What was clicked among what was shown: means over {shown['impressions']:,} impressions of"
        f" {shown['users']:,} users of the test split that have a clicked item and one that is not."
    )
    return html.table(caption, ("Model", *(escape(metric_label(name)) for name in names)), rows)
