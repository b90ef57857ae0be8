"""The part of the report about the exported student as it is served."""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.report import html
from kd_jax.report.summary import Models, mean_std, metric_label, metric_path, spoken

PARTS = ("", "warm", "cold")


def served(models: Models, shown: Sequence[str]) -> str:
    """A table of the exported student as trained and as served; '' where not measured.

    shown: names of metrics.
    """
    found = {name: [entry for entry in entries if entry.get("served")]
             for name, entries in models.items()}  # fmt: skip
    name, entries = next(((name, rows) for name, rows in found.items() if rows), ("", []))
    rows = []
    for metric in shown:
        for part in PARTS:
            path = metric_path(metric, part)
            trained, now = mean_std(entries, *path), mean_std(entries, "served", *path)
            if trained[0] is not None and now[0] is not None:
                label = metric_label(f"{metric}/{part}".rstrip("/"))
                rows.append((label, html.spread(*trained), html.spread(*now)))
    if not rows:
        return ""
    added, _ = mean_std(entries, "served", "new_item_bias")
    caption = f"{spoken(name).capitalize()}, test split."
    if added is not None:
        caption += f" Added to the biases of new items: {added:.3g}."
    return html.table(caption, ("Metric", "As trained", "As served"), rows)
