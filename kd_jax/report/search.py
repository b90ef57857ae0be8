"""The part of the report about the search for hyper-parameters: its best trials by role."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from kd_jax.core.files import checked, read_json
from kd_jax.report import html
from kd_jax.report.legend import Legend
from kd_jax.report.summary import as_number, decimals, metric_label, spoken

FILE = "search.json"
FIX = "delete it and run kd_jax.sweep again"


def search(workdir: Path, legend: Legend) -> str:
    """A table of the best trials of each role; '' without a search.

    Raises InputError for a damaged file.
    """
    path = workdir / "report" / FILE
    if not path.exists():
        return ""
    found = read_json(path, FIX)
    with checked(path, FIX):
        tables = [_table(name, found["roles"][name])
                  for name in sorted(found["roles"], key=legend.order)]  # fmt: skip
    return "".join(tables)


def _table(name: str, found: Mapping[str, Any]) -> str:
    rows = [
        [
            f'<span class="text">{escape(_point(row["point"]))}</span>',
            decimals(as_number(row["first_seed"])),
            _chosen(row),
        ]
        for row in found["best"]
    ]
    early = int(found["ended_early"])
    caption = (
        f"{escape(spoken(name)).capitalize()}: the best of {int(found['trials'])} trials,"
        f" {early} of which ended early."
    )
    head = (
        '<span class="text">Values</span>',
        f"{escape(metric_label(found['metric']))}, validation, first seed",
        "All seeds",
    )
    return html.table(caption, head, rows)


def _chosen(row: Mapping[str, Any]) -> str:
    value = decimals(as_number(row["all_seeds"]))
    return f"<b>{value} <small>chosen</small></b>" if row["chosen"] else value


def _point(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {value}" for field, value in point.items())
