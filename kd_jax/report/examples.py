"""The part of the report that shows lists: of a few users, and how much the models agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_jax.core.files import checked, read_json
from kd_jax.report import html
from kd_jax.report.charts import svg, tag
from kd_jax.report.legend import Legend
from kd_jax.report.summary import spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "lists.json"
FIX = "run the stage 'report' again"
CHOSEN = 8  # items that are named
HEIGHT = 2.9  # inches


def examples(workdir: Path, legend: Legend) -> str:
    """Lists side by side and the agreement with the teacher; '' without report/lists.json.

    Raises InputError for a damaged file.
    """
    path = workdir / "report" / FILE
    if not path.exists():
        return ""
    found = read_json(path, FIX)
    with checked(path, FIX):
        users = "".join(_user(user, legend) for user in found["users"])
        chart = _agreement(found, legend)
    return html.grid([chart] if chart else []) + users


def _user(user: Mapping[str, Any], legend: Legend) -> str:
    chosen = set(user["chosen"])
    names = sorted(user["lists"], key=legend.order)
    columns = [("What they chose before", _plain(user["history"]))]
    if user["earlier"]:
        columns[0][1].append(f'<span class="more">and {user["earlier"]:,} earlier</span>')
    for name in names:
        swatch = f'<span class="swatch" style="background:var(--{legend.variable(name)})"></span>'
        columns.append((swatch + escape(spoken(name)), _marked(user["lists"][name], chosen)))
    after = _plain(user["chosen"][:CHOSEN])
    if len(user["chosen"]) > CHOSEN:
        after.append(f'<span class="more">and {len(user["chosen"]) - CHOSEN:,} more</span>')
    columns.append(("What they chose then", after))
    lists = "".join(
        f"<div><h4>{title}</h4><ol>{''.join(f'<li>{item}</li>' for item in items)}</ol></div>"
        for title, items in columns
    )
    return f'<h3>User {escape(str(user["user"]))}</h3><div class="lists">{lists}</div>'


def _plain(titles: Sequence[str]) -> list[str]:
    return [escape(str(title)) for title in titles]


def _marked(titles: Sequence[str], chosen: set[str]) -> list[str]:
    """The titles; those that the user chose then are bold and say so."""
    return [
        f"<b>{escape(title)} <small>chosen</small></b>" if title in chosen else escape(title)
        for title in titles
    ]


def _agreement(found: Mapping[str, Any], legend: Legend) -> str:
    """The share of the teacher's best items that each model has among its own."""
    curves: dict[str, dict[int, float]] = {
        name: {int(k): float(share) for k, share in shares.items()}
        for name, shares in found["agreement"].items()
    }
    if not curves:
        return ""
    teacher = spoken(str(found["reference"]))
    names = sorted(curves, key=legend.order)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in names:
            axes.plot(
                list(curves[name]),
                [100 * share for share in curves[name].values()],
                marker=legend.marker(name),
                color=legend.colour(name),
                label=tag(name),
            )
        depths = list(next(iter(curves.values())))
        axes.set_xscale("log")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.set(ylim=(0, 100), xlabel="length of the lists", ylabel="in common, %")
        figure.legend(loc="outside upper left", ncols=3)

    words = "; ".join(
        f"{spoken(name)} {100 * share:.0f} % of the {depth} best"
        for name in names
        for depth, share in list(curves[name].items())[-1:]
    )
    caption = f"What a list has in common with the {teacher}’s"
    users = f"{found['agreement_users']:,} users of the test split"
    return svg(caption, f"{users}: {words}", HEIGHT, legend, draw)
