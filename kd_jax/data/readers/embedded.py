"""The data sets that the package contains; licences and citations are in docs/data.md."""

from __future__ import annotations

from importlib import resources

import polars as pl

from kd_jax.data.raw import RawData


def movietweetings() -> RawData:
    """MovieTweetings 100K: Dooms, De Pessemier, Martens, CrowdRec at RecSys 2013."""
    return _embedded("movietweetings")


def online_retail() -> RawData:
    """Online Retail: Chen 2015, doi 10.24432/C5BW33."""
    return _embedded("online_retail")


def _embedded(name: str) -> RawData:
    folder = resources.files("kd_jax.data") / "embedded" / name
    frames = {}
    for kind in ("interactions", "items"):
        with (folder / f"{kind}.parquet").open("rb") as file:
            frames[kind] = pl.read_parquet(file).cast({pl.Int32: pl.Int64})
    interactions, items = frames["interactions"], frames["items"]
    counts = {"rows": interactions.height, "malformed": 0}
    return RawData(name, interactions, items, counts, time_unit="s")
