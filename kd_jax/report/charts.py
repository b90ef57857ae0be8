"""The charts of the report, as inline SVG that follows the colours and fonts of the page."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure

from kd_jax.core.files import fingerprint
from kd_jax.report.summary import (
    POWERS,
    SLICES,
    Models,
    decimals,
    interval_text,
    mean_std,
    metric_label,
    model_means,
    percent,
    scaled,
    spoken,
    thousands,
)

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
VALID = "valid "
# Warm hues have a language model behind them, cool ones item IDs (after Okabe & Ito's
# colour-blind-safe palette). Charts are drawn in these colours; each then becomes a CSS variable
# that the template sets again for dark.
COLOURS = {
    "ink": "#1b2027",
    "muted": "#5a6470",
    "line": "#dde1e6",
    "popularity": "#7b848f",
    "student": "#00916a",
    "teacher": "#c98500",
    "distilled": "#d35400",
    "control_teacher": "#3d9bd1",
    "control": "#0068a6",
    "other": "#a8558a",
}
MARKERS = {
    "popularity": "X",
    "control_teacher": "d",
    "teacher": "D",
    "student": "s",
    "control": "^",
    "distilled": "o",
}
MAX_POINTS = 240  # of one learning curve
Box = tuple[float, float, float]  # of a label: left, right and middle height, in shares of the axes


def hue(name: str) -> str:
    return name if name in COLOURS else "other"


def _tag(name: str) -> str:
    """A model's name as short as a chart needs it."""
    return spoken(name) if len(name) <= 18 else f"{spoken(name)[:17]}…"


def _said(values: dict[str, float]) -> str:
    return "; ".join(f"{spoken(name)} {decimals(value)}" for name, value in values.items())


def _chart(caption: str, description: str, height: float, draw: Callable[[Figure], None]) -> str:
    """What ``draw`` draws, as inline SVG in the page's colours and fonts; height: inches, at a
    width of 4.5.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer, key = io.StringIO(), "c" + fingerprint([caption, description])
    with style.context(["default", TEMPLATES / "report.mplstyle", {"svg.hashsalt": key}]):
        figure = Figure(figsize=(4.5, height))
        draw(figure)
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")].replace("xlink:href", "href")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)  # ids are unique on the page
    for name, value in COLOURS.items():
        body = body.replace(value, f"var(--{name})")
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 324 {72 * height:g}"'
        f' role="img" aria-labelledby="{key}-t {key}-d"><title'
        f' id="{key}-t">{escape(caption)}</title><desc'
        f' id="{key}-d">{escape(description)}</desc>{body}</svg></figure>'
    )


def bar_chart(models: Models, metric: str, part: str) -> str:
    values = model_means(models, metric, part)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (name, (mean, std)) in enumerate(values.items()):
            axes.barh(y, mean, 0.62, color=COLOURS[hue(name)])
            if std:
                axes.errorbar(mean, y, xerr=std, color=COLOURS["ink"], elinewidth=1.2, capsize=3)
            axes.annotate(
                decimals(mean), (mean + std, y), (6, 0), textcoords="offset points", va="center"
            )
        widest = max(mean + std for mean, std in values.values())
        axes.set(xlim=(0, 1.25 * widest or 1), ylim=(len(values) - 0.5, -0.5))
        axes.set_yticks(range(len(values)), [_tag(name) for name in values])
        _ticks(axes.xaxis)
        axes.grid(False, axis="y")

    said = _said({name: mean for name, (mean, _) in values.items()})
    return _chart(f"{metric_label(metric)}, {SLICES.get(part, 'all targets')}", said, 2.7, draw)


def effect_chart(effects: list[tuple[str, float, tuple[float, float] | None]]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (label, relative, ends) in enumerate(effects):
            axes.plot(
                100 * relative,
                y,
                "o",
                color=COLOURS["student" if "student" in label else "control"],
            )
            if ends:
                axes.plot(
                    [100 * end for end in ends],
                    [y, y],
                    color=COLOURS["ink"],
                    linewidth=1.2,
                    zorder=1,
                )
            axes.annotate(
                percent(relative),
                (100 * relative, y),
                (0, 8),
                textcoords="offset points",
                ha="center",
            )
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        axes.set(ylim=(len(effects) - 0.4, -0.8), xlabel="relative change, %")
        axes.margins(x=0.15)
        axes.set_yticks(range(len(effects)), [label for label, *_ in effects])
        axes.grid(False, axis="y")

    said = "; ".join(
        f"{label}: {percent(relative)}, {interval_text(ends)}" for label, relative, ends in effects
    )
    return _chart(
        "What distillation changes", said.replace("\n", " "), max(2.7, 0.6 * len(effects)), draw
    )


def tradeoff_chart(models: Models, metric: str, key: str, title: str) -> str:
    """Quality against a cost on a log axis; '' where no model has a positive one."""
    from matplotlib.ticker import LogLocator

    costs = {name: mean_std(entries, key)[0] or 0.0 for name, entries in models.items()}
    points = {
        name: (costs[name], *stat)
        for name, stat in model_means(models, metric, "").items()
        if costs[name] > 0
    }
    if not points:
        return ""
    low, high = (pick(cost for cost, *_ in points.values()) for pick in (min, max))
    narrow = high < 10 * low
    room = 4 if narrow else 2  # for labels, to the left and right

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (cost, mean, std) in points.items():
            axes.errorbar(
                cost, mean, yerr=std or None, fmt=MARKERS.get(name, "P"), color=COLOURS[hue(name)]
            )
        axes.set_xscale("log")
        axes.set(
            xlim=(low / room, high * room),
            xlabel=f"{title.lower()}, log scale",
            ylabel=metric_label(metric),
        )
        if narrow:  # or there may be a single power of ten, or none
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: scaled(value, POWERS))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(y=0.15)
        _ticks(axes.yaxis)
        bottom, top = axes.get_ylim()
        # Students of one architecture share one x: a label takes the nearest place where it covers
        # nothing.
        places = {
            name: (
                math.log(cost * room / low) / math.log(high * room**2 / low),
                (mean - bottom) / (top - bottom),
            )
            for name, (cost, mean, _) in points.items()
        }
        taken = [(x - 0.02, x + 0.02, y) for x, y in places.values()]
        for name, (cost, *_) in sorted(points.items(), key=lambda point: point[1][1]):
            x, marker = places[name]
            inwards, label = (-1 if x > 0.5 else 1), _tag(name)

            def box(
                shift: float,
                side: int,
                x: float = x,
                marker: float = marker,
                size: int = len(label),
            ) -> Box:
                start, end = sorted((x + side * 0.03, x + side * (0.05 + 0.023 * size)))
                return start, end, marker + shift

            shifts = (0, 0.09, -0.09, 0.18, -0.18, 0.27, -0.27, 0.36)
            choices = [(box(shift, side), side) for shift in shifts for side in (inwards, -inwards)]
            free = [
                choice
                for choice in choices
                if _inside(choice[0]) and not any(_meet(choice[0], o) for o in taken)
            ]
            (start, end, y), side = (free or choices)[0]
            taken.append((start, end, y))
            axes.annotate(
                label,
                (cost, y),
                (9 * side, 0),
                axes.get_xaxis_transform(),
                "offset points",
                ha="right" if side < 0 else "left",
                va="center",
            )

    said = "; ".join(
        f"{spoken(name)} {decimals(mean)} at {thousands(cost)}"
        for name, (cost, mean, _) in points.items()
    )
    return _chart(f"{metric_label(metric)} against {title.lower()}", said, 3.0, draw)


def _inside(box: Box) -> bool:
    return box[0] >= 0 and box[1] <= 1 and 0.03 <= box[2] <= 1.05


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < 0.085


def slice_chart(models: Models, metric: str, parts: list[str]) -> str:
    values = {part: model_means(models, metric, part) for part in parts}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, name in enumerate(models):
            means, stds = zip(
                *(values[part].get(name, (math.nan, 0.0)) for part in parts), strict=True
            )
            ys = [y + 0.1 * (i - (len(models) - 1) / 2) for y in range(len(parts))]
            axes.errorbar(
                means,
                ys,
                xerr=stds if any(stds) else None,
                fmt=MARKERS.get(name, "P"),
                markersize=5.5,
                color=COLOURS[hue(name)],
                elinewidth=1,
                label=_tag(name),
            )
        for y in range(0, len(parts), 2):
            axes.axhspan(y - 0.5, y + 0.5, color=COLOURS["line"], alpha=0.35, linewidth=0, zorder=0)
        axes.set(ylim=(len(parts) - 0.5, -0.5), xlabel=metric_label(metric))
        axes.set_yticks(range(len(parts)), [SLICES[part] for part in parts])
        axes.grid(False, axis="y")
        _ticks(axes.xaxis)
        figure.legend(loc="outside upper left", ncols=3)

    said = ". ".join(
        f"{SLICES[part]}: {_said({name: mean for name, (mean, _) in found.items()})}"
        for part, found in values.items()
    )
    return _chart(f"{metric_label(metric)} by slice", said, 4.4, draw)


def curve_chart(model: str, terms: dict[str, dict[Any, dict[float, float]]], highest: float) -> str:
    """Validation metric above, loss terms below, a line per seed. highest: of all models'
    scores.
    """
    scores = [term for term in terms if term.startswith(VALID)]
    losses = sorted((term for term in terms if term not in scores), key=lambda term: term != "loss")

    def draw(figure: Figure) -> None:
        upper, lower = panels = figure.subplots(2, sharex=True)
        for panel, names in zip(panels, (scores, losses), strict=True):
            for term, dash in zip(names, itertools.cycle(("-", "--", ":", "-.")), strict=False):
                for i, points in enumerate(terms[term].values()):
                    steps = sorted(points)[:: len(points) // MAX_POINTS + 1]
                    panel.plot(
                        steps,
                        [points[step] for step in steps],
                        dash,
                        color=COLOURS[hue(model)],
                        linewidth=1.1,
                        label="_" if i else term,
                    )
            _ticks(panel.yaxis)
        upper.set(
            ylim=(0, 1.06 * highest or 1),
            ylabel=metric_label(scores[0].removeprefix(VALID)) if scores else "",
        )
        lower.set(xlabel="step", ylabel="loss")
        if losses:
            lower.legend(ncols=3, loc="upper right")

    last = {
        term: statistics.fmean(points[max(points)] for points in seeds.values())
        for term, seeds in terms.items()
    }
    return _chart(spoken(model).capitalize(), f"At the last step: {_said(last)}", 3.7, draw)


def _ticks(axis: Axis) -> None:
    """Tick labels without a zero before the point, as in the tables."""
    axis.set_major_formatter(
        lambda value, _: re.sub(r"^(-?)0\.", r"\1.", f"{value:g}").replace("-", "−")
    )
