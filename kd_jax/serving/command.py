"""What ``python -m kd_jax.recommend`` does with its arguments."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import atomic
from kd_jax.serving.recommender import Recommender, load

OUTPUTS: dict[str, Callable[[pl.LazyFrame, Path], Any]] = {
    ".parquet": lambda table, path: table.sink_parquet(path),
    ".csv": lambda table, path: table.sink_csv(path),
}


def run(options: argparse.Namespace) -> None:
    """Prints a list of items, or writes those of many users.

    Raises InputError for bad arguments.
    """
    _check(options)
    recommender = load(options.workdir)
    _answer(recommender, options)
    sys.stdout.flush()  # while a closed pipe can still be caught


def _answer(recommender: Recommender, options: argparse.Namespace) -> None:
    if options.similar:
        _print(recommender.similar(options.similar, options.k), options.k)
    elif options.explain:
        history = _history(recommender, options.history)
        _print_parts(recommender.explain(options.explain, options.user, history))
    elif options.out:
        users = None if options.all else _lines(Path(options.users).expanduser())
        if users == []:
            raise InputError(f"--users={options.users} names no user")
        _write(recommender, users, options)
    else:
        history = _history(recommender, options.history)
        filters = _filters(recommender, options)
        table = recommender.recommend(
            options.user, history, options.k, diversity=options.diversity, **filters
        )
        _print(table, options.k)


# What goes with each request; a list for one user is the request without any of the others.
REQUESTS = {
    "all": ("out", "k", "exclude", "only", "include_seen"),
    "users": ("out", "k", "exclude", "only", "include_seen"),
    "similar": ("k",),
    "explain": ("user", "history"),
}
ONE_USER = ("user", "history", "k", "exclude", "only", "include_seen", "diversity")


def _check(options: argparse.Namespace) -> None:
    """Raises InputError for arguments that do not go together."""
    for name in ("users", "similar", "explain", "exclude", "only", "out"):
        if getattr(options, name) == "":
            raise InputError(f"--{name} is empty")
    requests = [name for name in REQUESTS if getattr(options, name)]
    request = requests[0] if requests else ""
    known = {request, *REQUESTS.get(request, ONE_USER)}
    for name in (*REQUESTS, *ONE_USER, "out"):
        if getattr(options, name) and name not in known | {"k"}:
            flag = f"--{name.replace('_', '-')}"
            if not request:
                raise InputError(f"{flag} goes with --all or --users=FILE")
            raise InputError(f"--{request} cannot be combined with {flag}")
    if request in ("all", "users") and not options.out:
        raise InputError(f"--{request} needs --out=FILE, a .parquet or .csv file")


def _history(recommender: Recommender, text: str | None) -> list[str] | None:
    """The items of a history that is separated by |; a title may contain |."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split("|")]
    found: list[str] = []
    while parts:
        names = ["|".join(parts[:n]) for n in range(len(parts), 0, -1)]
        names += [" | ".join(parts[:n]) for n in range(len(parts), 1, -1)]
        known = next((n for n in names if n and recommender.runtime.lookup.items(n)), parts[0])
        parts = parts[known.count("|") + 1 :]
        if known:
            found.append(known)
    return found


def _filters(recommender: Recommender, options: argparse.Namespace) -> dict[str, Any]:
    filters: dict[str, Any] = {"include_seen": options.include_seen}
    for name in ("exclude", "only"):
        if getattr(options, name):
            filters[name] = _items(recommender, getattr(options, name), f"--{name}")
    return filters


def _items(recommender: Recommender, text: str, where: str) -> list[Any]:
    """Item names of a file, one per line, or the ids of the items with column=value."""
    column, equals, value = text.partition("=")
    path = Path(text).expanduser()
    if not equals or path.is_file():
        return _lines(path)
    items = recommender.dataset.items
    if column not in items.columns:
        raise InputError(f"{where}={text}: no column {column!r}{nearest(column, items.columns)}")
    ids = recommender.dataset.item_ids.filter(items[column] == value).to_list()
    if not ids:
        values = items[column].unique().to_list()
        close = difflib.get_close_matches(value, values, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{where}={text}: no item has exactly this value{hint}")
    return [f"id:{found}" for found in ids]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a text file") from None


def _print(table: pl.DataFrame, k: int) -> None:
    for row in table.iter_rows(named=True):
        print(f"{row['rank']:>3}  {row['score']:8.4f}  {row['title']}  [{row['item']}]")
    if len(table) < k:
        print(f"{len(table)} items: no more may be recommended", file=sys.stderr)


def _print_parts(table: pl.DataFrame) -> None:
    for row in table.iter_rows(named=True):
        item = "" if row["item"] is None else f"  {row['title']}  [{row['item']}]"
        print(f"{row['share']:8.4f}  {row['part']}{item}")
    print(f"{table['share'].sum():8.4f}  score")


def _write(recommender: Recommender, users: list[str] | None, options: argparse.Namespace) -> None:
    """Streams the lists of users to a file, which appears when it is whole."""
    path = Path(options.out).expanduser()
    if path.suffix not in OUTPUTS:
        raise InputError(f"--out={path}: unknown format{nearest(path.suffix, OUTPUTS)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out={path} can't be written; give a file in a folder that exists")
    filters = _filters(recommender, options)
    schema = recommender.schema()

    found = recommender.blocks(users, k=options.k, **filters)
    # Wrong arguments are refused before Polars, whose thread opens the file late, knows of it.
    first = list(itertools.islice(found, 1))

    def blocks(*_: Any) -> Iterator[pl.DataFrame]:
        return itertools.chain(first, found)

    with atomic(path) as temporary:
        OUTPUTS[path.suffix](register_io_source(blocks, schema=schema), temporary)
    count = recommender.dataset.num_users if users is None else len(users)
    print(f"{count:,} users, up to {options.k} items each: {path}")
