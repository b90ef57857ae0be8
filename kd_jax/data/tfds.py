"""Rating data sets of TensorFlow Datasets, by name.

What was prepared as ArrayRecord is read without TensorFlow; preparing a data set, or reading TFRecords, needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kd_jax.data import tables
from kd_jax.data.tables import LINE, RawData
from kd_jax.errors import InputError, nearest

ROLES = ("user", "item", "rating", "timestamp")
FIELDS = {"user": "user_id", "item": "movie_id", "rating": "user_rating", "timestamp": "timestamp",
          "title": "movie_title", "genres": "movie_genres"}
BATCH = 65_536


def read(name: str, fields: Mapping[str, str] = FIELDS, data_dir: str | Path | None = None) -> RawData:
    """The 'train' split (TFDS' word for all there is) of ``name``, such as 'movielens/1m-ratings'.

    fields: role -> feature. 'user' and 'item' are needed, 'rating' and 'timestamp' known; every other role is a text
        column of the items, in that order, taken from an item's first record.
    data_dir: where data sets are prepared; None: TFDS' own folder (~/tensorflow_datasets).
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise InputError("data.source='tfds' needs tensorflow-datasets; pip install 'kd_jax[tfds]'") from None
    for role in ("user", "item"):
        if role not in fields:
            raise InputError(f"data.tfds_fields has no {role!r}; say which feature of {name} it is")
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(Path(data_dir).expanduser()))
    except tfds.core.DatasetNotFoundError:
        cure = "check data.tfds_name"
        if not has_tensorflow:
            cure += (f"; if it is right, it isn't prepared in {data_dir or '~/tensorflow_datasets'}, and TFDS needs "
                     "tensorflow to prepare it: pip install 'kd_jax[tfds]'")
        raise InputError(f"TFDS finds no data set {name!r}; {cure}") from None
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise InputError(f"TFDS can't open {name!r} ({str(error).splitlines()[0]}); check data.tfds_name") from None
    prepared = bool(builder.info.splits)
    array_record = prepared and builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    if not array_record and not has_tensorflow:
        state = "prepared as TFRecord" if prepared else "not prepared"
        raise InputError(f"{builder.info.full_name} is {state} in {builder.data_path}, and TFDS needs tensorflow to use "
                         "it: pip install 'kd_jax[tfds]', or prepare it elsewhere with file_format='array_record'")
    features = builder.info.features
    for role, feature in fields.items():
        if feature not in features:
            raise InputError(f"data.tfds_fields.{role}: {name} has no feature {feature!r}{nearest(feature, features)}")
    wanted = {feature: features[feature] for feature in fields.values()}
    frame = pl.concat(_array_record(tfds, builder, wanted) if array_record else _tensorflow(tfds, builder, wanted))
    frame = frame.select(pl.col(feature).alias(role) for role, feature in fields.items())
    rows = frame.with_row_index(LINE, offset=1).lazy()
    table = tables.Table(f"tfds:{name}", rows, unit="record")
    whole = frozenset(role for role in ("user", "item") if tables.whole_numbers(rows, role))
    interactions, counts, problems = tables.interactions(table, {role: role for role in ROLES if role in fields}, whole)
    text = [role for role in fields if role not in ROLES]
    first = rows.select(LINE, "item", *text).drop_nulls("item").unique("item", keep="first", maintain_order=True)
    items = tables.items(tables.Table(table.path, first, unit="record"), "item", "item" in whole)
    return RawData(name.replace("/", "-"), interactions, items, counts, problems)


def _array_record(tfds: Any, builder: Any, features: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """The records in batches, one column per feature. TFDS' own decoder takes 0.3 ms a record, this some 10 us."""
    from tensorflow_datasets.proto import tf_example_pb2

    kinds = {name: _list_of(_inner(feature)) for name, feature in features.items()}
    source = builder.as_data_source("train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    for start in range(0, len(source), BATCH):
        batch = source.__getitems__(range(start, min(start + BATCH, len(source))))
        examples = [tf_example_pb2.Example.FromString(record).features.feature for record in batch]
        yield pl.DataFrame([
            _column(name, feature, [list(getattr(example[name], kinds[name]).value) for example in examples])
            for name, feature in features.items()
        ])


def _tensorflow(tfds: Any, builder: Any, features: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """The same through tensorflow, which downloads and prepares what isn't there."""
    builder.download_and_prepare()
    dataset = builder.as_dataset(split="train").map(lambda record: {name: record[name] for name in features})
    for batch in tfds.as_numpy(dataset.ragged_batch(BATCH)):
        yield pl.DataFrame([_column(name, feature, _lists(feature, batch[name])) for name, feature in features.items()])


def _lists(feature: Any, values: Any) -> list[list[Any]]:
    if _inner(feature) is not feature:
        return values.to_list() if hasattr(values, "to_list") else values.tolist()
    return [[value] for value in values.tolist()]


def _inner(feature: Any) -> Any:
    """What a sequence is a sequence of; a scalar itself."""
    return getattr(feature, "feature", feature)


def _list_of(feature: Any) -> str:
    """The field of a tf.train.Feature that holds the values."""
    kind = np.dtype(feature.np_dtype).kind
    return {"i": "int64_list", "u": "int64_list", "b": "int64_list", "f": "float_list"}.get(kind, "bytes_list")


def _column(name: str, feature: Any, values: list[list[Any]]) -> pl.Series:
    """One value per record, or for a sequence 'a, b': bytes are UTF-8 text, class labels become their names."""
    inner = _inner(feature)
    labels = getattr(inner, "names", None)
    kind = {"int64_list": pl.Int64, "float_list": pl.Float64}.get(_list_of(inner), pl.Binary)
    lists = pl.Series(name, values, dtype=pl.List(kind))
    each = pl.element().replace_strict(dict(enumerate(labels)), return_dtype=pl.String) if labels else pl.element()
    if inner is feature:
        return lists.list.eval(each.cast(pl.String) if kind == pl.Binary else each).list.first()
    return lists.list.eval(each.cast(pl.String)).list.join(", ")
