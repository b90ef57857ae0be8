"""The text columns of the items: which they are, and their cells as plain words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData, listed, nested

TITLES = ("title", "name", "product_title", "product_name", "headline")  # shown, best first
URL = r"^(https?|ftp)://\S+$"
URLS = 0.9  # share of a column's cells that makes it one of URLs
TAGS = (
    "a|abbr|article|aside|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|figure|font"
    "|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol"
    "|option|p|pre|s|script|section|select|small|span|strong|style|sub|sup|svg|table|tbody|td"
    "|th|thead|tr|tt|u|ul|video"
)
HIDDEN = r"(?is)<script\b.*?</script\s*>|<style\b.*?</style\s*>|<!--.*?-->"
TAG = rf"(?is)</?({TAGS})(\s[^<>]*)?/?>"
ENTITY = r"&(#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]{1,30});"


def texts(
    raw: RawData, item_ids: pl.Series, columns: Sequence[str] | None, missing: str
) -> pl.DataFrame:
    """The text columns of the items, in the order of ``item_ids``; '' where a text is missing.

    Tags and entities of HTML are removed. columns: those to keep, in order; None or () = all but
    those of URLs, and a column called 'title' or so comes first. missing: an item without any text
    is an 'error', or gets its 'id' as the text of its first column. Raises InputError for such an
    item under 'error', for an unknown column, and for a nested column that is not in ``columns``.
    """
    have = [name for name in raw.items.columns if name != "item"]
    place = raw.items_path or raw.place
    for name in columns or ():
        if name not in have:
            raise InputError(
                f"{place}: data.text_columns: the items have no column"
                f" {name!r}{nearest(name, have)}"
            )
    if missing not in ("error", "id"):
        raise InputError(
            f"data.missing_text={missing!r} is unknown{nearest(missing, ('error', 'id'))}"
        )
    table = raw.items.select("item", *(columns or _text_columns(raw.items.select(have), place)))
    if table.width == 1:
        table = table.with_columns(title=pl.lit(""))
    found = (
        item_ids.rename("item").to_frame().join(table, on="item", how="left", maintain_order="left")
    )
    found = found.select("item", *(plain(found[name]) for name in found.columns[1:]))
    blank = found.select(pl.all_horizontal(pl.exclude("item") == "")).to_series()
    if blank.any() and missing == "error":
        raise InputError(
            f"{_textless(raw, found['item'], blank)}, or set data.missing_text='id' to use the id"
            " as text"
        )
    first = found.columns[1]
    ids = pl.col("item").cast(pl.String)
    named = pl.when(pl.Series(blank)).then(ids).otherwise(pl.col(first))
    return found.with_columns(named.alias(first)).drop("item")


def _text_columns(items: pl.DataFrame, place: str) -> list[str]:
    """The columns of text, the title first. Raises InputError for a nested column."""
    flat = [name for name, kind in items.schema.items() if not nested(kind)]
    for name, kind in items.schema.items():
        if nested(kind):
            example = ",".join(flat) or name
            raise InputError(
                f"{place}: column {name!r} is of type {_short(kind)}, which is no text; name the"
                f" columns that are the text: --config.data.text_columns={example}"
            )
    names = [name for name in items.columns if not _holds_urls(items[name])] or items.columns
    title = next((name for name in TITLES if name in names), None)
    return [title, *(name for name in names if name != title)] if title else names


def _short(kind: pl.DataType) -> str:
    text = str(kind)
    return text if len(text) < 80 else f"{text[:77]}..."


def _holds_urls(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return False
    given = column.filter((column != "").fill_null(False))
    return bool(len(given)) and int(given.str.contains(URL).sum()) >= URLS * len(given)


def plain(column: pl.Series) -> pl.Series:
    """The cells of a column as words: nested values are joined by ', ', HTML is removed."""
    name = column.name
    if nested(column.dtype) or isinstance(column.dtype, (pl.List, pl.Array)):
        column = pl.Series(name, [_words(value) for value in column.to_list()], dtype=pl.String)
    column = column.cast(pl.String).fill_null("").str.strip_chars()
    marked = column.str.contains(HIDDEN) | column.str.contains(TAG) | column.str.contains(ENTITY)
    if not marked.any():
        return column
    text = column.filter(marked).str.replace_all(HIDDEN, " ").str.replace_all(TAG, " ")
    cells = [" ".join(html.unescape(cell).split()) for cell in text]
    return column.scatter(marked.arg_true(), cells)


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value)
    return ", ".join(word for word in map(_words, value) if word)


def _textless(raw: RawData, items: pl.Series, blank: pl.Series) -> str:
    """The message of the error for the ``blank`` items: why they have no text, and the fix."""
    if raw.items.width == 1 and not raw.items_path:
        return (
            f"{raw.place}: {len(items):,} items have no text, because there is no items table; name"
            " one that has text with data.files.items_path"
        )
    place = raw.items_path or f"{raw.name}, items table"
    if raw.items.width == 1:
        return (
            f"{place}: the {len(items):,} items have no text, only an id; give them a column of"
            " text"
        )
    absent = ~items.is_in(raw.items["item"].implode())
    chosen = items
    if "item" in raw.interactions.columns:  # prepared data are not in memory
        chosen = items.filter(items.is_in(raw.interactions["item"].implode()))
    if len(raw.items) and absent.sum() == len(chosen):
        return (
            f"{place}: none of the {len(chosen):,} items of {raw.place} is in it: ids are like"
            f" {chosen[0]!r} there and {raw.items['item'][0]!r} here; make them the same, prefixes"
            " and leading zeros included"
        )
    parts = [
        f"{len(ids):,} of {total:,} items {what} ({listed(ids)})"
        for ids, total, what in (
            (items.filter(blank & absent), len(chosen), f"of {raw.place} are not in it"),
            (items.filter(blank & ~absent), len(items), "have an empty text"),
        )
        if len(ids)
    ]
    return f"{place}: {' and '.join(parts)}; complete it"
