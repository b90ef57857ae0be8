"""Spark and the streaming maker write the same files; skipped where there is no Java or Spark."""

import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from kd_jax.core.errors import InputError
from kd_jax.data.prepared import streaming

sys.path.insert(0, str(Path(__file__).parent))
from test_prepared import CASES, contents, options_for, write_source

ROOT = Path(__file__).parents[2]
there = shutil.which("java") and importlib.util.find_spec("pyspark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not there, reason="needs Java and pyspark (extra 'spark')"),
    pytest.mark.filterwarnings("ignore"),  # Spark's own
]


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location(
        "prepare_spark", ROOT / "cluster/prepare_spark.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_spark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of the workers
    on_interrupt = signal.getsignal(signal.SIGINT)  # Spark sets its own
    found = (
        SparkSession.builder.master("local[2]")
        .config("spark.sql.shuffle.partitions", 2)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.codegen.wholeStage", "false")  # little data: compiling takes longer
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    found.sparkContext.setLogLevel("ERROR")
    yield found
    found.stop()
    signal.signal(signal.SIGINT, on_interrupt)


# Fewer rounds than CASES["core"]: each takes Spark some seconds.
CORE = {"split": "leave_one_out", "min_interactions": 4, "min_item_interactions": 5}


@pytest.mark.parametrize(("case", "strings"), [(CORE, True), (CASES["rated"], False)])
def test_two_makers_write_the_same_bytes(tmp_path, spark, job, case, strings):
    source = tmp_path / "a b+é%20"  # all that a URI writes in another way
    write_source(source, strings=strings, scale=1000)
    options = options_for(source, **case)
    streaming.prepare(options, tmp_path / "polars", note=lambda _: None)
    assert job.prepare(spark, options, tmp_path / "spark")
    one, other = (contents(tmp_path / name) for name in ("polars", "spark"))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    counts = json.loads(one["prepared.json"])["counts"]
    assert counts["repeated"] and counts["below_min_interactions"], "rows are left out"
    assert not job.prepare(spark, options, tmp_path / "spark"), "it is up to date"


def test_what_cannot_be_prepared_is_refused(tmp_path, spark, job):
    write_source(tmp_path)
    with pytest.raises(InputError, match="no row is left; lower --min_rating"):
        job.prepare(spark, options_for(tmp_path, min_rating=9.0), tmp_path / "out")
