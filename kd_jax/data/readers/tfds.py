"""Reads rating data sets of TensorFlow Datasets.

A data set that is prepared as ArrayRecord is read without TensorFlow; preparing a data set, or
reading TFRecords, needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.raw import RawData
from kd_jax.data.readers import ids, tables
from kd_jax.data.readers.table import LINE, Table

ROLES = ("user", "item", "rating", "timestamp")
FIELDS = MappingProxyType(
    {
        "user": "user_id",
        "item": "movie_id",
        "rating": "user_rating",
        "timestamp": "timestamp",
        "title": "movie_title",
    }
)
BATCH = 65_536
SECTION = "data.tfds"


def read(
    name: str = "movielens/1m-ratings", path: str = "", fields: Mapping[str, str] = FIELDS
) -> RawData:
    """The split 'train' of a data set, which has all its records.

    name: of the data set and its config. path: the folder of prepared data sets; '' for TFDS' own,
    ~/tensorflow_datasets. fields: role -> feature, or '' for none. 'user' and 'item' are required,
    'rating' and 'timestamp' optional; every other role is a text column of the items, in this
    order, with the value of the item's first record. Raises InputError if the data set cannot be
    read or lacks a feature.
    """
    try:
        import tensorflow_datasets
    except ImportError:
        raise InputError(
            "data.reader='tfds' needs tensorflow-datasets; pip install -e '.[tfds]'"
        ) from None
    fields = {role: feature for role, feature in fields.items() if feature}
    for role in ("user", "item"):
        if role not in fields:
            raise InputError(f"{SECTION}.fields has no {role!r}; give its feature in {name}")
    builder, array_record = _opened(tensorflow_datasets, name, path)
    features = builder.info.features
    for role, feature in fields.items():
        if feature not in features:
            raise InputError(
                f"{SECTION}.fields.{role}: {name} has no feature"
                f" {feature!r}{nearest(feature, features)}"
            )
    chosen = {feature: features[feature] for feature in fields.values()}
    records = _array_record if array_record else _tensorflow
    frame = pl.concat(records(tensorflow_datasets, builder, chosen))
    frame = frame.select(pl.col(feature).alias(role) for role, feature in fields.items())
    return _raw(name, frame, list(fields))


def _opened(tfds: Any, name: str, path: str) -> tuple[Any, bool]:
    """The builder of a data set, and whether it is prepared as ArrayRecord.

    Raises InputError if it cannot be read.
    """
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    try:
        builder = tfds.builder(name, data_dir=str(Path(path).expanduser()) if path else None)
    except tfds.core.DatasetNotFoundError:
        fix = f"check {SECTION}.name"
        if not has_tensorflow:
            fix += (
                f"; if it is right, it isn't prepared in {path or '~/tensorflow_datasets'}"
                f" ({SECTION}.path), and TFDS needs tensorflow to prepare it: pip install -e"
                " '.[tfds]'"
            )
        raise InputError(f"TFDS finds no data set {name!r}; {fix}") from None
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise InputError(
            f"TFDS can't open {name!r} ({str(error).splitlines()[0]}); check {SECTION}.name"
        ) from None
    prepared = bool(builder.info.splits)
    array_record = prepared and builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    if not array_record and not has_tensorflow:
        state = "prepared as TFRecord" if prepared else "not prepared"
        raise InputError(
            f"{builder.info.full_name} is {state} in {builder.data_path}, and TFDS needs tensorflow"
            " to use it: pip install -e '.[tfds]', or prepare it elsewhere with"
            " file_format='array_record'"
        )
    return builder, array_record


def _raw(name: str, frame: pl.DataFrame, roles: list[str]) -> RawData:
    """The RawData of a table of records with a column for each role."""
    rows = frame.with_row_index(LINE, offset=1).lazy()
    table = Table(f"tfds:{name}", rows, unit="record")
    whole = frozenset(role for role in ("user", "item") if ids.are_whole(rows, role))
    found = tables.interactions(table, {role: role for role in ROLES if role in roles}, whole)
    text = [role for role in roles if role not in ROLES]
    first = (
        rows.select(LINE, "item", *text)
        .drop_nulls("item")
        .unique("item", keep="first", maintain_order=True)
    )
    items = tables.items(Table(table.path, first, unit="record"), "item", "item" in whole)
    return tables.raw_data(
        name.replace("/", "-"), found, items, path=table.path, items_path=table.path
    )


def _array_record(tfds: Any, builder: Any, features: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """The records in batches, with a column per feature; ten times as fast as TFDS' decoder."""
    from tensorflow_datasets.proto import tf_example_pb2

    source = builder.as_data_source(
        "train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for start in range(0, len(source), BATCH):
        batch = source.__getitems__(range(start, min(start + BATCH, len(source))))
        examples = [tf_example_pb2.Example.FromString(record).features.feature for record in batch]
        columns = []
        for name, feature in features.items():
            field = FIELD_OF[_kind(feature)]
            values = [getattr(example[name], field).value for example in examples]
            if _inner(feature) is feature:
                values = [value[0] if value else None for value in values]
            else:
                values = [list(value) for value in values]
            columns.append(_column(name, feature, values))
        yield pl.DataFrame(columns)


def _tensorflow(tfds: Any, builder: Any, features: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """As ``_array_record``, but by TensorFlow, which downloads and prepares a missing data set."""
    builder.download_and_prepare()
    dataset = builder.as_dataset(split="train").map(
        lambda record: {name: record[name] for name in features}
    )
    for batch in tfds.as_numpy(dataset.ragged_batch(BATCH)):
        # Sequences are ragged tensors, with to_list in place of tolist.
        columns = {
            name: values.to_list() if hasattr(values, "to_list") else values.tolist()
            for name, values in batch.items()
        }
        yield pl.DataFrame(
            [_column(name, feature, columns[name]) for name, feature in features.items()]
        )


# The field of a tf.train.Feature with its values, by type.
FIELD_OF: dict[type[pl.DataType], str] = {
    pl.Int64: "int64_list",
    pl.Float64: "float_list",
    pl.Binary: "bytes_list",
}


def _inner(feature: Any) -> Any:
    """The feature inside a sequence; for a scalar, the feature itself."""
    return getattr(feature, "feature", feature)


def _kind(feature: Any) -> type[pl.DataType]:
    kind = np.dtype(_inner(feature).np_dtype).kind
    return {"i": pl.Int64, "u": pl.Int64, "b": pl.Int64, "f": pl.Float64}.get(kind, pl.Binary)


def _column(name: str, feature: Any, values: list[Any]) -> pl.Series:
    """One value per record, with sequences as 'a, b'.

    Bytes are decoded as UTF-8, and class labels become their names.
    """
    kind = _kind(feature)
    labels = getattr(_inner(feature), "names", None)
    names = dict(enumerate(labels)) if labels else {}
    if _inner(feature) is feature:
        column = pl.Series(name, values, dtype=kind)
        if names:
            return column.replace_strict(names, return_dtype=pl.String)
        return column.cast(pl.String) if kind == pl.Binary else column
    each = pl.element().cast(pl.String)
    if names:
        each = pl.element().replace_strict(names, return_dtype=pl.String)
    return pl.Series(name, values, dtype=pl.List(kind)).list.eval(each).list.join(", ")
