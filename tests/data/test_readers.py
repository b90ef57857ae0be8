"""Every reader gives the same RawData for the same content, and locates malformed rows."""

import dataclasses
import gzip
import importlib.util
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from configs import common
from helpers import toy
from helpers.toy import refused
from kd_jax.data import readers
from kd_jax.data.dataset import build
from kd_jax.data.raw import RawData, accept
from kd_jax.data.readers import READERS, files, movielens
from kd_jax.data.readers import tfds as tfds_reader

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_originals = pytest.mark.skipif(
    not SHARED.exists(), reason="the original data sets are not here"
)

RATINGS = [(1, 10, 4.0, 100), (1, 7, 3.5, 90), (2, 10, 5.0, 80)]
FILMS = [
    (7, 'Amélie, "the film" (2001)', "Comedy|Romance"),
    (10, "Star Wars:: IV (1977)", "(no genres listed)"),
]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


FIELDS = {**tfds_reader.FIELDS, "genres": "movie_genres"}


# Embedded


@pytest.mark.parametrize(
    ("name", "rows", "users", "items", "columns"),
    [
        ("movietweetings", 100_000, 16_554, 10_506, ["item", "title", "genres"]),
        ("online_retail", 266_221, 4_334, 3_659, ["item", "description"]),
    ],
)
def test_embedded(name, rows, users, items, columns):
    raw = readers.read(name)
    found = raw.interactions
    assert (found.height, found["user"].n_unique(), found["item"].n_unique()) == (
        rows,
        users,
        items,
    )
    assert raw.items.columns == columns and raw.items.height == items
    assert found["timestamp"].is_sorted()
    first_seen = found["user"].unique(maintain_order=True)
    assert first_seen.to_list() == list(
        range(1, users + 1)
    )  # numbered by time: the original numbers are gone
    text = raw.items[columns[1]]
    assert (text == text.str.strip_chars()).all() and (text != "").all()


def test_embedded_is_small_and_licensed():
    folder = Path(str(resources.files("kd_jax.data"))) / "embedded"
    assert sum(path.stat().st_size for path in folder.rglob("*.parquet")) < 2_000_000
    assert "Permission is hereby granted" in (folder / "movietweetings/LICENSE").read_text()
    assert "CrowdRec" in (folder / "movietweetings/README.md").read_text()
    assert "10.24432/C5BW33" in (folder / "online_retail/README.md").read_text()


@needs_originals
def test_embedded_is_what_the_script_makes():
    path = Path(__file__).parents[2] / "benchmarks" / "prepare_embedded.py"
    spec = importlib.util.spec_from_file_location("prepare_embedded", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, made in (
        ("movietweetings", script.movietweetings(SHARED / "movietweetings-100k")),
        ("online_retail", script.online_retail(SHARED / "online-retail")),
    ):
        raw = readers.read(name)
        assert raw.interactions.equals(made[0].cast({pl.Int32: pl.Int64}))
        assert raw.items.equals(made[1].cast({pl.Int32: pl.Int64}))


# MovieLens


def movielens_100k(folder: Path) -> None:
    write(folder / "u.data", "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS))
    flags = {7: [5, 14], 10: []}
    lines = [
        f"{i}|{title}|01-Jan-1995||http://x|"
        + "|".join("1" if g in flags[i] else "0" for g in range(19))
        for i, title, _ in FILMS
    ]
    write(folder / "u.item", "\n".join(lines) + "\n", "latin-1")


def movielens_1m(folder: Path, encoding: str = "latin-1") -> None:
    write(folder / "ratings.dat", "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in RATINGS))
    write(
        folder / "movies.dat",
        "".join(f"{i}::{title}::{genres}\n" for i, title, genres in FILMS),
        encoding,
    )


def movielens_10m(folder: Path) -> None:
    movielens_1m(folder, "utf-8")


def movielens_csv(folder: Path) -> None:
    write(
        folder / "ratings.csv",
        "userId,movieId,rating,timestamp\r\n"
        + "".join(f"{u},{i},{r},{t}\r\n" for u, i, r, t in RATINGS),
    )
    pl.DataFrame(FILMS, ["movieId", "title", "genres"], orient="row").write_csv(
        folder / "movies.csv"
    )


@pytest.mark.parametrize("make", [movielens_100k, movielens_1m, movielens_10m, movielens_csv])
def test_movielens_releases_read_the_same(tmp_path, make):
    folder = tmp_path / "ml-some"
    make(folder)
    raw = movielens.read(folder)
    assert raw.name == "ml-some" and raw.counts == {"rows": 3, "malformed": 0}
    assert raw.interactions.rows() == RATINGS
    assert raw.interactions.dtypes == [pl.Int64, pl.Int64, pl.Float32, pl.Int64]
    assert raw.items.rows() == [(7, FILMS[0][1], "Comedy, Romance"), (10, FILMS[1][1], "")]


@needs_originals
@pytest.mark.parametrize(
    ("folder", "read", "core"),
    [
        ("ml-100k", (100_000, 943, 1_682), (99_287, 943, 1_349)),
        ("ml-1m", (1_000_209, 6_040, 3_706), (999_611, 6_040, 3_416)),
    ],
)
def test_movielens_originals(folder, read, core):
    raw = movielens.read(SHARED / folder)
    assert (
        raw.interactions.height,
        raw.interactions["user"].n_unique(),
        raw.interactions["item"].n_unique(),
    ) == read
    data = build(raw, split="leave_one_out", min_user_interactions=5, min_item_interactions=5)
    assert (len(data.user), data.num_users, data.num_items) == core
    assert np.bincount(data.split).tolist() == [core[0] - 2 * core[1], core[1], core[1]]
    assert data.titles[0] == "Toy Story (1995)" and data.items["genres"][0].startswith(
        "Animation, Children's"
    )


@needs_originals
def test_published_splits():
    beauty = files.read(
        SHARED / "amazon-beauty/interactions.parquet",
        items_path=SHARED / "amazon-beauty/items.parquet",
        columns={"timestamp": "position", "item_id": "item_id"},
    )
    data = build(
        beauty,
        split="leave_one_out",
        min_user_interactions=5,
        min_item_interactions=5,
        text_columns=["title", "categories"],
        missing_text="id",
    )
    assert (len(data.user), data.num_users, data.num_items) == (198_502, 22_363, 12_101)
    cite = files.read(SHARED / "citeulike/interactions.parquet")
    cite = build(cite, split="column", missing_text="id")
    assert (cite.num_users, cite.num_items) == (5_219, 25_181)
    assert np.bincount(cite.split).tolist() == [115_142, 5_219, 5_219]


def test_movielens_bad_folders(tmp_path):
    refused(
        lambda: movielens.read(tmp_path / "no"), "no such file or folder", "data.movielens.path"
    )
    refused(
        lambda: movielens.read(tmp_path),
        "none of u.data, ratings.dat and ratings.csv",
        "data.movielens.path",
    )
    movielens_1m(tmp_path)
    write(tmp_path / "movies.dat", "7::Film::Drama\nno film at all\n")
    refused(lambda: movielens.read(tmp_path), "movies.dat:2", "'no film at all'")
    write(tmp_path / "movies.dat", "")
    refused(lambda: movielens.read(tmp_path), "movies.dat is empty")
    (tmp_path / "movies.dat").unlink()
    refused(lambda: movielens.read(tmp_path), "movies.dat: no such file")


@pytest.mark.parametrize("make", [movielens_100k, movielens_1m, movielens_csv])
def test_movielens_bad_ids_are_malformed_rows(tmp_path, make):
    make(tmp_path)
    (path,) = (
        tmp_path / name
        for name in ("u.data", "ratings.dat", "ratings.csv")
        if (tmp_path / name).exists()
    )
    path.write_text(path.read_text().replace("100", "later", 1))
    raw = movielens.read(tmp_path)
    line = 2 if make is movielens_csv else 1
    assert raw.counts == {"rows": 3, "malformed": 1} and raw.interactions.rows() == RATINGS[1:]
    assert raw.problems == (
        f"{path}:{line}: timestamp 'later' is neither a number of seconds nor a date",
    )


# Generic files


def table_files(folder: Path, ending: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    ratings = pl.DataFrame(RATINGS, ["user", "item", "rating", "timestamp"], orient="row")
    films = pl.DataFrame(FILMS, ["item", "title", "genres"], orient="row")
    paths = {"path": folder / f"r.{ending}", "items_path": folder / f"i.{ending}"}
    for frame, path in zip((ratings, films), paths.values(), strict=True):
        if ending == "parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="," if ending == "csv" else "\t")
    return paths


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_files(tmp_path, ending):
    paths = table_files(tmp_path, ending)
    raw = files.read(**paths)
    assert (raw.path, raw.items_path, raw.untimed) == (*map(str, paths.values()), "")
    assert raw.interactions.rows() == RATINGS and raw.items.rows() == FILMS
    assert raw.interactions.dtypes == [pl.Int64, pl.Int64, pl.Float32, pl.Int64]


def test_columns_are_mapped(tmp_path):
    rows = "2024-01-02 00:00:00,a,x1,train\n2024-01-01 12:00:00,b,7,test\n"
    path = write(tmp_path / "r.csv", "when,who,what,part\n" + rows)
    items = write(tmp_path / "i.csv", "sku,name\n7,Seven\nx1,Ex\n")
    raw = files.read(
        path,
        items_path=items,
        columns={
            "user": "who",
            "item": "what",
            "timestamp": "when",
            "split": "part",
            "item_id": "sku",
        },
    )
    assert raw.interactions.rows(named=True) == [
        {"user": "a", "item": "x1", "timestamp": 1704153600, "split": "train"},
        {"user": "b", "item": "7", "timestamp": 1704110400, "split": "test"},
    ]
    assert raw.items.rows() == [("7", "Seven"), ("x1", "Ex")]
    ignored = files.read(path, columns={"user": "who", "item": "what", "timestamp": ""})
    assert ignored.interactions.columns == ["user", "item"] and ignored.items["item"].to_list() == [
        "7",
        "x1",
    ]


def test_ids_are_numbers_only_if_nothing_is_lost(tmp_path):
    def read(item, items_id):
        path = write(tmp_path / "r.csv", f"user,item\n1,{item}\n2,5\n")
        items = write(tmp_path / "i.csv", f"item,title\n{items_id},A\n5,B\n")
        return files.read(path, items_path=items)

    assert read("4", "4").interactions["item"].to_list() == [4, 5]
    assert read("04", "04").interactions["item"].to_list() == [
        "04",
        "5",
    ]  # as a number it would be item 4
    assert read("4", "x4").items["item"].to_list() == ["x4", "5"]
    assert read("4", "x4").interactions["item"].to_list() == ["4", "5"]  # one type in both tables
    assert read("x4", "4").items["item"].to_list() == ["4", "5"]
    assert read("x4", "4").interactions["user"].dtype == pl.Int64


def test_parquet_types(tmp_path):
    moments = pl.Series([0, 90_000]).cast(pl.Datetime("ms"))
    users, stars = pl.Series(["b", "a"], dtype=pl.Categorical), pl.Series([4, 5], dtype=pl.Int8)
    frame = pl.DataFrame({"user": users, "item": [3.0, 4.0], "timestamp": moments, "rating": stars})
    frame.write_parquet(tmp_path / "r.parquet")
    items = pl.DataFrame(
        {"item": pl.Series([3, 4], dtype=pl.UInt16), "tags": [["a", "b"], []], "year": [1999, None]}
    )
    items.write_parquet(tmp_path / "i.parquet")
    raw = files.read(tmp_path / "r.parquet", items_path=tmp_path / "i.parquet")
    assert raw.interactions.rows(named=True) == [
        {"user": "b", "item": 3, "rating": 4.0, "timestamp": 0},
        {"user": "a", "item": 4, "rating": 5.0, "timestamp": 90},
    ]
    assert raw.items.rows() == [(3, "a, b", "1999"), (4, "", "")]


def test_blank_lines_and_quoted_newlines(tmp_path):
    path = write(tmp_path / "r.csv", '\ufeffuser,item,note\n1,2,"a, ""b""\nc"\n\n3,4,\n\n')
    raw = files.read(path)
    assert raw.interactions.rows() == [(1, 2), (3, 4)] and raw.counts == {"rows": 2, "malformed": 0}
    packed = tmp_path / "r.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert files.read(packed).interactions.rows() == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("1,2,abc,5", "r.csv:3: rating 'abc' is not a number"),
        ("1,2,NaN,5", "r.csv:3: rating 'NaN' is not a finite number"),
        ("1,2,inf,5", "r.csv:3: rating 'inf' is not a finite number"),
        ("1,2,,5", "r.csv:3: there is no rating"),
        ("1,2,3,soon", "r.csv:3: timestamp 'soon' is neither a number of seconds nor a date"),
        ("1,2,3", "r.csv:3: there is no timestamp"),
        (",2,3,5", "r.csv:3: there is no user"),
        ("1,,3,5", "r.csv:3: there is no item"),
        ('1,"",3,5', "r.csv:3: there is no item"),
        ("1,2,3,5,6", "r.csv:3: no row of 4 fields"),
        ('1,2,"3,5', "r.csv:3: no row of 4 fields"),
        ('1,x"2,3,5', "r.csv:3: no row of 4 fields"),
    ],
)
def test_malformed_rows_are_counted_and_refused(tmp_path, row, problem):
    good = "".join(f"{u},{i},{3 + u % 2},{10 * u + i}\n" for u in range(1, 5) for i in range(1, 6))
    path = write(tmp_path / "r.csv", f"user,item,rating,timestamp\n7,1,3,5\n{row}\n{good}")
    raw = files.read(path)
    assert raw.counts == {"rows": 22, "malformed": 1}
    assert raw.interactions.height == 21 and raw.interactions["user"].to_list()[:2] == [7, 1]
    assert raw.interactions["item"].dtype == pl.Int64
    assert len(raw.problems) == 1 and problem in raw.problems[0]
    refused(
        lambda: build(raw, split="leave_one_out", missing_text="id", max_malformed=0.04),
        problem,
        "1 of 22 rows are malformed",
        "data.max_malformed (now 0.04)",
    )
    data = build(raw, split="leave_one_out", missing_text="id", max_malformed=0.05)
    assert data.counts["malformed"] == 1 and data.counts["interactions"] == 21


def test_malformed_parquet_rows(tmp_path):
    rating = [1.0, 1.0, 1.0, float("nan")]
    frame = pl.DataFrame({"user": [1, None, 1, -3], "item": [1.0, 2.0, 2.5, 1.0], "rating": rating})
    frame.write_parquet(tmp_path / "r.parquet")
    raw = files.read(tmp_path / "r.parquet")
    assert raw.counts == {"rows": 4, "malformed": 3} and raw.interactions.rows() == [(1, 1, 1.0)]
    text = "; ".join(raw.problems)
    for problem in (
        "row 2: there is no user",
        "row 3: item '2.5' is no whole number",
        "row 4: rating 'NaN' is not a finite number",
    ):
        assert problem in text


def test_bad_files(tmp_path):
    refused(files.read, "needs data.files.path")
    refused(lambda: readers.read("file"), "data.reader='file'", "did you mean 'files'?")
    refused(lambda: files.read(tmp_path / "no.csv"), "no.csv: no such file", "data.files.path")
    refused(lambda: files.read(write(tmp_path / "e.csv", "")), "e.csv is empty")
    refused(
        lambda: build(files.read(write(tmp_path / "h.csv", "user,item\n"))),
        "no interaction",
    )
    path = write(tmp_path / "c.csv", "usr,item,rating\n1,2,3\n")
    known = "known: item, rating, usr"
    refused(
        lambda: files.read(path),
        "c.csv has no column 'user'",
        "did you mean 'usr'",
        known,
        "data.files.columns.user",
    )
    columns = {"user": "usr", "rating": "stars"}
    refused(lambda: files.read(path, columns=columns), "no column 'stars' for rating", known)
    refused(
        lambda: files.read(path, columns={"usr": "usr"}),
        "no role 'usr'",
        "did you mean 'user'?",
    )
    refused(
        lambda: files.read(write(tmp_path / "s.csv", "user\titem\n1\t2\n")),
        "s.csv has a single",
        "is a tab",
    )
    refused(
        lambda: files.read(write(tmp_path / "r.dat", "{}")),
        "r.dat",
        ".parquet, .csv, .tsv, .tab",
    )
    mixed = tmp_path / "mixed"
    write(mixed / "a.csv", "user,item\n1,2\n")
    write(mixed / "b.tsv", "user\titem\n1\t2\n")
    refused(lambda: files.read(mixed), f"{mixed} (interactions) is a folder", "different kinds")
    bad = tmp_path / "l.csv"
    bad.write_bytes(b"user,item\ncaf\xe9,1\n")
    refused(lambda: files.read(bad), "l.csv can't be read", "UTF-8")
    refused(
        lambda: files.read(write(tmp_path / "p.parquet", "user,item\n1,2\n")),
        "p.parquet can't be read",
    )


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        (
            "1,A\n2,B\n1,C\n2,D\n",
            ["i.csv:4: item id 1 is there twice", "2 repeated: 1, 2", "one row per item"],
        ),
        ("1,A\n,B\n", ["i.csv:3: the item has no id"]),
        ("1,A\n2,B, or C\n", ["i.csv:3: no row of 2 fields", "in quotes"]),
    ],
)
def test_bad_items_tables(tmp_path, rows, fragments):
    path = write(tmp_path / "r.csv", "user,item\n1,1\n")
    items = write(tmp_path / "i.csv", "item,title\n" + rows)
    refused(lambda: files.read(path, items_path=items), *fragments)


# TFDS: a data set prepared as ArrayRecord is read without tensorflow


def prepare_array_record(
    root: Path, file_format: str = "array_record", ratings: Sequence[Any] = RATINGS
) -> None:
    """Writes the files that TFDS' own preparation writes, without tensorflow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "movielens/1m-ratings/0.1.1"
    folder.mkdir(parents=True)
    names = ["Drama", "Comedy", "Romance"]
    features = tfds.features.FeaturesDict(
        {
            "user_id": tfds.features.Text(),
            "movie_id": tfds.features.Text(),
            "movie_title": tfds.features.Text(),
            "movie_genres": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
            "user_rating": np.float32,
            "timestamp": np.int64,
        }
    )
    features.save_config(folder)
    writer, size = (
        ArrayRecordWriter(
            str(folder / "movielens-train.array_record-00000-of-00001"), "group_size:1"
        ),
        0,
    )
    films = {
        i: (title, [names.index(g) for g in genres.split("|") if g in names])
        for i, title, genres in FILMS
    }
    for user, item, rating, timestamp in ratings:
        example = tf_example_pb2.Example()
        fields = example.features.feature
        for name, text in (
            ("user_id", str(user)),
            ("movie_id", str(item)),
            ("movie_title", films[item][0]),
        ):
            fields[name].bytes_list.value.append(text.encode())
        fields["movie_genres"].int64_list.value.extend(films[item][1])
        fields["user_rating"].float_list.value.append(rating)
        fields["timestamp"].int64_list.value.append(timestamp)
        record = example.SerializeToString()
        writer.write(record)
        size += len(record)
    writer.close()
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {
                "name": "movielens",
                "version": "0.1.1",
                "configName": "1m-ratings",
                "fileFormat": file_format,
                "splits": [
                    {
                        "name": "train",
                        "shardLengths": [str(len(RATINGS))],
                        "numBytes": str(size),
                        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    }
                ],
            }
        )
    )


@pytest.fixture
def tfds_quiet():
    """Hides warnings: TFDS' imports warn about their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_tfds_array_record(tmp_path, tfds_quiet):
    before = "tensorflow" in sys.modules
    prepare_array_record(tmp_path)
    raw = tfds_reader.read(path=tmp_path, fields=FIELDS)
    assert raw.interactions.rows() == RATINGS and raw.name == "movielens-1m-ratings"
    assert sorted(raw.items.rows()) == [(7, FILMS[0][1], "Comedy, Romance"), (10, FILMS[1][1], "")]
    assert ("tensorflow" in sys.modules) == before
    few = tfds_reader.read(
        path=tmp_path,
        fields={"user": "user_id", "item": "movie_id", "title": "movie_title"},
    )
    assert few.interactions.columns == ["user", "item"] and few.items.columns == ["item", "title"]
    untimed = tfds_reader.read(path=tmp_path, fields=FIELDS | {"timestamp": ""})
    assert untimed.interactions.columns == ["user", "item", "rating"]


def test_tfds_bad_input(tmp_path, tfds_quiet, monkeypatch):
    prepare_array_record(tmp_path)
    fields = {"user": "user", "item": "movie_id"}
    refused(
        lambda: tfds_reader.read(path=tmp_path, fields=fields),
        "data.tfds.fields.user",
        "mean 'user_id'?",
    )
    refused(
        lambda: tfds_reader.read(path=tmp_path, fields={"user": "user_id"}),
        "data.tfds.fields has no 'item'",
    )
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find(name, *rest),
    )
    refused(
        lambda: tfds_reader.read(path=tmp_path / "elsewhere"),
        "movielens/1m-ratings",
        "pip install -e '.[tfds]'",
    )
    prepare_array_record(tmp_path / "records", "tfrecord")
    refused(
        lambda: tfds_reader.read(path=tmp_path / "records"),
        "prepared as TFRecord",
        "pip install -e '.[tfds]'",
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(lambda: tfds_reader.read(path=tmp_path), "needs tensorflow-datasets")


def test_tfds_reads_the_same_through_tensorflow(tmp_path, tfds_quiet, monkeypatch):
    """The tensorflow path, with its calls replaced.

    Scalars come as arrays, sequences as ragged rows.
    """
    import tensorflow_datasets as tfds

    genres = {7: [1, 2], 10: []}
    batch = {
        "user_id": np.array([str(r[0]).encode() for r in RATINGS], object),
        "movie_id": np.array([str(r[1]).encode() for r in RATINGS], object),
        "movie_title": np.array(
            [dict((f[0], f[1]) for f in FILMS)[r[1]].encode() for r in RATINGS], object
        ),
        "movie_genres": type(
            "Ragged", (), {"to_list": lambda self: [genres[r[1]] for r in RATINGS]}
        )(),
        "user_rating": np.array([r[2] for r in RATINGS], np.float32),
        "timestamp": np.array([r[3] for r in RATINGS]),
    }

    class Prepared:
        def map(self, function):
            assert set(function(batch)) == set(batch)
            return self

        def ragged_batch(self, size):
            return [batch]

    prepare_array_record(tmp_path)
    builder = tfds.builder("movielens/1m-ratings", data_dir=str(tmp_path))
    direct = pl.concat(tfds_reader._array_record(tfds, builder, dict(builder.info.features)))
    monkeypatch.setattr(builder, "download_and_prepare", lambda: None)
    monkeypatch.setattr(builder, "as_dataset", lambda split: Prepared())
    monkeypatch.setattr(tfds, "as_numpy", lambda dataset: dataset)
    through = pl.concat(tfds_reader._tensorflow(tfds, builder, dict(builder.info.features)))
    assert through.equals(direct)


# Every reader


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set that a reader reads.

    write: writes it to a folder and returns the section. counts: interactions, users, items. text:
    the items' text columns. damage: makes one of the rows malformed; None where there is no file to
    damage. missing: a section with a path that does not exist.
    """

    write: Callable[[Path], dict[str, Any]]
    counts: tuple[int, int, int]
    text: tuple[str, ...]
    damage: Callable[[Path], None] | None = None
    missing: Callable[[Path], dict[str, Any]] | None = None
    timed: bool = True


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def write_files(folder: Path) -> dict[str, Any]:
    return {name: str(path) for name, path in table_files(folder, "csv").items()}


def write_movielens(folder: Path) -> dict[str, Any]:
    movielens_1m(folder)
    return {"path": str(folder)}


IMPRESSIONS = (
    "1\tU1\t11/15/2019 9:05:58 AM\tN3 N1\tN2-1 N4-0",
    "2\tU2\t11/15/2019 1:00:00 PM\t\tN1-0 N3-1",
    "3\tU1\t11/15/2019 11:05:58 PM\tN3 N1\tN1-0 N4-0",
)


def write_mind(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "behaviors.tsv").write_text("\n".join(IMPRESSIONS) + "\n")
    news = (f'N{n}\tnews\tworld\tTitle "{n}"\tText {n}.\thttps://x\t[]\t[]' for n in range(1, 5))
    (folder / "news.tsv").write_text("\n".join(news) + "\n")
    return {"path": str(folder)}


def test_mind_has_what_was_shown_and_the_clicks_before_in_their_order(tmp_path):
    raw = readers.read("mind", write_mind(tmp_path))
    first = 1573808758  # 11/15/2019 9:05:58 AM
    of_user = raw.interactions.filter(user="U1").sort("timestamp")
    assert of_user["item"].to_list() == ["N3", "N1", "N2"]
    assert of_user["timestamp"].to_list() == [first - 2, first - 1, first]
    assert raw.impressions["items"].to_list() == [["N2", "N4"], ["N1", "N3"], ["N1", "N4"]]
    assert raw.impressions["clicked"].to_list() == [[True, False], [False, True], [False, False]]
    assert raw.items["title"][0] == 'Title "1"'
    without = readers.read("mind", {"path": str(tmp_path), "history": False})
    assert without.interactions.height == 2


def test_mind_without_published_clicks_has_only_malformed_rows(tmp_path):
    section = write_mind(tmp_path)
    path = tmp_path / "behaviors.tsv"
    path.write_text(re.sub(r"-[01]", "", path.read_text()))
    raw = readers.read("mind", section)
    assert raw.counts == {"rows": 3, "malformed": 3}
    refused(lambda: accept(raw, 0.0), "behaviors.tsv:1: the impressions are not of the form")


def write_tfds(folder: Path) -> dict[str, Any]:
    prepare_array_record(folder)
    return {"path": str(folder), "fields": {"genres": "movie_genres"}}


def damage_tfds(folder: Path) -> None:
    shutil.rmtree(folder / "movielens")
    prepare_array_record(folder, ratings=[(*RATINGS[0][:2], float("nan"), 100), *RATINGS[1:]])


def write_amazon(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"user_id": str(user), "parent_asin": str(item), "rating": rating, "timestamp": time}
        for user, item, rating, time in RATINGS
    ]
    films = [{"parent_asin": str(item), "title": title} for item, title, _ in FILMS]
    for name, records in (("Toys.jsonl", rows), ("meta_Toys.jsonl", films)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"path": str(folder)}


CASES = {
    "movietweetings": Case(lambda folder: {}, (100_000, 16_554, 10_506), ("title", "genres")),
    "online_retail": Case(lambda folder: {}, (266_221, 4_334, 3_659), ("description",)),
    "movielens": Case(
        write_movielens,
        (3, 2, 2),
        ("title", "genres"),
        replaced("ratings.dat", "::100", "::later"),
        lambda folder: {"path": str(folder / "nowhere")},
    ),
    "tfds": Case(
        write_tfds,
        (3, 2, 2),
        ("title", "genres"),
        damage_tfds,
        lambda folder: {"path": str(folder / "nowhere")},
    ),
    "files": Case(
        write_files,
        (3, 2, 2),
        ("title", "genres"),
        replaced("r.csv", "4.0", "good"),
        lambda folder: {"path": str(folder / "nowhere.csv")},
    ),
    "amazon": Case(
        write_amazon,
        (3, 2, 2),
        ("title",),
        replaced("Toys.jsonl", '"user_id": "2"', '"user_id": ""'),
        lambda folder: {"path": str(folder / "nowhere")},
    ),
    "mind": Case(
        write_mind,
        (4, 2, 4),
        ("title", "abstract", "category", "subcategory"),
        replaced("behaviors.tsv", "N3-1", "N3"),
        lambda folder: {"path": str(folder / "nowhere")},
    ),
}


@pytest.fixture(params=sorted(set(READERS) - {"prepared"}))  # no raw data: test_prepared.py
def case(request, tfds_quiet):
    """(name, case) of every reader."""
    if request.param not in CASES:
        pytest.fail(f"the reader {request.param!r} has no data set here: add one to CASES")
    return request.param, CASES[request.param]


def test_every_reader_gives_the_columns_types_and_counts_of_raw_data(case, tmp_path):
    name, case = case
    raw = readers.read(name, case.write(tmp_path))
    found, items = raw.interactions, raw.items
    assert (found.height, found["user"].n_unique(), items.height) == case.counts
    types = {"rating": pl.Float32, "timestamp": pl.Int64, "split": pl.String}
    assert set(found.columns) <= {"user", "item", *types}
    assert ("timestamp" in found.columns) == case.timed
    for column, kind in types.items():
        assert found.schema.get(column, kind) == kind
    for column in ("user", "item"):
        assert found[column].dtype in (pl.Int64, pl.String) and not found[column].has_nulls()
    assert items.columns == ["item", *case.text] and items["item"].dtype == found["item"].dtype
    assert items["item"].is_unique().all() and set(found["item"]) <= set(items["item"])
    assert items.select(case.text).dtypes == [pl.String] * len(case.text)
    assert raw.name and raw.counts == {"rows": found.height, "malformed": 0} and not raw.problems
    assert accept(raw, 0.0) == raw.counts


def test_every_reader_counts_malformed_rows_and_names_the_first(case, tmp_path):
    name, case = case
    if case.damage is None:
        pytest.skip("it reads files of the package")
    section = case.write(tmp_path)
    case.damage(tmp_path)
    raw = readers.read(name, section)
    assert raw.counts == {"rows": case.counts[0], "malformed": 1}
    assert raw.interactions.height == case.counts[0] - 1
    assert len(raw.problems) == 1 and re.search(r":\d+: |(row|record) \d+: ", raw.problems[0])
    refused(lambda: accept(raw, 0.0), raw.problems[0], "data.max_malformed")


def test_every_reader_refuses_a_path_that_leads_nowhere_and_a_field_it_has_not(case, tmp_path):
    name, case = case
    refused(lambda: readers.read(name, {"pth": "x"}), f"data.{name}: there is no field 'pth'")
    if case.missing is None:
        return
    section = case.write(tmp_path / "data") | case.missing(tmp_path)
    refused(lambda: readers.read(name, section), "nowhere", f"data.{name}.path")
    refused(lambda: readers.read(name, {"path": 3}), f"data.{name}.path=3", "of type str")


def test_every_readers_defaults_are_those_of_configs_common():
    data = common.get_config().data
    for name in set(READERS) & set(data):
        assert data[name].to_dict() == readers.reader_section(name, {})


# Impressions


def shown(**changes) -> RawData:
    """Two users and their impressions."""
    impressions = {
        "user": [1, 2],
        "timestamp": [5, 6],
        "items": [[10, 7], [7, 99]],
        "clicked": [[True, False], [False, True]],
    }
    ratings = pl.DataFrame(RATINGS, ["user", "item", "rating", "timestamp"], orient="row")
    films = pl.DataFrame(FILMS, ["item", "title", "genres"], orient="row")
    frame = pl.DataFrame(impressions | changes)
    return RawData("shown", ratings, films, impressions=frame)


def test_impressions_are_checked_and_kept():
    raw = shown()
    accept(raw, 0.0)
    assert raw.impressions.height == 2
    with_impressions = dataclasses.replace(toy.raw(), impressions=raw.impressions)
    assert build(with_impressions).checksum == build(toy.raw()).checksum


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": [["10"], ["7"]]}, "column 'items' is List(String)"),
        ({"clicked": [[True], [True, False]]}, "row 0: 'items' and 'clicked' differ in length"),
        ({"timestamp": ["a", "b"]}, "column 'timestamp' is String; it must be Int64"),
    ],
)
def test_impressions_of_another_form_are_refused(changes, message):
    refused(lambda: accept(shown(**changes), 0.0), message)
