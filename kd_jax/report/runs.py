"""One page from several runs: data sets, students, methods, and other libraries where measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, read_json
from kd_jax.report import html
from kd_jax.report.headline import headline, main_gain
from kd_jax.report.legend import Legend
from kd_jax.report.style import TEMPLATES, style
from kd_jax.report.summary import (
    CONFIDENCE,
    EMPTY,
    Models,
    as_number,
    by_model,
    human_bytes,
    human_time,
    interval_text,
    mean_std,
    metric_label,
    percent,
    shown_metrics,
    spoken,
    thousands,
)

FIX = "run the 'evaluate' stage first"


class Run(NamedTuple):
    """A finished run. name: of its workdir. config: {} where it has none."""

    name: str
    metrics: dict[str, Any]
    config: dict[str, Any]


def write(workdirs: Sequence[Path], legend: Legend, path: Path, peers: Path | None = None) -> Path:
    """Writes the page of several runs to ``path``.

    peers: what ``benchmarks/peers.py --out`` wrote, the rows of other libraries. Raises InputError
    for a workdir without report/metrics.json, and for a damaged file.
    """
    os.environ.setdefault("MPLCONFIGDIR", str((path.parent / ".cache/matplotlib").absolute()))
    runs = [_read(workdir, name) for workdir, name in _named(workdirs)]
    page = render(runs, legend, "" if peers is None else _peers(peers))
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _named(workdirs: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each workdir with as much of its path as tells it from the others."""
    paths = [Path(os.path.abspath(workdir)) for workdir in workdirs]
    if len(set(paths)) < len(paths):
        raise InputError("a workdir is given twice; give each one once")
    if len({path.name for path in paths}) == len(paths):
        return [(path, path.name) for path in paths]
    common = os.path.commonpath(paths)
    return [(path, os.path.relpath(path, common)) for path in paths]


def _read(workdir: Path, name: str) -> Run:
    config = workdir / "config.json"
    path = workdir / "report/metrics.json"
    metrics = read_json(path, FIX) if path.exists() else None
    if not isinstance(metrics, dict):
        kind = "is missing" if metrics is None else "holds no JSON object"
        raise InputError(f"{path} {kind}; {FIX}")
    return Run(name, metrics, read_json(config, "run launch.py again") if config.exists() else {})


def render(runs: Sequence[Run], legend: Legend, peers: str = "") -> str:
    """The page as HTML. A run is in the tables of the metric that it selects models by.

    peers: a table of other libraries.
    """
    metrics = dict.fromkeys(_metric(run) for run in runs)
    results = "".join(
        _results([run for run in runs if _metric(run) == metric], metric, legend)
        for metric in metrics
        if metric
    )
    return Template((TEMPLATES / "runs.html").read_text(encoding="utf-8")).substitute(
        style=style(legend),
        runs=", ".join(escape(run.name) for run in runs),
        headlines="".join(
            f"<li><b>{escape(run.name)}</b>: {escape(headline(run.metrics, legend))}</li>"
            for run in runs
        ),
        results=results or '<p class="missing">Not measured in these runs.</p>',
        gains=_gains(runs, legend),
        peers=peers,
        setups=_setups(runs),
    )


def _metric(run: Run) -> str:
    return main_gain(run.metrics)[0] or next(iter(shown_metrics(run.metrics)), "")


def _results(runs: Sequence[Run], metric: str, legend: Legend) -> str:
    """A row per model, a column per run; the sizes of the models are those of the first run."""
    models: dict[str, Models] = {run.name: by_model(run.metrics, legend) for run in runs}
    names = sorted({name for found in models.values() for name in found}, key=legend.order)
    rows = []
    for name in names:
        swatch = f'<span class="swatch" style="background:var(--{legend.variable(name)})"></span>'
        row = [swatch + escape(spoken(name))]
        for found in models.values():
            entries = found.get(name, [])
            size, rate = (mean_std(entries, key)[0] for key in ("bytes", "users_per_second"))
            cost = [human_bytes(size)] if size else []
            cost += [f"{thousands(rate)} users/s"] if rate else []
            small = f"<small>{', '.join(cost)}</small>" if cost else ""
            row.append(html.spread(*mean_std(entries, "test", metric)) + small)
        rows.append(row)
    caption = f"{escape(metric_label(metric))} on the test split, ± over seeds, and the cost."
    return html.table(caption, ("Model", *(escape(run.name) for run in runs)), rows)


def _gains(runs: Sequence[Run], legend: Legend) -> str:
    gains = [main_gain(run.metrics)[1] for run in runs]
    over = [
        (name, field)
        for each in legend.comparisons
        for name, field in each.over.items()
        if not field or any(field in gain for gain in gains)
    ]
    rows = []
    for run in runs:
        metric, gain, _ = main_gain(run.metrics)
        row = [escape(run.name), escape(metric_label(metric)) if metric else EMPTY]
        for _, field in over:
            change = (gain.get(field) or {}) if field else gain
            relative = as_number(change.get("relative"))
            interval = interval_text(change.get("ci95")).removeprefix(CONFIDENCE)
            known = "" if relative is None else f"<small>{interval}</small>"
            row.append(percent(relative) + known)
        rows.append(row)
    titles = [f"over {escape(spoken(name))}" for name, _ in over]
    caption = f"Gains of {escape(spoken(legend.candidate))}, with 95 % confidence intervals."
    return html.table(caption, ("Run", "Metric", *titles), rows)


def _peers(path: Path) -> str:
    """The rows of other libraries, with the conditions that they were measured under."""
    found = read_json(path, "give the file that benchmarks/peers.py --out=FILE writes")
    rows = found.get("contestants") if isinstance(found, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(
            f"{path} has no contestants; give a file of benchmarks/peers.py --out=FILE"
        )
    table = []
    for name, row in rows.items():
        if "ndcg" not in row:
            continue
        values = [as_number(row.get(key)) for key in ("ndcg", "hr")]
        costs = [as_number(row.get(key)) for key in ("fit_s", "users_per_s")]
        cells = [html.spread(value, None) for value in values]
        cells += [human_time(costs[0]), thousands(costs[1])]
        table.append([escape(name), escape(str(row.get("settings", EMPTY))), *cells])
    caption = "Other libraries and kd_jax on one machine and one split, by benchmarks/peers.py."
    head = ("Contestant", "Settings", "NDCG@10", "HR@10", "Training", "Users/s")
    return (
        '<section aria-labelledby="peers"><header><h2 id="peers">Other libraries</h2></header>'
        f"<div>{html.table(caption, head, table)}</div></section>"
    )


def _architecture(section: Any) -> str | None:
    """The name in a section of a configuration that is trained; None for the other sections."""
    trained = isinstance(section, dict) and "optimizer" in section
    return section.get("name") if trained else None


def _setups(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        dataset, config = run.metrics.get("dataset") or {}, run.config
        student = next(filter(None, map(_architecture, config.values())), None)
        terms = ((config.get("distill") or {}).get("terms") or {}).values()
        losses = [str(term.get("loss")) for term in terms if isinstance(term, dict)]
        seeds = {entry.get("seed") for entry in run.metrics.get("models") or ()} - {None}
        values = [dataset.get("name"), dataset.get("split"), student, ", ".join(losses)]
        numbers = [as_number(dataset.get(key)) for key in ("users", "items", "interactions")]
        cells = [escape(str(value)) if value else EMPTY for value in values]
        rows.append([escape(run.name), *cells, *map(thousands, numbers), str(len(seeds))])
    head = ("Run", "Data", "Split", "Student", "Losses", "Users", "Items", "Interactions", "Seeds")
    return html.table("What was run", head, rows)
