"""The report: what a run measured (report/metrics.json) as one self-contained page, a console table and a headline.

Every part shows what is there and leaves out what is not, so tasks, missing models and single seeds need no flags.
Spread is the sample standard deviation over seeds; confidence intervals come from metrics.json.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from kd_jax.errors import InputError
from kd_jax.files import atomic, fingerprint

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Models = dict[str, list[dict[str, Any]]]  # name -> one entry of metrics.json per seed
Curves = dict[str, dict[str, dict[Any, dict[float, float]]]]  # model -> term -> seed -> step -> value

TEMPLATES = Path(__file__).parent / "templates"
ORDER = ("popularity", "control_teacher", "teacher", "student", "control", "distilled")
RATE_METRICS = ("auc", "log_loss", "accuracy", "f1", "precision", "recall", "rmse", "mae")
LOWER_IS_BETTER = ("log_loss", "rmse", "mae")
SLICES = {"warm": "warm items", "cold": "cold items", "head": "head items", "tail": "tail items",
          "short": "short histories", "long": "long histories", "cold_only": "cold among cold only"}
LABELS = {"ndcg": "NDCG", "f1": "F1", "mrr": "MRR", "map": "MAP", "auc": "AUC", "rmse": "RMSE", "mae": "MAE"}
EMPTY, VALID = "–", "valid "
POWERS = ("", "k", "M", "G", "T")
# Warm hues have a language model behind them, cool ones item IDs (after Okabe & Ito's colour-blind-safe palette).
# Charts are drawn in these colours; each then becomes a CSS variable that the template sets again for dark.
COLOURS = {"ink": "#1b2027", "muted": "#5a6470", "line": "#dde1e6", "popularity": "#7b848f", "student": "#00916a",
           "teacher": "#c98500", "distilled": "#d35400", "control_teacher": "#3d9bd1", "control": "#0068a6",
           "other": "#a8558a"}
MARKERS = {"popularity": "X", "control_teacher": "d", "teacher": "D", "student": "s", "control": "^", "distilled": "o"}
MAX_POINTS = 240  # of one learning curve


def write(workdir: Path) -> Path:
    """Write ``report/index.html`` and return its path. Raises InputError where ``render`` does."""
    page, path = render(workdir), Path(workdir) / "report" / "index.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(workdir: Path) -> str:
    """The page as HTML. Only report/metrics.json is needed; raises InputError if it is missing or no JSON object."""
    workdir = Path(workdir)
    # matplotlib keeps a font cache; nothing outside the workdir is written, so it goes there.
    os.environ.setdefault("MPLCONFIGDIR", str((workdir / ".cache" / "matplotlib").absolute()))
    metrics = _read_json(workdir / "report" / "metrics.json")
    models, shown, (first, second) = _models(metrics), _shown(metrics), _sentences(metrics)
    name = escape(str((metrics.get("dataset") or {}).get("name", "unnamed data")))
    parts = {"results": _results(models, shown), "gains": _gains(metrics, models, shown),
             "cost": _cost(metrics, models, shown), "slices": _slices(models, shown),
             "learning": _learning(workdir / "metrics.jsonl"), "setup": _setup(metrics, models, workdir)}
    return Template((TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        {key: part or "<p>Not measured in this run.</p>" for key, part in parts.items()},
        dataset=name, headline=_unbroken(first), lead=_unbroken(second), tiles=_tiles(metrics, models),
        colours=" ".join(f"--{key}: {value};" for key, value in COLOURS.items()),
    )


def headline(metrics: dict[str, Any]) -> str:
    """What distillation bought and how much of it is the language model's own share, with intervals, in plain text."""
    return " ".join(_sentences(metrics)).strip()


def console_table(metrics: dict[str, Any]) -> Table:
    """Popularity / teacher / student / control / distilled with quality, size and speed; fits 80 columns."""
    models = {name: entries for name, entries in _models(metrics).items() if name != "control_teacher"}
    columns = _columns(models, _shown(metrics)[:6], ("warm", "cold"))
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    titles = [f"{'' if part else _label(metric)}\n{part or 'all'}" for metric, part in columns]
    for i, title in enumerate(["\nmodel", *titles, "\nparams", "\nbytes", "\nusers/s"]):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for name, entries in models.items():
        cells = [_decimals(_stat(entries, *_path(metric, part))[0]) for metric, part in columns]
        cells += [_scaled(_stat(entries, "params")[0], POWERS), _bytes(_stat(entries, "bytes")[0]),
                  _scaled(_stat(entries, "users_per_second")[0], POWERS)]
        table.add_row(_plain(name), *cells, style="bold" if name == "distilled" else None)
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the 'evaluate' stage first") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a JSON object; delete it and run again")
    return value


def _models(metrics: dict[str, Any]) -> Models:
    found: Models = {}
    for entry in metrics.get("models") or ():
        found.setdefault(str(entry.get("name", "unnamed")), []).append(entry)
    return {name: found[name] for name in sorted(found, key=_rank)}


def _shown(metrics: dict[str, Any]) -> list[str]:
    """The metrics to show, the main one first: NDCG and recall for `rank`, all known ones for `rate`."""
    have = sorted({key for entry in metrics.get("models") or () for key in entry.get("test") or {}})
    main = [key for key in metrics.get("gain") or {} if "/" not in key][:1]
    if metrics.get("task") == "rate":
        return list(dict.fromkeys([*main, *(name for name in RATE_METRICS if name in have)]))
    ndcg, recall = (sorted((key for key in have if key.startswith(kind)), key=lambda key: key != best)[:1]
                    for kind, best in (("ndcg@", "ndcg@10"), ("recall@", "recall@20")))
    return list(dict.fromkeys((main or ndcg) + recall)) or have[:2]


def _path(metric: str, part: str) -> tuple[str, ...]:
    return ("slices", part, metric) if part else ("test", metric)


def _columns(models: Models, shown: list[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """(metric, slice) pairs that any model has a value for; '' stands for all targets."""
    return [(metric, part) for metric in shown for part in ("", *parts)
            if any(_stat(entries, *_path(metric, part))[0] is not None for entries in models.values())]


def _number(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def _stat(entries: Sequence[Any], *path: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds of the value at ``path``; None where it cannot be known."""
    for key in path:
        entries = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
    finite = [value for value in map(_number, entries) if value is not None]
    return (statistics.fmean(finite) if finite else None), (statistics.stdev(finite) if len(finite) > 1 else None)


def _decimals(value: float | None) -> str:
    """Four decimals, no zero before the point: .0734"""
    return EMPTY if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.4f}").replace("-", "−")


def _percent(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:+,.1f} %".replace("-", "−")


def _ends(pair: Any) -> tuple[float, float] | None:
    ends = [end for end in map(_number, pair) if end is not None] if isinstance(pair, list | tuple) else []
    return (min(ends), max(ends)) if len(ends) == 2 else None


def _interval(pair: Any) -> str:
    ends = _ends(pair)
    return f"95 % CI {_percent(ends[0])} to {_percent(ends[1])}" if ends else "no confidence interval"


def _count(value: float | None) -> str:
    """Thousands separators; three digits below a hundred."""
    return EMPTY if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _scaled(value: float | None, units: Sequence[str]) -> str:
    power = 0
    while value is not None and abs(value) >= 999.5 and power + 1 < len(units):
        value, power = value / 1000, power + 1
    return _count(value) + (units[power] if value is not None else "")


def _bytes(value: float | None) -> str:
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _duration(value: float | None) -> str:
    if value is None or value >= 100:
        return EMPTY if value is None else f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:,.1f} h"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _label(metric: str) -> str:
    """ndcg@10/warm -> NDCG@10, warm items"""
    name, _, part = metric.partition("/")
    base, at, k = name.partition("@")
    return LABELS.get(base, _plain(base).capitalize()) + at + k + (f", {SLICES.get(part, part)}" if part else "")


def _main_gain(metrics: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(metric, its gain over the student, its gain over the control)"""
    gains = metrics.get("gain") or {}
    metric = next((key for key in gains if "/" not in key), "")
    return metric, gains.get(metric) or {}, (gains.get(metric) or {}).get("lm_share") or {}


def _sentences(metrics: dict[str, Any]) -> tuple[str, str]:
    """The gain over the student, then the language model's own share, each worded by its confidence interval."""
    metric, gain, share = _main_gain(metrics)
    if _number(gain.get("relative")) is None:
        return "Nothing to compare yet: this run does not hold both a student and a distilled student.", ""

    def verdict(difference: dict[str, Any], wording: Sequence[str]) -> str:
        """wording: better, worse, interval includes zero, no interval."""
        ends, lower = _ends(difference.get("ci95")), metric in LOWER_IS_BETTER
        which = 3 if ends is None else int(lower) if ends[0] > 0 else int(not lower) if ends[1] < 0 else 2
        size, interval = _percent(_number(difference.get("relative"))), _interval(difference.get("ci95"))
        return wording[which].format(what=_label(metric), size=size, interval=interval)

    first = verdict(gain, (
        "Distillation improves {what} by {size} over the same student trained on its own ({interval}).",
        "Distillation makes {what} worse: {size} against the same student trained on its own ({interval}).",
        "Distillation makes no reliable difference to {what}: {size} against the same student trained on its own, and "
        "the interval includes zero ({interval}).",
        "Distillation changes {what} by {size} against the same student trained on its own; {interval} was computed, "
        "so this may be chance.",
    ))
    if _number(share.get("relative")) is None:
        return first, "Without a control, the language model's own share of this is not known."
    return first, verdict(share, (
        "The language model's own share, over a control distilled from an ID-only teacher, is {size} ({interval}).",
        "The language model has no share in it: against a control distilled from an ID-only teacher, {what} is worse, "
        "{size} ({interval}).",
        "The language model's own share, over a control distilled from an ID-only teacher, cannot be told from zero: "
        "{size} ({interval}).",
        "The language model's own share, over a control distilled from an ID-only teacher, is {size}; {interval} was "
        "computed, so this may be chance.",
    ))


def _unbroken(sentence: str) -> str:
    """As HTML, with percentages and '95 % CI' kept on one line."""
    return escape(sentence).replace(" %", "&nbsp;%").replace("% CI", "%&nbsp;CI")


def _tiles(metrics: dict[str, Any], models: Models) -> str:
    metric, gain, share = _main_gain(metrics)
    tiles = [(_percent(_number(gain.get("relative"))), f"{_label(metric)}, distilled over student"),
             (_percent(_number(share.get("relative"))), "distilled over control: the language model’s own share")]
    for key, form, text in (("params", "{:.2%}", "of the teacher’s parameters are in the distilled student"),
                            ("users_per_second", "{:.3g} ×", "the teacher’s users per second")):
        small, large = (_stat(models.get(name, ()), key)[0] for name in ("distilled", "teacher"))
        if small and large:
            tiles.append((form.format(small / large).replace("%", " %"), text))
    return "".join(f"<div><dt>{escape(text)}</dt><dd>{value}</dd></div>" for value, text in tiles if value != EMPTY)


def _table(caption: str, head: str | Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """head: titles of the columns, or its rows as HTML; rows: cells as HTML, the first of each names the row."""
    if not isinstance(head, str):
        head = "<tr>" + "".join(f'<th scope="col">{title}</th>' for title in head) + "</tr>"
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
                   for row in rows)
    return _scroll(caption, f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>")


def _scroll(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _spread(mean: float | None, std: float | None) -> str:
    return _decimals(mean) + (f"<small>±{_decimals(std)}</small>" if std is not None else "")


def _results(models: Models, shown: list[str]) -> str:
    if not models:
        return ""
    columns = _columns(models, shown, ("warm", "cold", "cold_only") if len(shown) <= 2 else ())
    best = {}
    for metric, part in columns:
        found = [mean for mean, _ in _values(models, metric, part).values()]
        best[metric, part] = min(found) if metric in LOWER_IS_BETTER else max(found)
    top, under = '<th rowspan="2" scope="col">Model</th>', ""
    for metric in dict.fromkeys(metric for metric, _ in columns):
        parts = [part for other, part in columns if other == metric]
        span = f'colspan="{len(parts)}" scope="colgroup"' if parts != [""] else 'rowspan="2" scope="col"'
        top += f"<th {span}>{escape(_label(metric))}</th>"
        under += "".join(f'<th scope="col">{_plain(part or "all")}</th>' for part in parts if parts != [""])
    costs = {"params": ("Parameters", _count), "bytes": ("Size", _bytes), "users_per_second": ("Users/s", _count),
             "train_seconds": ("Training", _duration)}
    top += "".join(f'<th rowspan="2" scope="col">{title}</th>' for title, _ in costs.values())
    rows = []
    for name, entries in models.items():
        row = [f'<span class="swatch" style="background:var(--{_hue(name)})"></span>{escape(_plain(name))}']
        for column in columns:
            mean, std = _stat(entries, *_path(*column))
            row.append(f"<b>{_spread(mean, std)}</b>" if mean == best[column] else _spread(mean, std))
        rows.append(row + [form(_stat(entries, key)[0]) for key, (_, form) in costs.items()])
    seeds = max(map(len, models.values()))
    caption = f"Test split, {seeds} seed{'s' if seeds > 1 else ''}. Training: wall time of one seed."
    return _table(caption, f"<tr>{top}</tr><tr>{under}</tr>", rows)


def _gains(metrics: dict[str, Any], models: Models, shown: list[str]) -> str:
    rows, effects = [], []
    for metric, gain in (metrics.get("gain") or {}).items():
        p_value, label, cells = _number(gain.get("p_value")), _label(metric), []
        for over, change in (("over student", gain), ("over control", gain.get("lm_share") or {})):
            relative = _number(change.get("relative"))
            cells.append(_percent(relative))
            if relative is not None:
                cells[-1] += f"<small>{_interval(change.get('ci95'))}</small>"
                effects.append((f"{label}\n{over}", relative, _ends(change.get("ci95"))))
        values = [_decimals(_number(gain.get(name))) for name in ("student", "control", "distilled")]
        tiny = p_value is not None and p_value < 1e-4
        rows.append([escape(label), *values, *cells, "&lt; .0001" if tiny else _decimals(p_value)])
    charts = [_bars(models, metric, part) for metric, part in _columns(models, shown[:1], ("warm",))]
    head = ("Metric", "Student", "Control", "Distilled", "Distilled over student", "Distilled over control",
            "p (over student)")
    table = _table("Gains and 95 % confidence intervals", head, rows) if rows else ""
    return _grid(charts + ([_effects(effects)] if effects else [])) + table


def _cost(metrics: dict[str, Any], models: Models, shown: list[str]) -> str:
    axes = {"params": "Parameters", "bytes": "Bytes", "users_per_second": "Users per second"}
    charts = [_tradeoff(models, metric, key, title) for metric in shown[:1] for key, title in axes.items()]
    rows = []
    for entry in metrics.get("serving") or ():
        note = f'<span class="text">{escape(str(entry.get("note") or ""))}</span>'
        rows.append([escape(str(entry.get("name", EMPTY))), _count(_number(entry.get("users_per_second"))),
                     _duration(_number(entry.get("new_item_seconds"))), note])
    head = ("Serving", "Users/s", "A new item costs", '<span class="text">Note</span>')
    return _grid([chart for chart in charts if chart]) + (_table("What serving costs", head, rows) if rows else "")


def _slices(models: Models, shown: list[str]) -> str:
    columns = [column for column in _columns(models, shown[:2], tuple(SLICES)) if column[1]]
    rows = [[escape(_label(f"{metric}/{part}")),
             *(_spread(*_stat(entries, *_path(metric, part))) for entries in models.values())]
            for metric, part in columns]
    table = _table("Slices of the test split", ("Slice", *(escape(_plain(name)) for name in models)), rows)
    # Cold targets among cold items alone are another, easier question: they would stretch the axis.
    charts = [_dots(models, metric, [part for other, part in columns if other == metric and part != "cold_only"])
              for metric in dict.fromkeys(metric for metric, _ in columns)]
    return _grid(charts) + _details("The slices as a table", table) if columns else ""


def _learning(path: Path) -> str:
    """Curves from metrics.jsonl. A line cut off by a kill is skipped; a step that a resumed run logs again replaces."""
    curves: Curves = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
            model, seed, step = str(event["model"]), event.get("seed", 0), float(event["step"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        valid = {VALID + key: value for key, value in (event.get("valid") or {}).items()}
        ignored = ("time", "model", "seed", "step", "valid", "examples_per_second", "grad_norm")
        for term, value in (valid or {key: value for key, value in event.items() if key not in ignored}).items():
            if _number(value) is not None:
                curves.setdefault(model, {}).setdefault(term, {}).setdefault(seed, {})[step] = value
    highest = max((value for terms in curves.values() for term, seeds in terms.items() if term.startswith(VALID)
                   for points in seeds.values() for value in points.values()), default=1.0)
    return _grid([_curves(model, curves[model], highest) for model in sorted(curves, key=_rank)])


def _setup(metrics: dict[str, Any], models: Models, workdir: Path) -> str:
    facts = ""
    for key, value in (metrics.get("dataset") or {}).items():
        if not isinstance(value, dict | list):
            text = _count(_number(value)) if _number(value) is not None else str(value)
            facts += f"<div><dt>{escape(_plain(key).capitalize())}</dt><dd>{escape(text)}</dd></div>"
    keys = sorted({key for entries in models.values() for entry in entries for key in entry.get("test") or {}})
    rows = [[escape(_label(key)), *(_spread(*_stat(entries, "test", key)) for entries in models.values())]
            for key in keys]
    table = _table("Means over seeds", ("Metric", *(escape(_plain(name)) for name in models)), rows)
    blocks = _details("All test metrics", table) if rows else ""
    for name in ("config.json", "manifest.json"):
        if (workdir / name).exists():
            content = escape(json.dumps(_read_json(workdir / name), indent=2, ensure_ascii=False))
            blocks += _details(name, _scroll(name, f"<pre>{content}</pre>"))
    return f'<dl class="facts">{facts}</dl><div>{blocks}</div>'


def _rank(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER)), name


def _hue(name: str) -> str:
    return name if name in ORDER else "other"


def _values(models: Models, metric: str, part: str) -> dict[str, tuple[float, float]]:
    """Model -> (mean, spread or 0), for those that have it."""
    stats = {name: _stat(entries, *_path(metric, part)) for name, entries in models.items()}
    return {name: (mean, std or 0.0) for name, (mean, std) in stats.items() if mean is not None}


def _said(values: dict[str, float]) -> str:
    return "; ".join(f"{_plain(name)} {_decimals(value)}" for name, value in values.items())


def _chart(caption: str, description: str, height: float, draw: Callable[[Figure], None]) -> str:
    """What ``draw`` draws, as inline SVG in the page's colours and fonts; height: inches, at a width of 4.5."""
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer, key = io.StringIO(), "c" + fingerprint([caption, description])
    with style.context(["default", TEMPLATES / "report.mplstyle", {"svg.hashsalt": key}]):
        figure = Figure(figsize=(4.5, height))
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")].replace("xlink:href", "href")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)  # ids are unique on the page
    for name, value in COLOURS.items():
        body = body.replace(value, f"var(--{name})")
    return (f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 324 {72 * height:g}" role="img" '
            f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(caption)}</title>'
            f'<desc id="{key}-d">{escape(description)}</desc>{body}</svg></figure>')


def _bars(models: Models, metric: str, part: str) -> str:
    values = _values(models, metric, part)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (name, (mean, std)) in enumerate(values.items()):
            axes.barh(y, mean, 0.62, color=COLOURS[_hue(name)])
            if std:
                axes.errorbar(mean, y, xerr=std, color=COLOURS["ink"], elinewidth=1.2, capsize=3)
            axes.annotate(_decimals(mean), (mean + std, y), (6, 0), textcoords="offset points", va="center")
        widest = max(mean + std for mean, std in values.values())
        axes.set(xlim=(0, 1.25 * widest or 1), ylim=(len(values) - 0.5, -0.5))
        axes.set_yticks(range(len(values)), [_plain(name) for name in values])
        _ticks(axes.xaxis)
        axes.grid(False, axis="y")

    said = _said({name: mean for name, (mean, _) in values.items()})
    return _chart(f"{_label(metric)}, {SLICES.get(part, 'all targets')}", said, 2.7, draw)


def _effects(effects: list[tuple[str, float, tuple[float, float] | None]]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (label, relative, ends) in enumerate(effects):
            axes.plot(100 * relative, y, "o", color=COLOURS["student" if "student" in label else "control"])
            if ends:
                axes.plot([100 * end for end in ends], [y, y], color=COLOURS["ink"], linewidth=1.2, zorder=1)
            axes.annotate(_percent(relative), (100 * relative, y), (0, 8), textcoords="offset points", ha="center")
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        axes.set(ylim=(len(effects) - 0.4, -0.8), xlabel="relative change, %")
        axes.margins(x=0.15)
        axes.set_yticks(range(len(effects)), [label for label, *_ in effects])
        axes.grid(False, axis="y")

    said = "; ".join(f"{label}: {_percent(relative)}, {_interval(ends)}" for label, relative, ends in effects)
    return _chart("What distillation changes", said.replace("\n", " "), 2.7, draw)


def _tradeoff(models: Models, metric: str, key: str, title: str) -> str:
    """Quality against a cost on a log axis; '' where no model has a positive one."""
    costs = {name: _stat(entries, key)[0] or 0.0 for name, entries in models.items()}
    points = {name: (costs[name], *stat) for name, stat in _values(models, metric, "").items() if costs[name] > 0}
    if not points:
        return ""
    low, high = (pick(cost for cost, *_ in points.values()) for pick in (min, max))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (cost, mean, std) in points.items():
            axes.errorbar(cost, mean, yerr=std or None, fmt=MARKERS.get(name, "P"), color=COLOURS[_hue(name)])
        axes.set_xscale("log")
        axes.set(xlim=(low / 2, high * 2), xlabel=f"{title.lower()}, log scale", ylabel=_label(metric))
        axes.xaxis.set_major_formatter(lambda value, _: _scaled(value, POWERS))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(y=0.15)
        _ticks(axes.yaxis)
        bottom, top = axes.get_ylim()
        # Students of one architecture share one x: labels that would overlap are pushed apart, upwards.
        placed: list[tuple[bool, float, float]] = []
        for name, (cost, mean, _) in sorted(points.items(), key=lambda point: point[1][1]):
            x, y = math.log(cost * 2 / low) / math.log(high * 4 / low), (mean - bottom) / (top - bottom)
            left = x > 0.5
            near = (other_y for side, other_x, other_y in placed if side == left and abs(x - other_x) < 0.3)
            y = max([y, *(other_y + 0.09 for other_y in near)])
            placed.append((left, x, y))
            axes.annotate(_plain(name), (cost, y), (-9 if left else 9, 0), axes.get_xaxis_transform(), "offset points",
                          ha="right" if left else "left", va="center")

    said = "; ".join(f"{_plain(name)} {_decimals(mean)} at {_count(cost)}" for name, (cost, mean, _) in points.items())
    return _chart(f"{_label(metric)} against {title.lower()}", said, 3.0, draw)


def _dots(models: Models, metric: str, parts: list[str]) -> str:
    values = {part: _values(models, metric, part) for part in parts}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, name in enumerate(models):
            means, stds = zip(*(values[part].get(name, (math.nan, 0.0)) for part in parts), strict=True)
            ys = [y + 0.1 * (i - (len(models) - 1) / 2) for y in range(len(parts))]
            axes.errorbar(means, ys, xerr=stds if any(stds) else None, fmt=MARKERS.get(name, "P"), markersize=5.5,
                          color=COLOURS[_hue(name)], elinewidth=1, label=_plain(name))
        for y in range(0, len(parts), 2):
            axes.axhspan(y - 0.5, y + 0.5, color=COLOURS["line"], alpha=0.35, linewidth=0, zorder=0)
        axes.set(ylim=(len(parts) - 0.5, -0.5), xlabel=_label(metric))
        axes.set_yticks(range(len(parts)), [SLICES[part] for part in parts])
        axes.grid(False, axis="y")
        _ticks(axes.xaxis)
        figure.legend(loc="outside upper left", ncols=3)

    said = ". ".join(f"{SLICES[part]}: {_said({name: mean for name, (mean, _) in found.items()})}"
                     for part, found in values.items())
    return _chart(f"{_label(metric)} by slice", said, 4.4, draw)


def _curves(model: str, terms: dict[str, dict[Any, dict[float, float]]], highest: float) -> str:
    """Validation metric above, loss terms below, a line per seed. highest: of all models' scores."""
    scores = [term for term in terms if term.startswith(VALID)]
    losses = sorted((term for term in terms if term not in scores), key=lambda term: term != "loss")

    def draw(figure: Figure) -> None:
        upper, lower = panels = figure.subplots(2, sharex=True)
        for panel, names in zip(panels, (scores, losses), strict=True):
            for term, dash in zip(names, itertools.cycle(("-", "--", ":", "-.")), strict=False):
                for i, points in enumerate(terms[term].values()):
                    steps = sorted(points)[:: len(points) // MAX_POINTS + 1]
                    panel.plot(steps, [points[step] for step in steps], dash, color=COLOURS[_hue(model)], linewidth=1.1,
                               label="_" if i else term)
            _ticks(panel.yaxis)
        upper.set(ylim=(0, 1.06 * highest or 1), ylabel=_label(scores[0].removeprefix(VALID)) if scores else "")
        lower.set(xlabel="step", ylabel="loss")
        if losses:
            lower.legend(ncols=3, loc="upper right")

    last = {term: statistics.fmean(points[max(points)] for points in seeds.values()) for term, seeds in terms.items()}
    return _chart(_plain(model).capitalize(), f"At the last step: {_said(last)}", 3.7, draw)


def _ticks(axis: Axis) -> None:
    """Tick labels without a zero before the point, as in the tables."""
    axis.set_major_formatter(lambda value, _: re.sub(r"^(-?)0\.", r"\1.", f"{value:g}").replace("-", "−"))
