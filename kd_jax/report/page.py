"""The report: the results in report/metrics.json as one self-contained page.

Every part shows the results that exist and leaves out the others, so tasks, missing models and
single seeds need no flags. Spread is the sample standard deviation over seeds; confidence intervals
come from metrics.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic
from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.evaluation.significance import Comparison
from kd_jax.report import html, transfer
from kd_jax.report.charts import (
    Effect,
    bar_chart,
    curve_chart,
    effect_chart,
)
from kd_jax.report.curves import highest, read_curves
from kd_jax.report.examples import examples
from kd_jax.report.headline import claim, main_gain
from kd_jax.report.impressions import impressions_table
from kd_jax.report.legend import Legend
from kd_jax.report.new_items import new_items_text
from kd_jax.report.new_users import new_users_chart, new_users_table
from kd_jax.report.plain import paragraphs
from kd_jax.report.search import search
from kd_jax.report.served import served
from kd_jax.report.slices import slices
from kd_jax.report.smaller import smaller
from kd_jax.report.style import TEMPLATES, style
from kd_jax.report.summary import (
    CONFIDENCE,
    EMPTY,
    SLICES,
    Models,
    as_number,
    by_model,
    decimals,
    human_bytes,
    human_time,
    interval_ends,
    interval_text,
    mean_std,
    metric_columns,
    metric_label,
    metric_path,
    model_means,
    percent,
    shown_metrics,
    spoken,
    thousands,
)
from kd_jax.report.terms import meanings
from kd_jax.report.tiles import tiles
from kd_jax.report.tradeoff import tradeoff_chart

COLUMN = 'scope="col" role="columnheader"'
# Columns of the results: field of metrics.json, title, format. A baseline is not trained.
COSTS = (
    ("params", "Parameters", thousands),
    ("bytes", "Size", human_bytes),
    ("users_per_second", "Users/s", thousands),
    ("train_seconds", "Training", lambda seconds: human_time(seconds or None)),
)

LM_SHARE = (
    "<p>Over control: the share of the language model. The control learns from a teacher of the"
    " same kind without one, so what the distilled student has more is due to the language"
    " model.</p>"
)
RESULT_PARTS = ("warm", "cold", "cold_only")  # columns of the results


def write(workdir: Path, legend: Legend) -> Path:
    """Writes ``report/index.html`` and returns its path; raises InputError as ``render`` does."""
    page, path = render(workdir, legend), Path(workdir) / "report" / "index.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(workdir: Path, legend: Legend) -> str:
    """Renders the report as an HTML page.

    Only report/metrics.json is required; raises InputError if it is missing or no JSON object.
    """
    workdir = Path(workdir)
    # matplotlib keeps a font cache; nothing outside the workdir is written, so it goes there.
    os.environ.setdefault("MPLCONFIGDIR", str((workdir / ".cache" / "matplotlib").absolute()))
    metrics = _read_json(workdir / "report" / "metrics.json")
    legend = legend.with_lists(metrics.get("lists") or ())
    models, shown = by_model(metrics, legend), shown_metrics(metrics)
    first, second = claim(metrics, legend)
    name = escape(str((metrics.get("dataset") or {}).get("name", "unnamed data")))
    parts = {
        "results": _results(models, shown, legend) + impressions_table(models, legend),
        "lm_share": LM_SHARE if main_gain(metrics)[2] else " ",
        "gains": _gains(metrics, models, shown, legend),
        "cost": _cost(metrics, models, shown, legend),
        "smaller": smaller(models, legend),
        "lists": examples(workdir, legend),
        "new_users": new_users_chart(models, legend) + new_users_table(models, legend),
        "new_items": new_items_text(models),
        "served": served(models, shown[:2]),
        "slices": slices(metrics, models, shown, legend),
        "learning": _learning(workdir / "metrics.jsonl", legend),
        "search": search(workdir, legend),
        "setup": _setup(metrics, models, workdir),
    }
    missing = '<p class="missing">Not measured in this run.</p>'
    return Template((TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        {key: part or missing for key, part in parts.items()},
        dataset=name,
        headline=_unbroken(first),
        plain="".join(f'<p class="plain">{_unbroken(p)}</p>' for p in paragraphs(metrics, legend)),
        lead=_unbroken(second),
        tiles=tiles(metrics, models, legend),
        models=_descriptions(models, metrics.get("descriptions", {}), legend),
        terms=escape(meanings(shown, _parts(models, shown, RESULT_PARTS))),
        slice_terms=escape(meanings((), _parts(models, shown[:2], tuple(SLICES)))),
        style=style(legend),
    )


def _parts(models: Models, shown: Sequence[str], parts: Sequence[str]) -> list[str]:
    return [part for _, part in metric_columns(models, list(shown), parts)]


def _descriptions(models: Models, of_run: Mapping[str, str], legend: Legend) -> str:
    """A description of each model, in one sentence; of_run: those of this run's roles."""
    texts = {name: of_run.get(name, model.description) for name, model in legend.models.items()}
    known = [
        f"<b>{escape(spoken(name))}</b> {escape(text)}"
        for name, text in texts.items()
        if name in models and text
    ]
    return f"{'; '.join(known)}." if known else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the 'evaluate' stage first") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run again") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds a {type(value).__name__}, not a JSON object; delete it and run again"
        )
    return value


def _unbroken(sentence: str) -> str:
    """The text as HTML, with percentages and '95 % CI' kept on one line."""
    return escape(sentence).replace(" %", "&nbsp;%").replace("% CI", "%&nbsp;CI")


def _results(models: Models, shown: list[str], legend: Legend) -> str:
    if not models:
        return ""
    parts = RESULT_PARTS if len(shown) <= 2 else ()
    columns = metric_columns(models, shown, parts)
    best = {}
    for metric, part in columns:
        found = [mean for mean, _ in model_means(models, metric, part).values()]
        best[metric, part] = min(found) if metric in LOWER_IS_BETTER else max(found)
    rows = []
    for name, entries in models.items():
        swatch = f'<span class="swatch" style="background:var(--{legend.variable(name)})"></span>'
        row = [swatch + escape(spoken(name))]
        for column in columns:
            mean, std = mean_std(entries, *metric_path(*column))
            cell = html.spread(mean, std)
            row.append(f"<b>{cell}</b>" if mean == best[column] else cell)
        rows.append(row + [form(mean_std(entries, key)[0]) for key, _, form in COSTS])
    seeds = max(map(len, models.values()))
    caption = (
        f"Test split, {seeds} seed{'s' if seeds > 1 else ''}. Users/s: of the whole machine by"
        " the clock, beside its other work. Training: wall time of one seed."
    )
    labels = ["Model", *(metric_label(f"{metric}/{part}".rstrip("/")) for metric, part in columns)]
    labels += [title for _, title, _ in COSTS]
    return html.table(caption, _results_head(columns), rows, labels)


def _results_head(columns: Sequence[tuple[str, str]]) -> str:
    """The header rows: metrics above, and their slices below if there are any."""
    top, under = f'<th rowspan="2" {COLUMN}>Model</th>', ""
    for metric in dict.fromkeys(metric for metric, _ in columns):
        parts = [part for other, part in columns if other == metric]
        span = f'rowspan="2" {COLUMN}'
        if parts != [""]:
            span = f'colspan="{len(parts)}" scope="colgroup" role="columnheader"'
            under += "".join(
                f'<th scope="col" role="columnheader">{spoken(part or "all")}</th>'
                for part in parts
            )
        top += f"<th {span}>{escape(metric_label(metric))}</th>"
    top += "".join(
        f'<th rowspan="2" scope="col" role="columnheader">{title}</th>' for _, title, _ in COSTS
    )
    if under:
        return f'<tr role="row">{top}</tr><tr role="row">{under}</tr>'
    return f'<tr role="row">{top}</tr>'.replace(' rowspan="2"', "")


def _gains(metrics: dict[str, Any], models: Models, shown: list[str], legend: Legend) -> str:
    charts = [
        bar_chart(models, metric, part, legend)
        for metric, part in metric_columns(models, shown[:1], ("warm",))
    ]
    gain = metrics.get("gain") or {}
    effects = [effect for comparison in legend.comparisons for effect in _effects(gain, comparison)]
    if effects:
        charts.append(effect_chart(effects, legend))
    tables = [
        _gain_table(gain, comparison) + transfer.transfer_table(gain, comparison)
        for comparison in legend.comparisons
    ]
    return html.grid(charts) + "".join(tables)


def _effects(gains: dict[str, Any], comparison: Comparison) -> list[Effect]:
    found = []
    for metric, gain in gains.items():
        for baseline, field in comparison.over.items():
            change = (gain.get(field) or {}) if field else gain
            relative, ends = as_number(change.get("relative")), interval_ends(change.get("ci95"))
            if relative is None:
                continue
            label = f"{metric_label(metric)}\nover {spoken(baseline)}"
            if comparison.over[comparison.baseline]:  # not the headline's
                label = f"{metric_label(metric)}\n{comparison.candidate} over {spoken(baseline)}"
            found.append(Effect(label, baseline, relative, ends))
    return found


def _gain_table(gains: dict[str, Any], comparison: Comparison) -> str:
    over = {
        name: field
        for name, field in comparison.over.items()
        if any(name in gain or (field and field in gain) for gain in gains.values())
    }
    if not over or not any(comparison.candidate in gain for gain in gains.values()):
        return ""
    rows = []
    for metric, gain in gains.items():
        found = decimals(as_number(gain.get(comparison.candidate)))
        for name, field in over.items():
            change = (gain.get(field) or {}) if field else gain
            p_value = as_number(change.get("p_value"))
            tiny = p_value is not None and p_value < 1e-4
            cells = [escape(metric_label(metric)), escape(spoken(name))]
            cells += [decimals(as_number(gain.get(name))), found, _change(change)]
            rows.append([*cells, "&lt; .0001" if tiny else decimals(p_value)])
    candidate = escape(spoken(comparison.candidate))
    head = ("Metric", "Compared with", "It has", f"{candidate} has".capitalize(), "Change", "p")
    caption = (
        f"Gains of {spoken(comparison.candidate)} over the others, with 95 % confidence intervals."
        " p: of each gain, two-sided; the smallest possible is 2 / (draws of users + 1)."
    )
    return html.table(caption, head, rows)


def _change(change: dict[str, Any]) -> str:
    relative = as_number(change.get("relative"))
    if relative is None:
        return percent(relative)
    interval = interval_text(change.get("ci95")).removeprefix(CONFIDENCE)
    return f"{percent(relative)}<small>{interval}</small>"


def _cost(metrics: dict[str, Any], models: Models, shown: list[str], legend: Legend) -> str:
    axes = {"params": "Parameters", "bytes": "Bytes", "users_per_second": "Users per second"}
    charts = [
        tradeoff_chart(models, metric, key, title, legend)
        for metric in shown[:1]
        for key, title in axes.items()
    ]
    rows = []
    for entry in metrics.get("serving") or ():
        note = f'<span class="text">{escape(str(entry.get("note") or ""))}</span>'
        rows.append(
            [
                escape(str(entry.get("name", EMPTY))),
                thousands(as_number(entry.get("users_per_second"))),
                *(
                    human_time(as_number(entry.get(f"new_{what}_seconds")))
                    for what in ("item", "user")
                ),
                note,
            ]
        )
    head = (
        "Serving",
        "Users/s",
        "A new item costs",
        "A new user costs",
        '<span class="text">Note</span>',
    )
    return html.grid([chart for chart in charts if chart]) + (
        html.table("What serving costs", head, rows) if rows else ""
    )


def _learning(path: Path, legend: Legend) -> str:
    curves = read_curves(path)
    most = highest(curves)
    trained = [
        name
        for name, measured in curves.items()
        if any(len(points) > 1 for curve in measured.values() for points in curve.values())
    ]
    return html.grid(
        [
            curve_chart(name, curves[name], most, legend)
            for name in sorted(trained, key=legend.order)
        ]
    )


def _fact(name: str, text: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"


def _setup(metrics: dict[str, Any], models: Models, workdir: Path) -> str:
    facts = ""
    for key, value in (metrics.get("dataset") or {}).items():
        if not isinstance(value, dict | list):
            text = thousands(as_number(value)) if as_number(value) is not None else str(value)
            facts += _fact(spoken(key).capitalize(), text)
    for split, lost in ((metrics.get("dataset") or {}).get("not_judged") or {}).items():
        if lost["users"]:
            text = f"{lost['users']:,} users without a history, {lost['targets']:,} interactions"
            facts += _fact(f"Not judged in {split}", text)
    keys = sorted(
        {key for entries in models.values() for entry in entries for key in entry.get("test") or {}}
    )
    rows = [
        [
            escape(metric_label(key)),
            *(html.spread(*mean_std(entries, "test", key)) for entries in models.values()),
        ]
        for key in keys
    ]
    table = html.table(
        "Means over seeds", ("Metric", *(escape(spoken(name)) for name in models)), rows
    )
    blocks = html.details("All test metrics", table) if rows else ""
    for name in ("config.json", "manifest.json"):
        if (workdir / name).exists():
            content = escape(json.dumps(_read_json(workdir / name), indent=2, ensure_ascii=False))
            blocks += html.details(name, html.scroll(name, f"<pre>{content}</pre>"))
    return f'<dl class="facts">{facts}</dl><div>{blocks}</div>'
