"""MIND, the news data set of Wu et al., ACL 2020, as Microsoft publishes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.raw import RawData
from kd_jax.data.readers import sources, tables
from kd_jax.data.readers.table import LINE, Table

FIELD = "data.mind.path"
BEHAVIORS = ("impression", "user", "time", "history", "shown")
NEWS = ("item", "category", "subcategory", "title", "abstract", "rest")
TIME = "%m/%d/%Y %I:%M:%S %p"  # 11/15/2019 9:05:58 AM
SHOWN = r"^\S+-[01]( \S+-[01])*$"  # N1-0 N2-1: what was shown, and whether it was clicked


def read(path: str = "", history: bool = True) -> RawData:
    """Clicks, and what was shown (``impressions``); items have title, abstract and category.

    path: a folder with behaviors.tsv and news.tsv, such as MINDsmall_train. history: whether to
    include the clicks that a user had before the first impression. The data set has their order but
    not their times: they are placed one second apart before that impression. Raises InputError for
    a folder without these files; the test folder has only malformed rows, since its clicks
    are not published.
    """
    if not path:
        raise InputError(f"{FIELD} is not set; give an unpacked MIND folder")
    folder = sources.existing(path, "MIND folder", FIELD)
    news = sources.existing(folder / "news.tsv", "news", FIELD)
    behaviors = sources.existing(folder / "behaviors.tsv", "behaviors", FIELD)
    with sources.readable(folder):
        return _raw(behaviors, sources.lines(news, "\t", NEWS), history)


def _raw(file: Path, news: Table, history: bool) -> RawData:
    behaviors = _parsed(sources.lines(file, "\t", BEHAVIORS))
    usable = pl.col("fault").is_null()
    broken = behaviors.filter(~usable)
    problem = ""
    if broken.height:
        problem = f"{file}:{broken[LINE][0]}: {broken['fault'][0]}"
    shown = behaviors.filter(usable)
    clicks = [_clicked(shown), *([_earlier(shown)] if history else [])]
    table = Table(str(file), pl.concat(clicks).lazy(), broken=broken.height, problem=problem)
    names = {"user": "user", "item": "item", "timestamp": "timestamp"}
    found = dataclasses.replace(tables.interactions(table, names, whole=frozenset()), time_unit="s")
    items = tables.items(Table(news.path, news.rows.drop("rest")), "item", whole=False)
    impressions = shown.select(
        "user",
        "timestamp",
        items=pl.col("tokens").list.eval(pl.element().str.head(-2)),
        clicked=pl.col("tokens").list.eval(pl.element().str.ends_with("-1")),
    )
    text = items.select("item", "title", "abstract", "category", "subcategory")
    name = file.parent.resolve().name
    raw = tables.raw_data(name, found, text, path=str(file), items_path=news.path)
    return dataclasses.replace(raw, impressions=impressions)


def _parsed(table: Table) -> pl.DataFrame:
    """One row per impression: line, user, timestamp in seconds, tokens, history; and its fault."""
    given = pl.col("time").fill_null("")
    time = pl.col("time").str.to_datetime(TIME, strict=False).dt.epoch("s")
    fault = (
        pl.when(pl.col("user").fill_null("") == "")
        .then(pl.lit("there is no user"))
        .when(time.is_null())
        .then(pl.format("time '{}' is not like 11/15/2019 9:05:58 AM", given))
        .when(~pl.col("shown").fill_null("").str.contains(SHOWN))
        .then(pl.lit("the impressions are not of the form N1-0 N2-1"))
    )
    return table.rows.select(
        LINE,
        "user",
        timestamp=time,
        tokens=pl.col("shown").str.split(" "),
        history=pl.col("history").fill_null(""),
        fault=fault,
    ).collect()


def _clicked(shown: pl.DataFrame) -> pl.DataFrame:
    """One row per click of an impression."""
    one = shown.select(LINE, "user", "timestamp", item="tokens").explode("item")
    return one.filter(pl.col("item").str.ends_with("-1")).with_columns(pl.col("item").str.head(-2))


def _earlier(shown: pl.DataFrame) -> pl.DataFrame:
    """One row per click before the first impression of its user."""
    first = shown.sort("timestamp", maintain_order=True).unique("user", keep="first")
    first = first.sort(LINE).with_columns(item=pl.col("history").str.split(" "))
    back = pl.col("item").list.len().cast(pl.Int64) - pl.int_ranges(0, pl.col("item").list.len())
    rows = first.select(LINE, "user", "item", timestamp=pl.col("timestamp") - back)
    rows = rows.explode("item", "timestamp").select(LINE, "user", "timestamp", "item")
    return rows.filter(pl.col("item") != "")
