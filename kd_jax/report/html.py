"""HTML elements of which the sections of the page consist."""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.report.summary import decimals


def table(caption: str, head: str | Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table.

    head: titles of the columns, or the header rows as HTML. rows: cells as HTML; the first cell of
    each row is its header.
    """
    if not isinstance(head, str):
        head = "<tr>" + "".join(f'<th scope="col">{title}</th>' for title in head) + "</tr>"
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return scroll(
        caption,
        f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>",
    )


def scroll(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def spread(mean: float | None, std: float | None) -> str:
    return decimals(mean) + (f"<small>±{decimals(std)}</small>" if std is not None else "")
