"""The part of the report about users that are known by their history alone."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kd_jax.report import html
from kd_jax.report.charts import short_ticks, svg, tag
from kd_jax.report.legend import Legend
from kd_jax.report.summary import Models, decimals, mean_std, metric_label, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {  # field of ``new_users`` in metrics.json -> title
    "1": "1 item",
    "3": "3 items",
    "10": "10 items",
    "all": "all items",
    "known": "known user",
    "updated": "known user, newer clicks",
}


def new_users_chart(models: Models, legend: Legend) -> str:
    """The quality of each model against the number of clicks of a new user; '' where unknown."""
    counts = [key for key in COLUMNS if key.isdigit()]
    measured = {name: entries for name, entries in models.items() if entries[0].get("new_users")}
    if not measured:
        return ""
    metric = next(iter(next(iter(measured.values()))[0]["new_users"]))
    curves = {
        name: {key: mean_std(entries, "new_users", metric, key) for key in (*counts, "all")}
        for name, entries in measured.items()
    }
    levels = {
        name: mean_std(entries, "test", metric)[0]
        for name, entries in models.items()
        if legend.same_for_all(name)
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, curve in curves.items():
            known = {
                key: (mean, std or 0.0) for key, (mean, std) in curve.items() if mean is not None
            }
            axes.errorbar(
                [list(curve).index(key) for key in known],
                [mean for mean, _ in known.values()],
                yerr=[std for _, std in known.values()],
                marker=legend.marker(name),
                color=legend.colour(name),
                elinewidth=1,
                label=tag(name),
            )
        for dash, (name, level) in zip(("--", ":"), levels.items(), strict=False):
            if level is not None:
                colour = legend.colour(name)
                axes.axhline(level, color=colour, linestyle=dash, linewidth=1.2, label=tag(name))
        ticks = [*counts, "all"]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel="clicks of a new user that are known", ylabel=metric_label(metric))
        axes.set_ylim(bottom=0)
        short_ticks(axes.yaxis)
        figure.legend(loc="outside upper left", ncols=3)

    values = {
        name: ", ".join(f"{key}: {decimals(mean)}" for key, (mean, _) in curve.items())
        for name, curve in curves.items()
    }
    words = "; ".join(f"{spoken(name)} {found}" for name, found in values.items())
    caption = f"{metric_label(metric)} by number of clicks"
    return html.grid([svg(caption, words, 3.0, legend, draw)])


def new_users_table(models: Models, legend: Legend) -> str:
    """The quality of each model by the length of the given history; '' where not measured.

    Baselines with the same list for everybody have their quality on the test split in all columns.
    """
    measured = [entry for entries in models.values() for entry in entries if entry.get("new_users")]
    if not measured:
        return ""
    metric = next(iter(measured[0]["new_users"]))
    columns = {
        key: title
        for key, title in COLUMNS.items()
        if any(key in entry["new_users"].get(metric, {}) for entry in measured)
    }
    rows = []
    for name, entries in models.items():
        swatch = f'<span class="swatch" style="background:var(--{legend.variable(name)})"></span>'
        row = [swatch + escape(spoken(name))]
        if any(entry.get("new_users") for entry in entries):
            row += [html.spread(*mean_std(entries, "new_users", metric, key)) for key in columns]
        elif legend.same_for_all(name):
            row += [html.spread(*mean_std(entries, "test", metric))] * len(columns)
        else:
            continue
        rows.append(row)
    caption = (
        f"{metric_label(metric)} on the test split, by the number of newest items that are known;"
        " popularity has one list for all."
    )
    if "known" in columns:
        caption += (
            " They are training items. Item vectors were trained with these users' clicks; only the"
            " map from histories to user vectors is fitted to other users."
        )
    return html.table(caption, ("Model", *columns.values()), rows)
