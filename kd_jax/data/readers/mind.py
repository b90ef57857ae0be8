"""MIND, the news data set of Wu et al., ACL 2020, as Microsoft publishes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.raw import RawData
from kd_jax.data.readers import sources, tables
from kd_jax.data.readers.table import LINE, SHIFT, Table
from kd_jax.data.time_units import DAY

FIELD = "data.mind.path"
DEV_FIELD = "data.mind.dev_path"
BEHAVIORS = ("impression", "user", "time", "history", "shown")
NEWS = ("item", "category", "subcategory", "title", "abstract", "rest")
TIME = "%m/%d/%Y %I:%M:%S %p"  # 11/15/2019 9:05:58 AM
SHOWN = r"^\S+-[01]( \S+-[01])*$"  # N1-0 N2-1: what was shown, and whether it was clicked


def read(path: str = "", dev_path: str = "", history: bool = True) -> RawData:
    """Clicks, and what was shown (``impressions``); items have title, abstract and category.

    path: a folder with behaviors.tsv and news.tsv, such as MINDsmall_train. dev_path: a later one,
    such as MINDsmall_dev. With it there is a column ``split``: test is the later folder, valid the
    last day of the first, and train all before. history: whether to include the clicks that a user
    had before the log. The data set has their order but not their times: they are placed one second
    apart before the first impression of all users, since they are of the weeks before. Raises
    InputError for a folder without these files; the published test folder has only malformed rows,
    since its clicks are not published.
    """
    if not path:
        raise InputError(f"{FIELD} is not set; give an unpacked MIND folder")
    folders = [_files(path, FIELD), *([_files(dev_path, DEV_FIELD)] if dev_path else [])]
    with sources.readable(Path(path)):
        return _raw(folders, history)


def _files(path: str, field: str) -> tuple[Path, Path]:
    """behaviors.tsv and news.tsv of a folder."""
    folder = sources.existing(path, "MIND folder", field)
    news = sources.existing(folder / "news.tsv", "news", field)
    return sources.existing(folder / "behaviors.tsv", "behaviors", field), news


def _raw(folders: list[tuple[Path, Path]], history: bool) -> RawData:
    files = tuple(str(behaviors) for behaviors, _ in folders)
    behaviors = pl.concat(
        _parsed(sources.lines(file, "\t", BEHAVIORS)).with_columns(
            pl.col(LINE).cast(pl.Int64) + (part << SHIFT), later=pl.lit(part > 0)
        )
        for part, (file, _) in enumerate(folders)
    )
    usable = pl.col("fault").is_null()
    broken = behaviors.filter(~usable)
    shown = behaviors.filter(usable).with_columns(split=_split())
    clicks = pl.concat([_clicked(shown), *([_earlier(shown)] if history else [])])
    table = Table(files[0], clicks.lazy(), broken=broken.height, paths=files)
    if broken.height:
        problem = f"{table.place(broken[LINE][0])}: {broken['fault'][0]}"
        table = dataclasses.replace(table, problem=problem)
    columns = ["user", "item", "timestamp", *(["split"] if len(folders) > 1 else [])]
    names = {name: name for name in columns}
    found = dataclasses.replace(tables.interactions(table, names, whole=frozenset()), time_unit="s")
    impressions = shown.select(
        *(name for name in columns if name != "item"),
        items=pl.col("tokens").list.eval(pl.element().str.head(-2)),
        clicked=pl.col("tokens").list.eval(pl.element().str.ends_with("-1")),
    )
    first = folders[0][0].parent.resolve().name
    items_path = str(folders[0][1])
    raw = tables.raw_data(first, found, _news(folders), path=files[0], items_path=items_path)
    return dataclasses.replace(raw, impressions=impressions)


def _news(folders: list[tuple[Path, Path]]) -> pl.DataFrame:
    """The items of all folders; of one that is in several, the first text."""
    parts = []
    for _, path in folders:
        news = sources.lines(path, "\t", NEWS)
        parts.append(tables.items(Table(news.path, news.rows.drop("rest")), "item", whole=False))
    items = pl.concat(parts).unique("item", keep="first", maintain_order=True)
    return items.select("item", "title", "abstract", "category", "subcategory")


def _split() -> pl.Expr:
    """The split of an impression: that of the clicks in it."""
    day = pl.col("timestamp") // DAY
    last = pl.when(day == day.filter(~pl.col("later")).max()).then(pl.lit("valid"))
    return pl.when("later").then(pl.lit("test")).otherwise(last.otherwise(pl.lit("train")))


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
    one = shown.select(LINE, "user", "timestamp", "split", item="tokens").explode("item")
    return one.filter(pl.col("item").str.ends_with("-1")).with_columns(pl.col("item").str.head(-2))


def _earlier(shown: pl.DataFrame) -> pl.DataFrame:
    """One row per click before the log, as the first impression of its user has them."""
    first = shown.sort("timestamp", maintain_order=True).unique("user", keep="first")
    first = first.sort(LINE).with_columns(item=pl.col("history").str.split(" "))
    back = pl.col("item").list.len().cast(pl.Int64) - pl.int_ranges(0, pl.col("item").list.len())
    rows = first.select(
        LINE, "user", "item", timestamp=shown["timestamp"].min() - back, split=pl.lit("train")
    )
    rows = rows.explode("item", "timestamp").select(LINE, "user", "timestamp", "split", "item")
    return rows.filter(pl.col("item") != "")
