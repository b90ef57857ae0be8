"""The part of the report about vectors with fewer bits or fewer dimensions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_jax.report import html
from kd_jax.report.charts import short_ticks, svg, tag
from kd_jax.report.legend import BASE, Legend
from kd_jax.report.summary import (
    Models,
    a_student,
    as_number,
    decimals,
    human_bytes,
    mean_std,
    metric_label,
    share,
)
from kd_jax.report.tradeoff import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.0  # inches
LOSS = 0.01  # of the quality, which counts as none
ROOM = 3.0, 1.7  # to the left and right of the bytes, as factors


class Size(NamedTuple):
    bits: int
    dim: int


def smaller(models: Models, legend: Legend) -> str:
    """A chart of quality against bytes, a sentence and a table; '' where not measured."""
    name, entries = next(
        ((name, found) for name, found in models.items() if _measured(found)), ("", [])
    )
    if not name:
        return ""
    found = [entry["smaller"] for entry in _measured(entries)]
    metric = next(key for key in found[0]["sizes"][0] if key not in ("bits", "dim", "bytes"))
    points = _points(found, metric)
    first = found[0]["sizes"][0]
    if next(iter(points), None) != (first["bits"], first["dim"]):
        return ""  # the trained vectors have no value
    chart = _chart(points, metric, name, models, legend)
    return html.grid([chart]) + _words(points, metric, name) + _table(points, metric, name, found)


def _measured(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if (entry.get("smaller") or {}).get("sizes")]


def _points(found: list[dict[str, Any]], metric: str) -> dict[Size, Point]:
    """(bits, dimensions) -> bytes, mean and spread over seeds, in the order of metrics.json."""
    values: dict[Size, list[tuple[float, float]]] = {}
    for seed in found:
        for row in seed["sizes"]:
            value = as_number(row.get(metric))
            if value is not None:
                values.setdefault(Size(row["bits"], row["dim"]), []).append((row["bytes"], value))
    points = {}
    for size, rows in values.items():
        qualities = [value for _, value in rows]
        std = statistics.stdev(qualities) if len(qualities) > 1 else 0.0
        points[size] = Point(rows[0][0], statistics.fmean(qualities), std)
    return points


def _chart(
    points: Mapping[Size, Point], metric: str, name: str, models: Models, legend: Legend
) -> str:
    from matplotlib.ticker import LogLocator

    full = next(iter(points))
    bits = [size for size in points if size.dim == full.dim]
    others = (legend.baseline, *(key for key in models if legend.same_for_all(key)))
    levels = {
        other: mean_std(models.get(other, ()), "test", metric)[0]
        for other in others
        if other != name
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        dims = [full, *(size for size in points if size.dim != full.dim)]
        for sizes, shape, ink, what in (
            (dims, "s", BASE["ink"], "fewer numbers"),
            (bits, "o", legend.colour(name), "fewer bits"),
        ):
            if len(sizes) < 2:
                continue
            chosen = sorted((points[size] for size in sizes), key=lambda point: point.cost)
            axes.errorbar(
                [point.cost for point in chosen],
                [point.mean for point in chosen],
                yerr=[point.std for point in chosen],
                marker=shape,
                markersize=5.5 if shape == "o" else 9,
                markerfacecolor=ink if shape == "o" else "none",
                color=ink,
                linewidth=1,
                label=what,
            )
        for dash, (other, level) in zip(("--", ":", "-."), levels.items(), strict=False):
            if level is not None:
                colour = legend.colour(other)
                axes.axhline(level, color=colour, linestyle=dash, linewidth=1.2, label=tag(other))
        costs = [point.cost for point in points.values()]
        axes.set(xlabel="bytes, log scale", ylabel=metric_label(metric), xscale="log")
        axes.set_xlim(min(costs) / ROOM[0], max(costs) * ROOM[1])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: human_bytes(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_ylim(0, 1.4 * max([point.mean + point.std for point in points.values()]) or 1)
        _labels(axes, points, full)
        short_ticks(axes.yaxis)
        figure.legend(loc="outside upper left", ncols=3)

    description = "; ".join(
        f"{_name(size, full)} {decimals(point.mean)} at {human_bytes(point.cost)}"
        for size, point in points.items()
    )
    caption = f"{metric_label(metric)} of the {a_student(name)} by the size of its vectors"
    return svg(caption, description, HEIGHT, legend, draw)


def _labels(axes: Axes, points: Mapping[Size, Point], full: Size) -> None:
    """Two lines of labels above all markers and whiskers, each with its name on the left."""
    top = max(point.mean + point.std for point in points.values())
    for size, point in points.items():
        bits = size.dim == full.dim
        axes.annotate(
            str(size.bits if bits else size.dim),
            (point.cost, top),
            (0, 21 if bits else 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
    for name, height in (("bits", 21), ("numbers", 7)):
        axes.annotate(
            name,
            (0, top),
            (4, height),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="bottom",
        )


def _name(size: Size, full: Size) -> str:
    """What differs from the trained vectors; those are named by their bits."""
    return f"{size.bits} bits" if size.dim == full.dim else f"{size.dim} of {full.dim} numbers"


def _words(points: Mapping[Size, Point], metric: str, name: str) -> str:
    """The smallest vectors that lose less than one percent."""
    (full, whole), *others = points.items()
    kept = [(size, point) for size, point in others if point.mean >= (1 - LOSS) * whole.mean]
    called = escape(metric_label(metric))
    if not whole.mean or not others:
        return ""
    if not kept:
        return f"<p>Every smaller size loses more than 1 % of {called}.</p>"
    size, point = min(kept, key=lambda entry: entry[1].cost)
    how = f"{_name(size, full)} per vector"
    if size.dim == full.dim:
        how = f"{size.bits} bits per number instead of {full.bits}"
    return (
        f"<p>With {how}, the vectors of the {escape(a_student(name))} take"
        f" {human_bytes(point.cost)} instead of {human_bytes(whole.cost)} and keep"
        f" {share(point.mean / whole.mean)} of its {called}. No smaller size in the table loses"
        " less than 1 %.</p>"
    )


def _table(
    points: Mapping[Size, Point], metric: str, name: str, found: list[dict[str, Any]]
) -> str:
    whole = next(iter(points.values()))
    rows = [
        [
            f"{bits} bits, {dim} numbers",
            human_bytes(point.cost),
            html.spread(point.mean, point.std if len(found) > 1 else None),
            share(point.mean / whole.mean) if whole.mean else share(None),
        ]
        for (bits, dim), point in points.items()
    ]
    caption = (
        f"Vectors of the {escape(a_student(name))}, {found[0]['users']:,} users of the test"
        " split. Size: of the item vectors and biases, and of the users’ vectors where the student"
        " has them (in at least 8 bits). Fewer numbers: the first principal dimensions."
    )
    head = ("Per number, per vector", "Size", escape(metric_label(metric)), "Of the trained")
    return html.table(caption, head, rows)
