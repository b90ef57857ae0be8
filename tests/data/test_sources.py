"""Logs in the shapes in which people have them: each kind of fault has its rule and its test."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.core.files import stamp
from kd_jax.data import summary, time_units
from kd_jax.data.dataset import build, load
from kd_jax.data.item_text import plain
from kd_jax.data.popularity import decayed_counts
from kd_jax.data.raw import RawData
from kd_jax.data.readers import files, times
from kd_jax.data.readers.table import Table

ROWS = [
    (u, 10 + (u * 3 + k) % 7, 4.0, 1_600_000_000 + 86_400 * k + u)
    for u in range(6)
    for k in range(5)
]
NAMES = ["user", "item", "rating", "timestamp"]
FRAME = pl.DataFrame(ROWS, NAMES, orient="row")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(path, **options):
    return files.read(path, **options).interactions


def epochs(values, form="", dtype=None):
    """The times of a column in seconds since 1970, as floats; None where there is none."""
    frame = pl.DataFrame({"t": pl.Series(values, dtype=dtype)})
    found = times.find(Table("t.csv", frame.lazy()), "t", form)
    value = frame.select(found.value.alias("t"))["t"]
    assert value.dtype == pl.Int64
    scale = 10 ** (time_units.EXPONENTS[found.unit or "s"] + found.digits)
    return [None if v is None else v / scale for v in value.to_list()]


# Parts


def parts_csv(folder):
    for n, part in enumerate((FRAME[:10], FRAME[10:17], FRAME[17:])):
        folder.mkdir(exist_ok=True)
        part.write_csv(folder / f"part-{n}.csv")


def parts_gz(folder):
    parts_csv(folder)
    for path in list(folder.glob("*.csv")):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def parts_spark(folder):
    folder.mkdir()
    FRAME[:9].write_parquet(folder / "part-00000-abc.snappy.parquet")
    FRAME[9:].write_parquet(folder / "part-00001-abc.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000-abc.snappy.parquet.crc").write_bytes(b"crc")
    write(folder / "_metadata" / "x.parquet", "no parquet")


def parts_hive(folder):
    for user in range(6):
        part = folder / f"user={user}"
        part.mkdir(parents=True)
        FRAME.filter(pl.col("user") == user).drop("user").write_parquet(part / "0.parquet")


def parts_jsonl(folder):
    folder.mkdir()
    FRAME[:4].write_ndjson(folder / "a.jsonl")
    FRAME[4:].write_ndjson(folder / "b.jsonl")


@pytest.mark.parametrize("make", [parts_csv, parts_gz, parts_spark, parts_hive, parts_jsonl])
def test_a_table_in_parts_is_one_table(tmp_path, make):
    make(tmp_path / "rows")
    found = files.read(tmp_path / "rows")
    assert found.interactions.select(NAMES).rows() == ROWS and found.counts["rows"] == len(ROWS)


def test_parts_are_read_in_natural_order(tmp_path):
    for n in (10, 2, 1):
        write(tmp_path / "rows" / f"part-{n}.csv", f"user,item\n{n},5\n")
    assert read(tmp_path / "rows")["user"].to_list() == [1, 2, 10]


def test_a_fault_names_its_part(tmp_path):
    write(tmp_path / "rows" / "a.csv", "user,item,rating\n1,2,3\n")
    write(tmp_path / "rows" / "b.csv", "user,item,rating\n1,3,3\n1,4,bad\n")
    found = files.read(tmp_path / "rows")
    assert found.counts == {"rows": 3, "malformed": 1}
    assert found.problems[0].endswith("b.csv:3: rating 'bad' is not a number")


def test_an_empty_part_has_no_rows(tmp_path):
    write(tmp_path / "rows" / "a.csv", "user,item\n1,2\n")
    write(tmp_path / "rows" / "b.csv", "")
    assert read(tmp_path / "rows").rows() == [(1, 2)]


def test_parts_that_do_not_fit(tmp_path):
    write(tmp_path / "rows" / "a.csv", "user,item,rating\n1,2,3\n")
    write(tmp_path / "rows" / "b.csv", "user,item\n1,3\n")
    refused(lambda: read(tmp_path / "rows"), "b.csv", "a.csv", "'rating'", "same columns")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "_SUCCESS").touch()
    refused(lambda: read(tmp_path / "none"), "folder without data files")


def test_a_changed_source_is_noticed(tmp_path):
    parts_hive(tmp_path / "rows")
    before = stamp(str(tmp_path / "rows"))
    assert len(before) == 6 and before == stamp(str(tmp_path / "rows"))
    inner = tmp_path / "rows" / "user=3" / "0.parquet"
    data = bytearray(inner.read_bytes())
    data[len(data) // 2] ^= 1
    inner.write_bytes(data)
    assert stamp(str(tmp_path / "rows")) != before
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(30 << 20))
    before = stamp(str(big))
    with big.open("r+b") as file:  # in the middle, far from both ends
        file.seek(15 << 20)
        file.write(b"x")
    assert stamp(str(big)) != before


# Times


def test_dates_as_text():
    want = 1_704_164_645.0  # 2024-01-02 03:04:05 UTC
    written = [
        "2024-01-02T03:04:05Z",
        "2024-01-02 03:04:05 UTC",
        "2024-01-02 03:04:05+00:00",
        "2024-01-02 05:04:05+0200",
        "2024-01-01T22:04:05-05:00",
        "2024/01/02 03:04:05",
        "20240102T030405Z",
        "2024-01-02 03:04:05,000",
        "Tue, 02 Jan 2024 03:04:05 GMT",
        "Tue Jan 02 03:04:05 +0000 2024",
        "2024-W01-2T03:04:05",
    ]
    assert epochs(written) == [want] * len(written)
    day = 1_704_153_600.0
    assert (
        epochs(["2024-01-02", "2024/01/02", "2024-W01-2", "Jan 02, 2024", "2 Jan 2024"])
        == [day] * 5
    )
    assert epochs(["01 2, 2024", "20240102"][:1]) == [day]
    assert epochs(["20240102", "20240103"]) == [day, day + 86_400] == epochs([20240102, 20240103])
    assert epochs([20240102030405]) == [want]


def test_the_first_date_decides_nothing():
    assert epochs(["NaT", "", None, "2024-01-02", "2024-01-02 03:04:05.5"])[3:] == [
        1_704_153_600.0,
        1_704_164_645.5,
    ]
    late = ["2024-01-02"] * 3000 + ["2024-01-02T03:04:05Z"]  # beyond what is sampled
    assert epochs(late)[-1] == 1_704_164_645.0


def test_dates_that_could_be_two_are_refused_and_read_by_their_format(tmp_path):
    path = write(tmp_path / "r.csv", "user,item,timestamp\n1,2,03/04/2024\n1,3,13/04/2024\n")
    assert files.read(path).counts["malformed"] == 2
    found = files.read(path, date_format="%d/%m/%Y")
    assert found.interactions["timestamp"].to_list() == [1_712_102_400, 1_712_966_400]


def test_nanoseconds_and_years_beyond_them():
    assert epochs(["2024-01-02 03:04:05.123456789"]) == [1_704_164_645_123_456_789 / 1e9]
    far = epochs(["9999-12-31 00:00:00.1234567", "2024-01-02 00:00:00.1234567"])
    assert far[0] is None and far[1] == pytest.approx(1_704_153_600.1234567)


@pytest.mark.parametrize("dtype", [pl.Datetime("ns"), pl.Datetime("us", "Europe/Berlin"), pl.Date])
def test_dates_of_parquet(dtype):
    moments = pl.Series([0, 86_400_000], dtype=pl.Datetime("ms")).dt.replace_time_zone("UTC")
    zone = getattr(dtype, "time_zone", None)
    column = moments.dt.convert_time_zone(zone) if zone else moments.dt.replace_time_zone(None)
    assert epochs(column.cast(dtype)) == [0.0, 86_400.0]


def test_numbers_keep_every_digit():
    text = ["1600000000.000000002", "1600000000.000000001", "1600000000", "-1.5", "1.6e9", "soon"]
    frame = pl.DataFrame({"t": text})
    found = times.find(Table("t", frame.lazy()), "t")
    value = frame.select(found.value.alias("t"))["t"].to_list()
    assert found.digits == 9
    assert value == [1600000000000000002, 1600000000000000001, 1600000000 * 10**9, -1500000000,
                     1600000000 * 10**9, None]  # fmt: skip
    assert epochs([1_600_000_000.25, 1_600_000_000.5]) == [1_600_000_000.25, 1_600_000_000.5]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_are_known_by_size(unit):
    seconds = np.array([1_600_000_000, 1_600_086_400, 1_300_000_000])
    scale = 10 ** time_units.EXPONENTS[unit]
    assert_times(time_units.resolve(seconds * scale, "", 0, "auto"), seconds, "s")
    if unit != "s":
        fine = seconds * scale + 1
        assert_times(time_units.resolve(fine, "", 0, "auto"), fine, unit)
    assert_times(time_units.resolve(seconds * scale, "", 0, unit), seconds, "s")


def assert_times(found, values, unit):
    assert (found[0] == values).all() and found[1] == unit


def test_small_numbers_are_counts_and_other_sizes_are_named():
    values, unit, notes = time_units.resolve(np.array([3, 1, 2]), "", 0, "auto")
    assert unit == "s" and values.tolist() == [3, 1, 2] and not notes
    mixed = np.array([1_600_000_000] * 5 + [1_600_000_000_000])
    _, unit, notes = time_units.resolve(mixed, "", 0, "auto")
    assert unit == "s" and "1 have not" in notes[0] and "data.time_unit" in notes[0]


def test_long_numbers_keep_their_order():
    found = epochs(["1700000000000.1234567", "1700000000000.1234568", "1700000000000"])
    assert found == pytest.approx([1_700_000_000_000.1234567] * 2 + [1_700_000_000_000], abs=1e-3)
    items = pl.DataFrame({"item": range(10, 17), "title": [f"t{i}" for i in range(7)]})
    scale = pl.when(pl.col("user") == 3).then(1000).otherwise(1)
    mixed = FRAME.with_columns(pl.col("timestamp") * scale)
    (note,) = build(RawData("x", mixed, items), split="leave_one_out").notes
    assert "5 have not" in note and "data.time_unit" in note


def test_days_are_days_in_every_unit():
    def data(scale, shift):
        frame = FRAME.with_columns(pl.col("timestamp") * scale + shift)
        items = pl.DataFrame({"item": range(10, 17), "title": [f"t{i}" for i in range(7)]})
        return build(RawData("x", frame, items), split="leave_one_out")

    seconds, fine = data(1, 0), data(1000, 1)
    assert (seconds.time_unit, fine.time_unit, fine.day) == ("s", "ms", 86_400_000)
    np.testing.assert_allclose(decayed_counts(seconds, 3.0), decayed_counts(fine, 3.0))


def test_the_unit_is_kept_with_the_data(tmp_path):
    frame = FRAME.with_columns(pl.col("timestamp") * 1000 + 1)
    items = pl.DataFrame({"item": range(10, 17), "title": [f"t{i}" for i in range(7)]})
    built = build(RawData("x", frame, items), split="leave_one_out")
    built.save(tmp_path)
    assert load(tmp_path).time_unit == "ms" and load(tmp_path).checksum == built.checksum
    refused(lambda: build(RawData("x", frame, items), time_unit="min"), "data.time_unit='min'")


# Ids


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([2**63 + 5, 2**64 - 1, 7], dtype=pl.UInt64),
        pl.Series([-(2**62), 2**62, -5], dtype=pl.Int64),
        pl.Series(["007", "07", "7"]),
        pl.Series(["12345678901234567890123", "5", "-0"]),
        pl.Series([3, 4, 5], dtype=pl.Int8),
        pl.Series(["a", "b", "c"], dtype=pl.Categorical),
    ],
)
@pytest.mark.parametrize("role", ["user", "item"])
def test_ids_are_kept(tmp_path, ids, role):
    other = "item" if role == "user" else "user"
    pl.DataFrame({role: ids, other: [1, 2, 3]}).write_parquet(tmp_path / "r.parquet")
    found = read(tmp_path / "r.parquet")[role]
    assert found.cast(pl.String).to_list() == ids.cast(pl.String).to_list()
    data = build(RawData("x", pl.DataFrame({role: found, other: [1, 2, 3]}).vstack(
        pl.DataFrame({role: found, other: [2, 3, 4]})).vstack(
        pl.DataFrame({role: found, other: [3, 4, 5]})), pl.DataFrame(
        {"item": (found if role == "item" else pl.Series([1, 2, 3, 4, 5])), })),
        split="leave_one_out" if role == "user" else "ratio", missing_text="id",
        **({} if role == "user" else {"ratios": (0.4, 0.3, 0.3)}))  # fmt: skip
    kept = data.user_ids if role == "user" else data.item_ids
    assert sorted(kept.cast(pl.String)) == sorted(ids.cast(pl.String))


def test_whole_floats_are_whole_numbers_in_both_tables(tmp_path):
    path = write(tmp_path / "r.csv", "user,item\n1.0,10.0\n2.0,11.0\n")
    items = write(tmp_path / "i.csv", "item,title\n10,a\n11,b\n")
    found = files.read(path, items_path=items)
    assert found.interactions.rows() == [(1, 10), (2, 11)] and found.items["item"].to_list() == [
        10,
        11,
    ]
    big = tmp_path / "big.parquet"
    pl.DataFrame({"user": [2.0**60, 1.0], "item": [1, 2]}).write_parquet(big)
    refused(lambda: read(big), "'user'", "floating-point", "whole numbers or as strings")


# Text files


def test_stray_quotes_of_a_tsv_are_text(tmp_path):
    rows = ["user\titem\tquery", '1\t2\t"thin', '1\t3\t27" tv', '1\t4\t"a ""b"""', "1\t5\tx"]
    table = write(tmp_path / "r.tsv", "\n".join(rows) + "\n")
    assert read(table)["item"].to_list() == [2, 3, 4, 5]
    items = "\n".join("\t".join(row.split("\t")[1:]) for row in rows) + "\n"
    found = files.read(table, items_path=write(tmp_path / "i.tsv", items)).items
    assert found["query"].to_list() == ['"thin', '27" tv', 'a "b"', "x"]


def test_stray_quotes_of_a_csv_that_swallow_rows_are_refused(tmp_path):
    rows = [f"{n},{n + 10},query {n}" for n in range(20)]
    rows[4], rows[9] = '4,14,"thin', '9,19,27"'
    path = write(tmp_path / "r.csv", "user,item,query\n" + "\n".join(rows) + "\n")
    refused(lambda: read(path), "r.csv:6", "5 lines below", "data.files.quote=''")
    assert read(path, quote="").height == 20
    texts = [f'{n},"line one of {n}\nline two, and more"' for n in range(20)]
    legal = write(tmp_path / "i.csv", "item,text\n" + "\n".join(texts) + "\n")
    rows = write(tmp_path / "ok.csv", "user,item\n1,2\n1,3\n")
    assert files.read(rows, items_path=legal).items.height == 20


def test_files_without_a_header_line(tmp_path):
    path = write(tmp_path / "r.csv", "1,10,5\n2,11,6\n")
    refused(lambda: read(path), "data.files.header=False", "data.files.columns.user=1")
    columns = {"user": "1", "item": "2", "timestamp": "3"}
    assert read(path, header=False, columns=columns).rows() == [(1, 10, 5), (2, 11, 6)]


def test_other_separators(tmp_path):
    path = write(tmp_path / "r.csv", "user;item\n1;2\n")
    refused(lambda: read(path), "';'", "data.files.separator")
    assert read(path, separator=";").rows() == [(1, 2)]
    refused(lambda: read(path, separator="::"), "data.files.separator='::'")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("r.csv", "user,item\n1,2\n".encode("utf-16"), "UTF-16"),
        ("r.csv", "user,item\n1,2\n".encode("utf-16-le"), "UTF-16"),
        ("r.csv", b"PAR1" + bytes(50), "a Parquet file"),
        ("r.csv", b"PK\x03\x04" + bytes(50), "Excel"),
        ("r.csv", gzip.compress(b"user,item\n1,2\n", mtime=0), "gzip"),
        ("r.csv.gz", b"user,item\n1,2\n", "not compressed"),
        ("r.csv", b"<!DOCTYPE html><html>", "HTML"),
        ("r.csv", b'{"user": 1, "item": 2}\n', ".jsonl"),
        ("r.jsonl", b'[{"user": 1, "item": 2}]\n', "one object per line"),
        ("r.parquet", b"user,item\n1,2\n", "no Parquet file"),
        ("r.csv", "user,item\ncaf\xe9,1\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    assert refused(lambda: read(tmp_path / name), name, what).isprintable()


def test_json_lines(tmp_path):
    rows = [{"user": "a", "item": 2**53 + n, "timestamp": 1_600_000_000_000 + n} for n in range(4)]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    path = write(tmp_path / "r.jsonl", text)
    found = read(path)
    assert found["item"].to_list() == [2**53 + n for n in range(4)]
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "r.jsonl.gz").equals(found)
    bad = write(tmp_path / "b.jsonl", json.dumps(rows[0]) + '\n{"user": 1\n' + json.dumps(rows[1]))
    raw = files.read(bad)
    assert (
        raw.counts == {"rows": 3, "malformed": 1} and "b.jsonl:2: no JSON object" in raw.problems[0]
    )


def test_recbole_names_lose_their_types(tmp_path):
    path = write(tmp_path / "d.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t5.0\n")
    items = write(tmp_path / "d.item", "item_id:token\ttitle:token_seq\n2\tA film\n")
    found = files.read(path, items_path=items)
    assert found.interactions.rows() == [(1, 2, 5)] and found.items.rows() == [(2, "A film")]


# Sessions


def test_rows_of_lists_are_sessions(tmp_path):
    frame = pl.DataFrame(
        {
            "user": ["a", "b", "c"],
            "item": [[3, 1], [2], []],
            "timestamp": [[1_600_000_000, 1_600_000_001], [5], []],
        }
    )
    frame.write_parquet(tmp_path / "r.parquet")
    want = [("a", 3, 1_600_000_000), ("a", 1, 1_600_000_001), ("b", 2, 5)]
    assert read(tmp_path / "r.parquet").rows() == want
    frame.write_ndjson(tmp_path / "r.jsonl")
    assert read(tmp_path / "r.jsonl").rows() == want
    one_time = frame.with_columns(timestamp=pl.Series([7, 8, 9]))
    one_time.write_parquet(tmp_path / "o.parquet")
    assert read(tmp_path / "o.parquet")["timestamp"].to_list() == [7, 7, 8]
    short = frame.with_columns(timestamp=pl.Series([[1], [5], []]))
    short.write_parquet(tmp_path / "s.parquet")
    refused(lambda: read(tmp_path / "s.parquet"), "row 1", "'item', 'timestamp'", "length")
    fixed = frame[:1].with_columns(item=pl.Series([[3, 1]], dtype=pl.Array(pl.Int64, 2)))
    fixed.write_parquet(tmp_path / "f.parquet")
    assert read(tmp_path / "f.parquet").rows() == want[:2]
    none = frame.with_columns(item=pl.Series([[3, 1], [2], None]))
    none = none.with_columns(timestamp=pl.Series([[1, 2], [5], None]))
    none.write_parquet(tmp_path / "n.parquet")
    assert files.read(tmp_path / "n.parquet").counts == {"rows": 4, "malformed": 1}
    gap = frame.with_columns(item=pl.Series([[3, None], [2], []]))
    gap.write_parquet(tmp_path / "g.parquet")
    raw = files.read(tmp_path / "g.parquet")
    assert (
        raw.counts == {"rows": 3, "malformed": 1} and "row 1: there is no item" in raw.problems[0]
    )


# Texts


def test_the_index_of_pandas_is_left_out(tmp_path):
    path = write(tmp_path / "r.csv", "user,item\n1,5\n")
    items = write(tmp_path / "i.csv", "Unnamed: 0,item,title\n0,5,A\n1,6,B\n")
    raw = files.read(path, items_path=items)
    assert raw.items.columns == ["item", "title"] and "'Unnamed: 0'" in raw.notes[-1]
    years = write(tmp_path / "y.csv", "index,item\n1999,5\n1984,6\n")  # no numbers of rows
    assert files.read(path, items_path=years).items.columns == ["item", "index"]


def texts_of(table, **options):
    frame = pl.DataFrame({"user": [1] * 3, "item": [1, 2, 3]})
    items = pl.DataFrame({"item": [1, 2, 3], **table})
    return build(RawData("x", frame, items), split="leave_one_out", **options).items


def test_the_title_comes_first_and_urls_are_left_out():
    table = {
        "brand": ["a", "b", "c"],
        "title": ["A", "B", "C"],
        "image": ["https://x/1.png", "", "http://x/2.png"],
    }
    assert texts_of(table).columns == ["title", "brand"]
    assert texts_of(table, text_columns=["image", "title"]).columns == ["image", "title"]


def test_nested_columns_are_read_if_they_are_named():
    nested = {"title": ["A", "B", "C"], "tags": [[["x", "y"], ["z"]], [], None]}
    refuse = lambda: texts_of(nested)  # noqa: E731
    refused(refuse, "'tags'", "List(List(String))", "data.text_columns")
    found = texts_of(nested, text_columns=["title", "tags"])
    assert found["tags"].to_list() == ["x, y, z", "", ""]
    structs = {"title": ["A", "B", "C"], "by": [{"name": "n", "year": 1}, None, None]}
    assert texts_of(structs, text_columns=["title", "by"])["by"].to_list() == ["n, 1", "", ""]


def test_html_becomes_words():
    column = pl.Series("t", [
        "<p>Fish &amp; chips<br/>daily</p>", "I <3 you", "a < b & c > d", None,
        "<script>x()</script>Tea <img src=x onerror=y()>", "x &unknown; y",
    ])  # fmt: skip
    assert plain(column).to_list() == [
        "Fish & chips daily", "I <3 you", "a < b & c > d", "", "Tea", "x &unknown; y"]  # fmt: skip


# What is said


def test_what_was_read_is_told(tmp_path):
    path = tmp_path / "r.csv"
    FRAME.vstack(FRAME[:2]).write_csv(path)
    items = write(
        tmp_path / "i.csv", "item,title\n" + "".join(f"{i},Film {i}\n" for i in range(10, 17))
    )
    data = build(files.read(path, items_path=items), split="leave_one_out")
    first, second = summary.lines(data)
    assert "32 rows read, 30 kept (2 repeated)" in first
    assert "users are whole numbers" in first and "seconds from 2020-09-13 to 2020-09-17" in first
    assert "'title'" in second and "'Film 10'" in second
    assert summary.warnings(data, True) == []


def test_what_looks_wrong_is_told():
    frame = FRAME.with_columns(
        rating=pl.lit(0.0),
        timestamp=pl.lit(5),
        user=pl.when(pl.col("user") == 0).then(-1).otherwise("user"),
    )
    items = pl.DataFrame({"item": range(10, 17), "title": ["same"] * 7})
    data = build(RawData("x", frame, items), split="leave_one_out")
    found = "\n".join(summary.warnings(data, True))
    for part in (
        "30 interactions with a rating of 0 or less",
        "data.min_rating",
        "6 of 6 test interactions have the time",
        "6 of 7 items have the same text",
        "id -1, with 5 interactions",
    ):
        assert part in found, found
    assert "rating" not in "\n".join(summary.warnings(data, False))


def test_ratings_and_items_without_text_are_told():
    frame = FRAME.with_columns(rating=(pl.int_range(pl.len()) % 5 + 1).cast(pl.Float32))
    items = pl.DataFrame({"item": range(10, 16), "title": [f"Film {i}" for i in range(6)]})
    data = build(RawData("x", frame, items), split="leave_one_out", missing_text="id")
    ratings, texts = summary.warnings(data, True)
    assert ratings == (
        "data: ratings from 1 to 5 all count as chosen items; data.min_rating=4 would keep 40% of"
        " them"
    )
    assert texts == "warning: 1 of 7 items have no text: it is their id"
    assert not [line for line in summary.warnings(data, False) if "ratings from" in line]
    none = build(RawData("x", FRAME, items[["item"]]), split="leave_one_out", missing_text="id")
    assert summary.warnings(none, True) == ["data: 7 of 7 items have no text: it is their id"]


@pytest.mark.parametrize(
    "last, read",
    (
        ("12.0,7,3,1600000500", (12, 7, 1_600_000_500)),
        ("12,7.00,3,1600000500.25", (12, 7, 1_600_000_500.25)),
        ("12,7,3,1.6000005e9", (12, 7, 1_600_000_500)),
    ),
)
def test_numbers_in_another_form_after_thousands_in_the_plain_one(tmp_path, last, read):
    rows = [f"{n % 50},{n % 90},3,{1_600_000_000 + n}" for n in range(3000)]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(["user,item,rating,timestamp", *rows, last]) + "\n")
    raw = files.read(str(path))
    assert raw.counts == {"rows": 3001, "malformed": 0}
    user, item, time = raw.interactions.select("user", "item", "timestamp").row(-1)
    assert (user, item, time / 10**raw.time_digits) == read
    first = raw.interactions.row(0, named=True)
    assert first["timestamp"] == 1_600_000_000 * 10**raw.time_digits
