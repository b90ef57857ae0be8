"""HTML elements of which the sections of the page consist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape

from kd_jax.report.summary import decimals

_TAG = re.compile("<[^>]*>")


def table(
    caption: str,
    head: str | Sequence[str],
    rows: Sequence[Sequence[str]],
    labels: Sequence[str] = (),
) -> str:
    """An HTML table, whose rows are cards on a narrow screen.

    head: titles of the columns, or the header rows as HTML; the columns' ``labels`` on a card are
    then given. rows: cells as HTML; the first cell of each row is its header. The roles keep the
    table one for screen readers where its rows are cards.
    """
    if not isinstance(head, str):
        labels = head
        titles = "".join(f'<th scope="col" role="columnheader">{title}</th>' for title in head)
        head = f'<tr role="row">{titles}</tr>'
    names = [escape(unescape(_TAG.sub("", label)), quote=True) for label in labels]
    body = "".join(
        f'<tr role="row"><th scope="row" role="rowheader">{row[0]}</th>'
        + "".join(
            f'<td role="cell" data-label="{name}">{cell}</td>'
            for name, cell in zip(names[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return scroll(
        caption,
        f'<table role="table"><caption>{caption}</caption><thead role="rowgroup">{head}</thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>',
    )


def scroll(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def spread(mean: float | None, std: float | None) -> str:
    return decimals(mean) + (f"<small>±{decimals(std)}</small>" if std is not None else "")
