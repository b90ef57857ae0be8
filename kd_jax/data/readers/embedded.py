"""The data sets that are shipped inside the package."""

from __future__ import annotations

from importlib import resources

import polars as pl

from kd_jax.data.raw import RawData

EMBEDDED = ("movietweetings", "online_retail")


def embedded(name: str) -> RawData:
    """A data set that is shipped inside the package (see docs/data.md for its licence and
    citation).
    """
    folder = resources.files("kd_jax.data") / "embedded" / name
    frames = {}
    for kind in ("interactions", "items"):
        with (folder / f"{kind}.parquet").open("rb") as file:
            frames[kind] = pl.read_parquet(file).cast({pl.Int32: pl.Int64})
    interactions, items = frames["interactions"], frames["items"]
    return RawData(name, interactions, items, {"rows": interactions.height, "malformed": 0})
