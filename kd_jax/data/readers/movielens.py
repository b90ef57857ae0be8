"""Reads MovieLens, in all releases of GroupLens, and MovieTweetings, which has the format of 1m."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.raw import RawData
from kd_jax.data.readers import sources, tables
from kd_jax.data.readers.table import LINE, Table

RATINGS = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}
CSV = {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"}
FIELD = "data.movielens.path"
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


def read(path: str = "") -> RawData:
    """Ratings, and items with title and genres.

    path: the unpacked folder of 100k (u.data), 1m or 10m (ratings.dat), or 20m, 25m, 32m or latest
    (ratings.csv). Raises InputError for another folder, and for malformed files.
    """
    if not path:
        raise InputError(
            f"data.reader='movielens' needs {FIELD}; give an unpacked MovieLens folder"
        )
    folder = sources.existing(path, "MovieLens folder", FIELD)

    def file(name: str, what: str) -> Path:
        return sources.existing(folder / name, what, FIELD)

    if (folder / "u.data").exists():
        ratings = sources.lines(file("u.data", "ratings"), "\t", list(RATINGS))
        with sources.readable(folder / "u.data"):
            return _raw(folder, ratings, RATINGS, _films_100k(file("u.item", "films")))
    if (folder / "ratings.dat").exists():
        ratings = sources.lines(file("ratings.dat", "ratings"), "::", list(RATINGS))
        with sources.readable(folder / "ratings.dat"):
            return _raw(folder, ratings, RATINGS, _films_dat(file("movies.dat", "films")))
    if (folder / "ratings.csv").exists():
        films = sources.opened(folder / "movies.csv", _films_csv, what="films", field=FIELD)
        return sources.opened(
            folder / "ratings.csv",
            lambda table: _raw(folder, table, CSV, films),
            what="ratings",
            field=FIELD,
        )
    raise InputError(
        f"{folder} has none of u.data, ratings.dat and ratings.csv; set {FIELD} to an unpacked"
        " MovieLens folder"
    )


def _raw(folder: Path, ratings: Table, columns: dict[str, str], films: pl.DataFrame) -> RawData:
    genres = (
        pl.col("genres").replace("(no genres listed)", "").str.replace_all("|", ", ", literal=True)
    )
    found = tables.interactions(ratings, tables.find_columns(ratings, columns))
    return tables.raw_data(folder.resolve().name, found, films.with_columns(genres))


def _films_csv(table: Table) -> pl.DataFrame:
    columns = tables.find_columns(table, {"item": "movieId", "title": "title", "genres": "genres"})
    return tables.items(table, columns["item"]).select("item", "title", "genres")


def _films_dat(path: Path) -> pl.DataFrame:
    """Reads lines of id::title::genre|genre; a title may contain '::'."""
    text = _lines(path)
    parts = pl.col("text").str.extract_groups(r"^(?P<item>\d+)::(?P<title>.*)::(?P<genres>[^:]*)$")
    return _checked(path, text.with_columns(parts.alias("parts")).unnest("parts"))


def _films_100k(path: Path) -> pl.DataFrame:
    """Reads lines of id|title|date|video date|url|19 flags of genres."""
    fields = pl.col("text").str.split("|")
    flags = [
        pl.when(fields.list.get(5 + place, null_on_oob=True) == "1").then(pl.lit(genre))
        for place, genre in enumerate(GENRES_100K)
    ]
    return _checked(
        path,
        _lines(path).with_columns(
            item=pl.when(fields.list.len() == 24).then(fields.list.first()),
            title=fields.list.get(1, null_on_oob=True),
            genres=pl.concat_str(flags, separator="|", ignore_nulls=True),
        ),
    )


def _lines(path: Path) -> pl.DataFrame:
    """The lines of a small file, in UTF-8 or, as in the older releases, Latin-1."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.replace("\r\n", "\n").split("\n")
    frame = pl.DataFrame({"text": lines}).with_row_index(LINE, offset=1)
    return frame.filter(pl.col("text") != "")


def _checked(path: Path, films: pl.DataFrame) -> pl.DataFrame:
    broken = films.filter(pl.col("item").cast(pl.Int64, strict=False).is_null())
    if broken.height:
        raise InputError(
            f"{path}:{broken[LINE][0]}: {broken['text'][0]!r} is no film ({broken.height} such"
            " lines); fix them, or download the file again"
        )
    table = Table(str(path), films.lazy().select(LINE, "item", "title", "genres"))
    return tables.items(table, "item")
