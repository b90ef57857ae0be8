"""Files with random damage are read with the right number of rows, or refused in one line."""

import numpy as np
import polars as pl
import pytest

from kd_jax.core.errors import InputError
from kd_jax.data import readers

MUTATIONS = 200
INSERTED = (b'"', b",", b"\t", b"\n", b"\r\n", b"\x00", b"\xff", b"-", b"1e999", b"{", b" ", b"NaN")


def rows():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 9, 40),
            "item": rng.integers(100, 120, 40),
            "rating": rng.integers(1, 6, 40).astype(float),
            "timestamp": 1_600_000_000 + rng.integers(0, 10**6, 40),
            "query": [f"word {n}" for n in rng.integers(0, 99, 40)],
        }
    )


def mind_lines():
    frame = rows()
    return "".join(
        f"{n}\tU{user}\t11/{1 + n % 9}/2019 9:05:58 AM\tN1 N2\tN{item}-1 N7-0\n"
        for n, (user, item) in enumerate(frame.select("user", "item").iter_rows())
    ).encode()


def encoded(kind, folder):
    path = folder / f"good.{kind}"
    if kind == "parquet":
        rows().write_parquet(path)
    elif kind == "jsonl":
        rows().write_ndjson(path)
    elif kind == "mind":
        return mind_lines()
    else:
        rows().write_csv(path, separator="," if kind == "csv" else "\t")
    return path.read_bytes()


def mutated(data, rng):
    data, place = bytearray(data), int(rng.integers(len(data)))
    what = rng.integers(5)
    if what == 0:
        data[place] = int(rng.integers(256))
    elif what == 1:
        del data[place : place + int(rng.integers(1, 20))]
    elif what == 2:
        data[place:place] = INSERTED[rng.integers(len(INSERTED))]
    elif what == 3:
        del data[place:]
    else:
        stop = place + int(rng.integers(1, 60))
        data[place:place] = data[place:stop]
    return bytes(data)


def count(kind, data):
    """How many rows a text has: lines that are not blank, without the header line."""
    lines = [line for line in data.replace(b"\r\n", b"\n").split(b"\n") if line.strip(b"\r")]
    return len(lines) - (kind in ("csv", "tsv"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl", "mind"])
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    good, read = encoded(kind, tmp_path), 0
    rng = np.random.default_rng(list(kind.encode()))
    for number in range(MUTATIONS):
        data = mutated(good, rng)
        path = tmp_path / f"r{number}.{kind}"
        section = {"path": str(path)}
        if kind == "mind":
            path.mkdir()
            (path / "behaviors.tsv").write_bytes(data)
            items = {line.split("-")[0] for line in map(str, range(100, 120))} | {"1", "2", "7"}
            news = "".join(f"N{item}\tc\ts\tTitle {item}\tAbstract\tx\n" for item in items)
            (path / "news.tsv").write_text(news)
            section["history"] = False
        else:
            path.write_bytes(data)
        try:
            raw = readers.read("mind" if kind == "mind" else "files", section)
        except InputError as error:
            assert "\n" not in str(error) and str(error).isprintable(), error
            assert path.name in str(error), error
            continue
        read += 1
        if kind == "parquet":
            assert raw.counts["rows"] == 40
        elif kind == "mind":
            assert raw.impressions.height + raw.counts["malformed"] == count(kind, data), data
        elif b'"' not in data:
            assert raw.counts["rows"] == count(kind, data), data
        good_rows = raw.counts["rows"] - raw.counts["malformed"]
        assert raw.interactions.height == good_rows
        assert bool(raw.problems) == (raw.counts["malformed"] > 0)
    assert read > 20
