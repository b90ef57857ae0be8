"""The page about the data: the numbers in report/data.json as one self-contained page."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_jax.core.files import atomic, checked, read_json
from kd_jax.report import html
from kd_jax.report.charts import svg
from kd_jax.report.legend import BASE, Legend
from kd_jax.report.style import TEMPLATES, style
from kd_jax.report.summary import spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = "data.json"
FIX = "run the stage 'data' again"
HEIGHT = 2.7  # of a chart, inches

Draw = Callable[["Figure"], None]


def write(workdir: Path, legend: Legend) -> Path:
    """Writes ``report/data.html`` and returns its path; raises InputError as ``render`` does."""
    page, path = render(workdir, legend), Path(workdir) / "report" / "data.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(workdir: Path, legend: Legend) -> str:
    """Renders report/data.json as an HTML page; raises InputError if it is missing or damaged."""
    workdir = Path(workdir)
    os.environ.setdefault("MPLCONFIGDIR", str((workdir / ".cache" / "matplotlib").absolute()))
    path = workdir / "report" / DATA
    found = read_json(path, FIX)
    with checked(path, FIX):
        charts = [draw(found, legend) for draw in (_histories, _popularity, _time, _texts)]
        lines, warnings = (_list(found[name]) for name in ("lines", "warnings"))
        cold, name = _cold(found["cold"]), escape(str(found["name"]))
    return Template((TEMPLATES / "data.html").read_text(encoding="utf-8")).substitute(
        style=style(legend),
        dataset=name,
        lines=lines,
        warnings=warnings or "<p>Nothing.</p>",
        cold=cold,
        charts=html.grid([chart for chart in charts if chart]),
    )


def _list(lines: Sequence[str]) -> str:
    rows = "".join(f"<li>{escape(line.removeprefix('data: '))}</li>" for line in lines)
    return f"<ul>{rows}</ul>" if rows else ""


def _cold(shares: dict[str, float | None]) -> str:
    titles = {
        "items": "Items without a train interaction",
        "valid": "Interactions of valid with them",
        "test": "Interactions of test with them",
    }
    rows = [
        (title, f"{share:.1%}".replace("%", " %"))
        for name, title in titles.items()
        if (share := shares.get(name)) is not None
    ]
    return html.table("Cold items, which only their text can describe", ("What", "Share"), rows)


def _histories(found: dict[str, Any], legend: Legend) -> str:
    sizes = found["history"]
    starts, counts = sizes["from"], sizes["count"]
    ends = [start - 1 for start in starts[1:]] + [sizes["largest"]]
    labels = [_range(*bounds) for bounds in zip(starts, ends, strict=True)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(range(len(counts)), counts, 0.8, color=legend.colour(legend.candidate))
        every = -(-len(labels) // 9)
        axes.set_xticks(range(0, len(labels), every), labels[::every])
        axes.set(xlabel="interactions before the test split", ylabel="users")
        axes.grid(False, axis="x")

    text = f"Median {sizes['median']:g}, largest {sizes['largest']:,}"
    caption = f"Length of the histories: median {sizes['median']:g}, longest {sizes['largest']:,}"
    return svg(caption, text, HEIGHT, legend, draw)


def _range(first: int, last: int) -> str:
    return f"{first:,}" if last <= first else f"{first:,}–{last:,}"


def _popularity(found: dict[str, Any], legend: Legend) -> str:
    curve = found["popularity"]
    shown = [(r, n) for r, n in zip(curve["rank"], curve["interactions"], strict=True) if n]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*zip(*shown, strict=True), color=legend.colour(legend.candidate))
        axes.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="train interactions")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axis.set_minor_formatter(lambda value, _: "")

    top = "; ".join(
        f"{float(share):.0%} of the items have {part:.0%} of the interactions"
        for share, part in curve["top"].items()
    ).replace("%", " %")
    caption = f"Popularity: the first {top.split('; ')[1]}"
    return svg(caption, top, HEIGHT, legend, draw) if shown else ""


def _time(found: dict[str, Any], legend: Legend) -> str:
    if found["time"] is None:
        return ""
    edges, splits, cuts = (found["time"][name] for name in ("edges", "splits", "cuts"))
    try:
        dates = [datetime.datetime.fromtimestamp(edge, datetime.UTC) for edge in edges]
        marks = [datetime.datetime.fromtimestamp(cut, datetime.UTC) for cut in cuts]
    except (ValueError, OverflowError, OSError):
        return ""  # numbers that are no dates

    def draw(figure: Figure) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

        axes, starts = figure.subplots(), date2num(dates)
        models = (legend.baseline, legend.large, legend.candidate, "")  # whose colours they have
        below = np.zeros(len(edges) - 1)
        for (name, counts), model in zip(splits.items(), models, strict=False):
            axes.bar(
                starts[:-1], counts, np.diff(starts), below, align="edge",
                color=legend.colour(model), label=spoken(name),
            )  # fmt: skip
            below += counts
        for mark in date2num(marks):
            axes.axvline(mark, color=BASE["ink"], linewidth=1, linestyle="--")
        axes.set(ylabel="interactions")
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.grid(False, axis="x")
        figure.legend(loc="outside upper left", ncols=4)

    ends = " and ".join(f"{mark:%Y-%m-%d %H:%M}" for mark in marks)
    cut = f"; cut after {ends} (UTC)" if ends else ""
    sums = ", ".join(f"{spoken(name)} {sum(counts):,}" for name, counts in splits.items())
    return svg(f"Interactions over time{cut}", sums, HEIGHT, legend, draw)


def _texts(found: dict[str, Any], legend: Legend) -> str:
    texts = found.get("tokens")
    if not texts:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(
            texts["from"], texts["count"], texts["width"], align="edge",
            color=legend.colour(legend.candidate),
        )  # fmt: skip
        axes.set(xlabel="tokens of an item text", ylabel="items")
        axes.grid(False, axis="x")

    caption = f"Length of the item texts: median {texts['median']:g} tokens"
    full = f"{texts['full']:,} reach the limit of {texts['most']:,}"
    return svg(f"{caption}; {full}", full, HEIGHT, legend, draw)
