"""The results as a table for the console."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from kd_jax.report.legend import Appearance, Legend
from kd_jax.report.summary import (
    POWERS,
    by_model,
    decimals,
    human_bytes,
    mean_std,
    metric_columns,
    metric_label,
    metric_path,
    scaled,
    shown_metrics,
    spoken,
)


def console_table(metrics: dict[str, Any], legend: Legend) -> Table:
    """A row per model with quality, size and speed; fits 80 columns."""
    legend = legend.with_lists(metrics.get("lists") or ())
    models = {
        name: entries
        for name, entries in by_model(metrics, legend).items()
        if legend.models.get(name, Appearance()).in_console
    }
    columns = metric_columns(models, shown_metrics(metrics)[:6], ("warm", "cold"))
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    titles = [
        f"{'' if part else metric_label(metric)}\n{part or 'all'}" for metric, part in columns
    ]
    table.add_column("\nmodel", no_wrap=True)
    for title in (*titles, "\nparams", "\nbytes", "\nusers/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, entries in models.items():
        cells = [
            decimals(mean_std(entries, *metric_path(metric, part))[0]) for metric, part in columns
        ]
        cells += [
            scaled(mean_std(entries, "params")[0], POWERS),
            human_bytes(mean_std(entries, "bytes")[0]),
            scaled(mean_std(entries, "users_per_second")[0], POWERS),
        ]
        style = "bold" if name == legend.candidate else None
        table.add_row(spoken(name), *cells, style=style)
    return table
