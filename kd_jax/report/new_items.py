"""The part of the report about items that are known by their text alone."""

from __future__ import annotations

from html import escape

from kd_jax.report import html
from kd_jax.report.summary import Models, metric_label, spoken


def new_items_text(models: Models) -> str:
    """One sentence about the exported student; '' where not measured."""
    measured = (entry for entries in models.values() for entry in entries if entry.get("new_items"))
    entry = next(measured, None)
    if entry is None:
        return ""
    metric, found = next(iter(entry["new_items"].items()))
    text, trained = (html.decimals(found[key]) for key in ("text", "trained"))
    return (
        f"<p>{escape(spoken(entry['name']))}, seed {entry['seed']}: {metric_label(metric)} of"
        f" test items without any training interaction, ranked among such items: {text} with"
        f" vectors and biases from their texts, {trained} with those that training gave them. The"
        " map is fitted to the other items.</p>"
    )
