"""Quality against cost, with labels that cover nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from kd_jax.report.charts import short_ticks, svg, tag
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    POWERS,
    Models,
    decimals,
    mean_std,
    metric_label,
    model_means,
    scaled,
    spoken,
    thousands,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 0.085  # of a label, in fractions of the axes
SHAPE = 0.6  # height of the figure, as a share of its width
SHIFTS = (0, 0.09, -0.09, 0.18, -0.18, 0.27, -0.27, 0.36)  # of a label, up and down


class Point(NamedTuple):
    cost: float
    mean: float
    std: float


class Box(NamedTuple):
    """The box of a label, in fractions of the axes."""

    left: float
    right: float
    middle: float

    @property
    def inside(self) -> bool:
        return self.left >= 0 and self.right <= 1 and 0.03 <= self.middle <= 1.05

    def meets(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not beside and abs(self.middle - other.middle) < HEIGHT

    def distance(self, place: tuple[float, float]) -> float:
        """How far a marker at ``place`` is, in widths of the figure."""
        aside = max(self.left - place[0], place[0] - self.right, 0.0)
        return math.hypot(aside, SHAPE * (self.middle - place[1]))


def tradeoff_chart(models: Models, metric: str, key: str, title: str, legend: Legend) -> str:
    """Quality against a cost on a log axis; '' where no model has a positive one."""
    costs = {name: mean_std(entries, key)[0] or 0.0 for name, entries in models.items()}
    points = {
        name: Point(costs[name], mean, std)
        for name, (mean, std) in model_means(models, metric, "").items()
        if costs[name] > 0
    }
    if not points:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (cost, mean, std) in points.items():
            axes.errorbar(
                cost, mean, yerr=std or None, fmt=legend.marker(name), color=legend.colour(name)
            )
        axes.set(xlabel=f"{title.lower()}, log scale", ylabel=metric_label(metric))
        _scale(axes, points)
        _label(axes, points)

    description = "; ".join(
        f"{spoken(name)} {decimals(mean)} at {thousands(cost)}"
        for name, (cost, mean, _) in points.items()
    )
    caption = f"{metric_label(metric)} against {title.lower()}"
    return svg(caption, description, 3.0, legend, draw)


def _scale(axes: Axes, points: dict[str, Point]) -> None:
    from matplotlib.ticker import LogLocator

    costs = [point.cost for point in points.values()]
    low, high = min(costs), max(costs)
    narrow = high < 10 * low
    room = 5 if narrow else 2  # for labels, to the left and right
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    if narrow:  # or there may be a single power of ten, or none
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: scaled(value, POWERS))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.margins(y=0.15)
    short_ticks(axes.yaxis)


def _label(axes: Axes, points: dict[str, Point]) -> None:
    """Labels every point at the nearest place where the label covers no marker and no whisker.

    Students of one architecture have the same x, so their labels would overlap otherwise.
    """
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    places, taken = {}, []
    for name, (cost, mean, std) in points.items():
        x, y = math.log(cost / left) / math.log(right / left), (mean - bottom) / (top - bottom)
        places[name] = x, y
        taken.append(Box(x - 0.02, x + 0.02, y))
        reach = std / (top - bottom)
        parts = math.ceil(2 * reach / HEIGHT)
        taken += [Box(x - 0.01, x + 0.01, y - reach + n * HEIGHT) for n in range(parts)]
        taken += [Box(x - 0.01, x + 0.01, y + reach)] if std else []
    for name, point in sorted(points.items(), key=lambda entry: entry[1].mean):
        others = [place for other, place in places.items() if other != name]
        box, side = _free_place(places[name], len(tag(name)), taken, others)
        taken.append(box)
        axes.annotate(
            tag(name),
            (point.cost, box.middle),
            (9 * side, 0),
            axes.get_xaxis_transform(),
            "offset points",
            ha="right" if side < 0 else "left",
            va="center",
        )


def _free_place(
    place: tuple[float, float], length: int, taken: list[Box], others: list[tuple[float, float]]
) -> tuple[Box, int]:
    """A label's box, and 1 if it stands to the right of its marker at ``place``, -1 to the left.

    others: the other markers, none of which may be nearer to the label than its own.
    """
    x, y = place
    inwards = -1 if x > 0.5 else 1
    choices = []
    for shift in SHIFTS:
        for side in (inwards, -inwards):
            start, end = sorted((x + side * 0.03, x + side * (0.05 + 0.023 * length)))
            choices.append((Box(start, end, y + shift), side))
    free = [
        (box, side)
        for box, side in choices
        if box.inside and not any(box.meets(other) for other in taken)
    ]
    own = (
        (box, side)
        for box, side in free
        if all(box.distance(place) < box.distance(other) for other in others)
    )
    return next(own, free[0] if free else choices[0])
