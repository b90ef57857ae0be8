"""The charts of the report, as inline SVG that follows the colours and fonts of the page."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from kd_jax.core.files import fingerprint
from kd_jax.report.curves import LOSS, VALID, Curve
from kd_jax.report.legend import BASE, Legend
from kd_jax.report.style import TEMPLATES
from kd_jax.report.summary import (
    SLICES,
    Models,
    decimals,
    interval_text,
    metric_label,
    model_means,
    percent,
    spoken,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MAX_POINTS = 240  # of one learning curve


def tag(name: str) -> str:
    """A model's name as short as a chart needs it."""
    return spoken(name) if len(name) <= 18 else f"{spoken(name)[:17]}…"


def listed(values: Mapping[str, float]) -> str:
    return "; ".join(f"{spoken(name)} {decimals(value)}" for name, value in values.items())


def svg(
    caption: str, description: str, height: float, legend: Legend, draw: Callable[[Figure], None]
) -> str:
    """The figure that ``draw`` draws, as inline SVG; height: inches, at a width of 4.5.

    Its fonts are those of the page. The colours of ``legend`` become CSS variables, which are set
    anew for a dark page.
    """
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer, key = io.StringIO(), "c" + fingerprint([caption, description])
    with style.context(["default", TEMPLATES / "report.mplstyle", {"svg.hashsalt": key}]):
        figure = Figure(figsize=(4.5, height))
        draw(figure)
        # Figure.savefig draws once more before, and both draws take about as long as the layout.
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn = buffer.getvalue()
    body = drawn[drawn.index('<g id="figure_1">') : drawn.rindex("</svg>")]
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)  # ids are unique on the page
    for name, value in legend.palette().items():
        body = body.replace(value, f"var(--{name})")
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 324 {72 * height:g}"'
        f' role="img" aria-labelledby="{key}-t {key}-d"><title'
        f' id="{key}-t">{escape(caption)}</title><desc'
        f' id="{key}-d">{escape(description)}</desc>{body}</svg></figure>'
    )


def bar_chart(models: Models, metric: str, part: str, legend: Legend) -> str:
    values = model_means(models, metric, part)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (name, (mean, std)) in enumerate(values.items()):
            axes.barh(y, mean, 0.62, color=legend.colour(name))
            if std:
                axes.errorbar(mean, y, xerr=std, color=BASE["ink"], elinewidth=1.2, capsize=3)
            axes.annotate(
                decimals(mean), (mean + std, y), (6, 0), textcoords="offset points", va="center"
            )
        widest = max(mean + std for mean, std in values.values())
        axes.set(xlim=(0, 1.25 * widest or 1), ylim=(len(values) - 0.5, -0.5))
        axes.set_yticks(range(len(values)), [tag(name) for name in values])
        short_ticks(axes.xaxis)
        axes.grid(False, axis="y")

    caption = f"{metric_label(metric)}, {SLICES.get(part, 'all targets')}"
    description = listed({name: mean for name, (mean, _) in values.items()})
    return svg(caption, description, 2.7, legend, draw)


class Effect(NamedTuple):
    """A relative change over ``baseline``, with the ends of its confidence interval if known."""

    label: str
    baseline: str
    relative: float
    ends: tuple[float, float] | None


def effect_chart(effects: Sequence[Effect], legend: Legend) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, effect in enumerate(effects):
            change = 100 * effect.relative
            axes.plot(change, y, "o", color=legend.colour(effect.baseline))
            if effect.ends:
                ends = [100 * end for end in effect.ends]
                axes.plot(ends, [y, y], color=BASE["ink"], linewidth=1.2, zorder=1)
            axes.annotate(
                percent(effect.relative),
                (1.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
            )
        axes.axvline(0, color=BASE["muted"], linewidth=1)
        axes.set(ylim=(len(effects) - 0.5, -0.5), xlabel="relative change, %")
        axes.margins(x=0.15)
        axes.set_yticks(range(len(effects)), [effect.label for effect in effects])
        axes.grid(False, axis="y")

    description = "; ".join(
        f"{effect.label}: {percent(effect.relative)}, {interval_text(effect.ends)}"
        for effect in effects
    ).replace("\n", " ")
    height = max(2.7, 0.6 * len(effects))
    return svg("What distillation changes", description, height, legend, draw)


def slice_chart(models: Models, metric: str, parts: Sequence[str], legend: Legend) -> str:
    values = {part: model_means(models, metric, part) for part in parts}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, name in enumerate(models):
            found = [values[part].get(name, (math.nan, 0.0)) for part in parts]
            stds = [std for _, std in found]
            axes.errorbar(
                [mean for mean, _ in found],
                [y + 0.1 * (i - (len(models) - 1) / 2) for y in range(len(parts))],
                xerr=stds if any(stds) else None,
                fmt=legend.marker(name),
                markersize=5.5,
                color=legend.colour(name),
                elinewidth=1,
                label=tag(name),
            )
        for y in range(0, len(parts), 2):
            axes.axhspan(y - 0.5, y + 0.5, color=BASE["line"], alpha=0.35, linewidth=0, zorder=0)
        axes.set(ylim=(len(parts) - 0.5, -0.5), xlabel=metric_label(metric))
        axes.set_yticks(range(len(parts)), [SLICES[part] for part in parts])
        axes.grid(False, axis="y")
        short_ticks(axes.xaxis)
        figure.legend(loc="outside upper left", ncols=3)

    description = ". ".join(
        f"{SLICES[part]}: {listed({name: mean for name, (mean, _) in found.items()})}"
        for part, found in values.items()
    )
    return svg(f"{metric_label(metric)} by slice", description, 4.4, legend, draw)


def curve_chart(model: str, measured: Mapping[str, Curve], highest: float, legend: Legend) -> str:
    """The learning curves of a model: validation metric above, loss terms below.

    There is one line per seed. highest: the highest validation score of all models.
    """
    scores = [name for name in measured if name.startswith(VALID)]
    losses = sorted((name for name in measured if name not in scores), key=lambda n: n != LOSS)

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True)
        for panel, names in ((upper, scores), (lower, losses)):
            for name, dash in zip(names, itertools.cycle(("-", "--", ":", "-.")), strict=False):
                _plot(panel, measured[name], name, dash, legend.colour(model))
            short_ticks(panel.yaxis)
        label = metric_label(scores[0].removeprefix(VALID)) if scores else ""
        upper.set(ylim=(0, 1.06 * highest or 1), ylabel=label)
        lower.set(xlabel="step", ylabel="loss")
        if losses:
            lower.legend(ncols=3, loc="upper right")

    last = {
        name: statistics.fmean(points[max(points)] for points in measured[name].values())
        for name in (*losses, *scores)
    }
    caption = spoken(model).capitalize()
    return svg(caption, f"At the last step: {listed(last)}", 3.7, legend, draw)


def _plot(axes: Axes, curve: Curve, name: str, dash: str, colour: str) -> None:
    for i, points in enumerate(curve.values()):
        steps = sorted(points)[:: len(points) // MAX_POINTS + 1]
        values = [points[step] for step in steps]
        label = "_" if i else name  # one entry for all seeds
        axes.plot(steps, values, dash, color=colour, linewidth=1.1, label=label)


def short_ticks(axis: Axis) -> None:
    """Tick labels without a zero before the point, as in the tables."""
    axis.set_major_formatter(
        lambda value, _: re.sub(r"^(-?)0\.", r"\1.", f"{value:g}").replace("-", "−")
    )
