"""Prepare a data set with Spark: the files that python -m kd_jax.data.prepare writes.

spark-submit cluster/prepare_spark.py --interactions=/shared/clicks --items=/shared/films.parquet \\
    --out=/shared/prepared

The arguments are those of kd_jax.data.prepare. The folders must be on a file system that driver and
workers share, kd_jax be installed on them, and Spark 4 (extra 'spark') and Java 17 be there. The
driver keeps the ids of users and items in memory, a worker the rows of one shard.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import polars as pl
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from kd_jax.core import process
from kd_jax.core.errors import InputError
from kd_jax.data.prepare import parse
from kd_jax.data.prepared import folder as folders
from kd_jax.data.prepared.options import (
    PrepareOptions,
    check_core,
    check_malformed,
    check_rows,
    check_schema,
    parquet_files,
    read_items,
    unit_of,
)
from kd_jax.data.prepared.streaming import BINS, narrow, write_split
from kd_jax.data.splits import temporal_ranks
from kd_jax.data.time_units import COUNTS, LIMITS


def prepare(spark: SparkSession, options: PrepareOptions, folder: Path) -> bool:
    """As ``kd_jax.data.prepared.streaming.prepare``, by Spark."""
    folder = folder.absolute()
    return folders.prepare(options, folder, functools.partial(_make, spark, options, folder))


def _make(spark: SparkSession, options: PrepareOptions, folder: Path) -> folders.Made:
    # Few rows are repeated, so sorting them before they are moved costs more than it saves.
    spark.conf.set("spark.sql.optimizer.windowGroupLimitThreshold", -1)
    files = parquet_files(options.interactions, "interactions")
    check_schema(pl.read_parquet_schema(files[0]), options)
    work = folder / folders.WORK
    counts: dict[str, int] = {}
    rows = _complete(_read(spark, options, files), options, counts)
    shards = options.shards_for(counts["rows"])
    rows = _kept(_one_per_pair(rows, options.repeats), work / "pairs")
    left = rows.count()
    counts["repeated"] = counts.pop("given") - left
    rows = _core(rows, options, work)
    size = rows.count()
    counts["below_min_interactions"] = left - size
    check_core(options, size)
    users, used = (_distinct(rows, name, work) for name in ("user", "item"))
    table = read_items(options, used.dtype)
    items = folders.catalogue(options, used, table)
    unit, divisor, cuts = _times(rows, options, size)
    _write(rows, (users, items), folder, shards, (cuts, divisor))
    name = Path(options.interactions).expanduser().stem
    return folders.Made(name, users, items, table, counts, unit, shards)


def _read(spark: SparkSession, options: PrepareOptions, files: list[Path]) -> DataFrame:
    """The columns of the interactions; row: the place in the source, files in natural order."""
    found = spark.read.parquet(*(str(file.absolute()) for file in files))
    kinds = dict(found.dtypes)
    ids = [
        f.col(column).cast("string" if kinds[column] == "string" else "long").alias(name)
        for name, column in (("user", options.user), ("item", options.item))
    ]
    rating = f.col(options.rating).cast("float") if options.rating else f.lit(1.0).cast("float")
    # A row has the URI of its file; the file's number is found by a join with the list of URIs.
    numbers = {str(file.absolute()): number for number, file in enumerate(files)}
    uris = [row[0] for row in found.select("_metadata.file_path").distinct().collect()]
    paths = [unquote(urlsplit(uri).path) for uri in uris]
    if unknown := [path for path in paths if path not in numbers]:
        raise InputError(f"{unknown[0]} is not among the files of --interactions; rename it")
    pairs = [(uri, numbers[path]) for uri, path in zip(uris, paths, strict=True)]
    table = spark.createDataFrame(pairs, "path string, file long")
    found = found.select(
        *ids,
        rating.alias("rating"),
        f.col(options.timestamp).cast("long").alias("timestamp"),
        f.col("_metadata.file_path").alias("path"),
        f.col("_metadata.row_index").alias("index"),
    ).join(f.broadcast(table), "path")
    row = f.col("file") * f.lit(1 << 40) + f.col("index")
    return found.select("user", "item", "rating", "timestamp", row.alias("row"))


def _complete(rows: DataFrame, options: PrepareOptions, counts: dict[str, int]) -> DataFrame:
    finite = ~f.isnan("rating") & (f.abs("rating") != float("inf"))
    good = f.col("user").isNotNull() & f.col("item").isNotNull() & f.col("timestamp").isNotNull()
    good &= f.coalesce(finite, f.lit(False))
    rated = good
    if options.min_rating is not None:
        rated = good & (f.col("rating") >= f.lit(options.min_rating).cast("float"))
    found = rows.select(f.count("*"), f.count_if(good), f.count_if(rated)).first()
    total, complete, given = found
    counts |= {"rows": total, "malformed": total - complete, "given": given}
    counts["below_min_rating"] = complete - given
    check_malformed(options, counts["malformed"], total)
    check_rows(options, given)
    return rows.where(rated)


def _one_per_pair(rows: DataFrame, repeats: str) -> DataFrame:
    order = [f.col("timestamp"), f.col("row")]
    if repeats != "first":
        order = [column.desc() for column in order]
    if repeats == "max":
        order = [f.col("rating").desc(), *order]
    window = Window.partitionBy("user", "item").orderBy(*order)
    return rows.withColumn("n", f.row_number().over(window)).where("n = 1").drop("n")


def _kept(rows: DataFrame, path: Path) -> DataFrame:
    """The rows, written and read again, so that they are computed once."""
    rows.write.mode("overwrite").parquet(str(path))
    return rows.sparkSession.read.schema(rows.schema).parquet(str(path))


def _core(rows: DataFrame, options: PrepareOptions, work: Path) -> DataFrame:
    """The k-core: users and items with too few rows are left out until there are none.

    Only their ids are written in a round; the rows are written at the end.
    """
    wanted = {"user": options.min_interactions, "item": options.min_item_interactions}
    wanted = {name: least for name, least in wanted.items() if least > 1}
    few: dict[str, list[str]] = {name: [] for name in wanted}
    done, step = set[str](), 0
    while len(done) < len(wanted):
        name = list(wanted)[step % len(wanted)]
        path = work / f"few-{step}"
        count = _without(rows, few).groupBy(name).count()
        count.where(f.col("count") < wanted[name]).select(name).write.parquet(str(path))
        if pl.scan_parquet(path / "*.parquet").select(pl.len()).collect().item():
            few[name].append(str(path))
            done = {name}  # what has too few now is out, and others may have fewer
        else:
            done.add(name)
        step += 1
    return _kept(_without(rows, few), work / "core") if any(few.values()) else rows


def _without(rows: DataFrame, few: dict[str, list[str]]) -> DataFrame:
    """The rows but for those of the users and items in these files."""
    for name, paths in few.items():
        if paths:
            schema = rows.select(name).schema
            ids = rows.sparkSession.read.schema(schema).parquet(*paths)
            rows = rows.join(ids, name, "left_anti")
    return rows


def _distinct(rows: DataFrame, name: str, work: Path) -> pl.Series:
    path = work / f"{name}s"
    rows.select(name).distinct().write.parquet(str(path))
    return pl.read_parquet(path / "*.parquet")[name].sort()


def _times(
    rows: DataFrame, options: PrepareOptions, size: int
) -> tuple[str, int, tuple[int, int] | None]:
    """The unit of the times, what they are divided by, and where valid and test begin."""
    time = f.col("timestamp")
    kind = f.lit(0)
    for bound in (COUNTS, *LIMITS.values()):
        kind = kind + (f.abs(time) >= bound).cast("int")
    whole = [f.max((time % f.lit(1000**power) != 0).cast("int")) for power in (1, 2, 3)]
    *classes, one, two, three, low, high = rows.select(
        *(f.sum((kind == place).cast("long")) for place in range(5)),
        *whole,
        f.min(time),
        f.max(time),
    ).first()
    divisible = 3 if not three else 2 if not two else 1 if not one else 0
    unit, divisor = unit_of(list(classes), divisible, options.time_unit)
    if options.split != "temporal":
        return unit, divisor, None

    @functools.cache
    def histogram(low: int, high: int, width: int) -> np.ndarray:
        place = f.expr(f"(timestamp - {low}) div {width}").cast("int").alias("place")
        found = rows.where(time.between(low, high)).groupBy(place).count().collect()
        counts = np.zeros(BINS + 1, np.int64)
        for place, count in found:
            counts[place] = count
        return counts

    first, second = (
        narrow((low, high), rank, histogram) for rank in temporal_ranks(size, options.ratios)
    )
    return unit, divisor, (first, second)


def _write(
    rows: DataFrame,
    ids: tuple[pl.Series, pl.Series],
    folder: Path,
    shards: int,
    how: tuple[tuple[int, int] | None, int],
) -> None:
    """Writes the shards in the workers, each from all rows of its users."""
    for name, values in zip(("user", "item"), ids, strict=True):
        path = folder / folders.WORK / f"{name}-index.parquet"
        index = pl.int_range(len(values), dtype=pl.Int32, eager=True)
        pl.DataFrame({name: values, f"{name}_index": index}).write_parquet(path)
        schema = f"{name} {dict(rows.dtypes)[name]}, {name}_index int"
        rows = rows.join(rows.sparkSession.read.schema(schema).parquet(str(path)), name)
    columns = ("user_index", "item_index", "rating", "timestamp", "row")
    shard = (f.col("user_index") % shards).alias("shard")
    rows = rows.select(shard, *columns)

    def write(table):  # type: ignore[no-untyped-def]
        number = table.column("shard")[0].as_py()
        frame = pl.from_arrow(table).sort("user_index", "timestamp", "row")
        names = ("user", "item", "rating", "timestamp")
        found = {
            name: frame[column].to_numpy() for name, column in zip(names, columns, strict=False)
        }
        write_split(folder, number, found, *how)
        return table.select(["shard"]).slice(0, 1)

    done = rows.groupBy("shard").applyInArrow(write, "shard int").collect()
    nothing = {"user": np.int32, "item": np.int32, "rating": np.float32, "timestamp": np.int64}
    for number in set(range(shards)) - {row[0] for row in done}:
        empty = {name: np.zeros(0, kind) for name, kind in nothing.items()}
        write_split(folder, number, empty, *how)


def main() -> int:
    """Runs the command; returns the exit status, 2 for bad input."""

    def run() -> None:
        options, folder = parse("prepare_spark.py", None)
        spark = SparkSession.builder.appName("prepare").getOrCreate()
        if not prepare(spark, options, folder):
            print(f"{folder}: up to date")

    return process.status(run, Path("."))


if __name__ == "__main__":
    sys.exit(main())
