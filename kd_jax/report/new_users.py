"""The part of the report about users that are known by their history alone."""

from __future__ import annotations

from html import escape

from kd_jax.report import html
from kd_jax.report.legend import Legend
from kd_jax.report.summary import Models, mean_std, metric_label, spoken

COLUMNS = {  # field of ``new_users`` in metrics.json -> title
    "1": "1 item",
    "3": "3 items",
    "10": "10 items",
    "all": "all items",
    "known": "known user",
    "updated": "known user, newer clicks",
}


def new_users_table(models: Models, legend: Legend) -> str:
    """The quality of each model by what is known of a user; '' where it was not measured.

    Models without a row of their own give everybody the same list, new users included.
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
        elif entries[0].get("seed") is None:
            row += [html.spread(*mean_std(entries, "test", metric))] * len(columns)
        else:
            continue
        rows.append(row)
    caption = (
        f"{metric_label(metric)} on the test split, by the number of newest training items that are"
        " given of a user. The model of new users is fitted to other users."
    )
    return html.table(caption, ("Model", *columns.values()), rows)
