"""The report: what a run measured (report/metrics.json) as one self-contained page, a console table
and a headline.

Every part shows what is there and leaves out what is not, so tasks, missing models and single seeds
need no flags. Spread is the sample standard deviation over seeds; confidence intervals come from
metrics.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich import box
from rich.table import Table

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic
from kd_jax.distillation.term import TERMS
from kd_jax.report.charts import (
    COLOURS,
    TEMPLATES,
    VALID,
    bar_chart,
    curve_chart,
    effect_chart,
    hue,
    slice_chart,
    tradeoff_chart,
)
from kd_jax.report.summary import (
    CONFIDENCE,
    EMPTY,
    LOWER_IS_BETTER,
    POWERS,
    SLICES,
    Models,
    as_number,
    by_model,
    claim,
    decimals,
    human_bytes,
    human_time,
    interval_ends,
    interval_text,
    main_gain,
    mean_std,
    metric_columns,
    metric_label,
    metric_path,
    model_means,
    model_order,
    percent,
    scaled,
    shown_metrics,
    spoken,
    thousands,
)

Curves = dict[
    str, dict[str, dict[Any, dict[float, float]]]
]  # model -> term -> seed -> step -> value


def write(workdir: Path) -> Path:
    """Write ``report/index.html`` and return its path. Raises InputError where ``render`` does."""
    page, path = render(workdir), Path(workdir) / "report" / "index.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(workdir: Path) -> str:
    """The page as HTML. Only report/metrics.json is needed; raises InputError if it is missing or
    no JSON object.
    """
    workdir = Path(workdir)
    # matplotlib keeps a font cache; nothing outside the workdir is written, so it goes there.
    os.environ.setdefault("MPLCONFIGDIR", str((workdir / ".cache" / "matplotlib").absolute()))
    metrics = _read_json(workdir / "report" / "metrics.json")
    models, shown, (first, second) = by_model(metrics), shown_metrics(metrics), claim(metrics)
    name = escape(str((metrics.get("dataset") or {}).get("name", "unnamed data")))
    parts = {
        "results": _results(models, shown),
        "gains": _gains(metrics, models, shown),
        "cost": _cost(metrics, models, shown),
        "slices": _slices(models, shown),
        "learning": _learning(workdir / "metrics.jsonl"),
        "setup": _setup(metrics, models, workdir),
    }
    return Template((TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        {
            key: part or '<p class="missing">Not measured in this run.</p>'
            for key, part in parts.items()
        },
        dataset=name,
        headline=_unbroken(first),
        lead=_unbroken(second),
        tiles=_tiles(metrics, models),
        colours=" ".join(f"--{key}: {value};" for key, value in COLOURS.items()),
    )


def console_table(metrics: dict[str, Any]) -> Table:
    """Popularity / teacher / student / control / distilled with quality, size and speed; fits 80
    columns.
    """
    models = {
        name: entries for name, entries in by_model(metrics).items() if name != "control_teacher"
    }
    columns = metric_columns(models, shown_metrics(metrics)[:6], ("warm", "cold"))
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    titles = [
        f"{'' if part else metric_label(metric)}\n{part or 'all'}" for metric, part in columns
    ]
    for i, title in enumerate(["\nmodel", *titles, "\nparams", "\nbytes", "\nusers/s"]):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for name, entries in models.items():
        cells = [
            decimals(mean_std(entries, *metric_path(metric, part))[0]) for metric, part in columns
        ]
        cells += [
            scaled(mean_std(entries, "params")[0], POWERS),
            human_bytes(mean_std(entries, "bytes")[0]),
            scaled(mean_std(entries, "users_per_second")[0], POWERS),
        ]
        table.add_row(spoken(name), *cells, style="bold" if name == "distilled" else None)
    return table


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
    """As HTML, with percentages and '95 % CI' kept on one line."""
    return escape(sentence).replace(" %", "&nbsp;%").replace("% CI", "%&nbsp;CI")


def _tiles(metrics: dict[str, Any], models: Models) -> str:
    metric, gain, share = main_gain(metrics)
    tiles = [
        (
            percent(as_number(gain.get("relative"))),
            f"{metric_label(metric)}, distilled over student",
        ),
        (
            percent(as_number(share.get("relative"))),
            "distilled over control: the language model’s own share",
        ),
    ]
    for key, form, text in (
        ("params", "{:.2%}", "of the teacher’s parameters are in the distilled student"),
        (
            "users_per_second",
            "{:.3g} ×",
            "the teacher’s users per second, on this run’s machine under its load",
        ),
    ):
        small, large = (mean_std(models.get(name, ()), key)[0] for name in ("distilled", "teacher"))
        if small and large:
            tiles.append((form.format(small / large).replace("%", " %"), text))
    return "".join(
        f"<div><dt>{escape(text)}</dt><dd>{value}</dd></div>"
        for value, text in tiles
        if value != EMPTY
    )


def _table(caption: str, head: str | Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """head: titles of the columns, or its rows as HTML; rows: cells as HTML, the first of each
    names the row.
    """
    if not isinstance(head, str):
        head = "<tr>" + "".join(f'<th scope="col">{title}</th>' for title in head) + "</tr>"
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return _scroll(
        caption,
        f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>",
    )


def _scroll(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _spread(mean: float | None, std: float | None) -> str:
    return decimals(mean) + (f"<small>±{decimals(std)}</small>" if std is not None else "")


def _results(models: Models, shown: list[str]) -> str:
    if not models:
        return ""
    columns = metric_columns(
        models, shown, ("warm", "cold", "cold_only") if len(shown) <= 2 else ()
    )
    best = {}
    for metric, part in columns:
        found = [mean for mean, _ in model_means(models, metric, part).values()]
        best[metric, part] = min(found) if metric in LOWER_IS_BETTER else max(found)
    top, under = '<th rowspan="2" scope="col">Model</th>', ""
    for metric in dict.fromkeys(metric for metric, _ in columns):
        parts = [part for other, part in columns if other == metric]
        span = (
            f'colspan="{len(parts)}" scope="colgroup"'
            if parts != [""]
            else 'rowspan="2" scope="col"'
        )
        top += f"<th {span}>{escape(metric_label(metric))}</th>"
        under += "".join(
            f'<th scope="col">{spoken(part or "all")}</th>' for part in parts if parts != [""]
        )
    costs = {
        "params": ("Parameters", thousands),
        "bytes": ("Size", human_bytes),
        "users_per_second": ("Users/s", thousands),
        "train_seconds": (
            "Training",
            lambda seconds: human_time(seconds or None),
        ),  # counting is no training
    }
    top += "".join(f'<th rowspan="2" scope="col">{title}</th>' for title, _ in costs.values())
    rows = []
    for name, entries in models.items():
        row = [
            '<span class="swatch"'
            f' style="background:var(--{hue(name)})"></span>{escape(spoken(name))}'
        ]
        for column in columns:
            mean, std = mean_std(entries, *metric_path(*column))
            row.append(
                f"<b>{_spread(mean, std)}</b>" if mean == best[column] else _spread(mean, std)
            )
        rows.append(row + [form(mean_std(entries, key)[0]) for key, (_, form) in costs.items()])
    seeds = max(map(len, models.values()))
    caption = (
        f"Test split, {seeds} seed{'s' if seeds > 1 else ''}. Training: wall time of one seed."
    )
    head = (
        f"<tr>{top}</tr><tr>{under}</tr>"
        if under
        else f"<tr>{top}</tr>".replace(' rowspan="2"', "")
    )
    return _table(caption, head, rows)


def _gains(metrics: dict[str, Any], models: Models, shown: list[str]) -> str:
    rows, effects = [], []
    over = {"student": "", "control": "lm_share", "trending": "over_trending"}
    if not any("over_trending" in gain for gain in (metrics.get("gain") or {}).values()):
        del over["trending"]
    for metric, gain in (metrics.get("gain") or {}).items():
        p_value, label, cells = as_number(gain.get("p_value")), metric_label(metric), []
        for name, key in over.items():
            change = (gain.get(key) or {}) if key else gain
            relative = as_number(change.get("relative"))
            cells.append(percent(relative))
            if relative is not None:
                cells[-1] += (
                    f"<small>{interval_text(change.get('ci95')).removeprefix(CONFIDENCE)}</small>"
                )
                effects.append(
                    (f"{label}\nover {name}", relative, interval_ends(change.get("ci95")))
                )
        values = [decimals(as_number(gain.get(name))) for name in (*over, "distilled")]
        tiny = p_value is not None and p_value < 1e-4
        rows.append([escape(label), *values, *cells, "&lt; .0001" if tiny else decimals(p_value)])
    charts = [
        bar_chart(models, metric, part)
        for metric, part in metric_columns(models, shown[:1], ("warm",))
    ]
    titles = [*over, "distilled", *(f"over {name}" for name in over)]
    head = ("Metric", *map(str.capitalize, titles), "p")
    caption = (
        "Gains of distilled over the others with 95 % confidence intervals; p: of the gain over the"
        " student."
    )
    table = _table(caption, head, rows) if rows else ""
    return _grid(charts + ([effect_chart(effects)] if effects else [])) + table


def _cost(metrics: dict[str, Any], models: Models, shown: list[str]) -> str:
    axes = {"params": "Parameters", "bytes": "Bytes", "users_per_second": "Users per second"}
    charts = [
        tradeoff_chart(models, metric, key, title)
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
                human_time(as_number(entry.get("new_item_seconds"))),
                note,
            ]
        )
    head = ("Serving", "Users/s", "A new item costs", '<span class="text">Note</span>')
    return _grid([chart for chart in charts if chart]) + (
        _table("What serving costs", head, rows) if rows else ""
    )


def _slices(models: Models, shown: list[str]) -> str:
    columns = [column for column in metric_columns(models, shown[:2], tuple(SLICES)) if column[1]]
    rows = [
        [
            escape(metric_label(f"{metric}/{part}")),
            *(
                _spread(*mean_std(entries, *metric_path(metric, part)))
                for entries in models.values()
            ),
        ]
        for metric, part in columns
    ]
    table = _table(
        "Slices of the test split", ("Slice", *(escape(spoken(name)) for name in models)), rows
    )
    # Cold targets among cold items alone are another, easier question: they would stretch the axis.
    charts = [
        slice_chart(
            models,
            metric,
            [part for other, part in columns if other == metric and part != "cold_only"],
        )
        for metric in dict.fromkeys(metric for metric, _ in columns)
    ]
    return _grid(charts) + _details("The slices as a table", table) if columns else ""


def _learning(path: Path) -> str:
    """Curves from metrics.jsonl. A line cut off by a kill is skipped; a step that a resumed run
    logs again replaces.
    """
    curves: Curves = {}
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    ):
        try:
            event = json.loads(line)
            model, seed, step = str(event["model"]), event.get("seed", 0), float(event["step"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        valid = {VALID + key: value for key, value in (event.get("valid") or {}).items()}
        for term, value in (valid or {key: event.get(key) for key in ("loss", *TERMS)}).items():
            if as_number(value) is not None:
                curves.setdefault(model, {}).setdefault(term, {}).setdefault(seed, {})[step] = value
    highest = max(
        (
            value
            for terms in curves.values()
            for term, seeds in terms.items()
            if term.startswith(VALID)
            for points in seeds.values()
            for value in points.values()
        ),
        default=1.0,
    )
    return _grid(
        [curve_chart(model, curves[model], highest) for model in sorted(curves, key=model_order)]
    )


def _setup(metrics: dict[str, Any], models: Models, workdir: Path) -> str:
    facts = ""
    for key, value in (metrics.get("dataset") or {}).items():
        if not isinstance(value, dict | list):
            text = thousands(as_number(value)) if as_number(value) is not None else str(value)
            facts += (
                f"<div><dt>{escape(spoken(key).capitalize())}</dt><dd>{escape(text)}</dd></div>"
            )
    keys = sorted(
        {key for entries in models.values() for entry in entries for key in entry.get("test") or {}}
    )
    rows = [
        [
            escape(metric_label(key)),
            *(_spread(*mean_std(entries, "test", key)) for entries in models.values()),
        ]
        for key in keys
    ]
    table = _table("Means over seeds", ("Metric", *(escape(spoken(name)) for name in models)), rows)
    blocks = _details("All test metrics", table) if rows else ""
    for name in ("config.json", "manifest.json"):
        if (workdir / name).exists():
            content = escape(json.dumps(_read_json(workdir / name), indent=2, ensure_ascii=False))
            blocks += _details(name, _scroll(name, f"<pre>{content}</pre>"))
    return f'<dl class="facts">{facts}</dl><div>{blocks}</div>'
