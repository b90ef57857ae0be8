"""Parameters of an older model in a model of newer data."""

import numpy as np
import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.core.types import PAD
from kd_jax.training.carry import carried, places


@pytest.mark.parametrize(
    "older", [pl.Series(["c", "a", "gone"]), pl.Series(["gone", "a", "c"])], ids=["one", "other"]
)
def test_places_are_found_by_id_in_any_order(older):
    found = places(pl.Series(["a", "new", "c"]), older)
    assert found[1] == PAD
    assert [older[int(found[0])], older[int(found[2])]] == ["a", "c"]


def test_ids_of_another_type_are_refused():
    refused(lambda: places(pl.Series([1, 2]), pl.Series(["1", "2"])), "Int64", "String")


def params(rows, width=2, bias=True, start=0.0):
    table = start + np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    found = {"item": table, "head": {"kernel": np.full((3, 3), start, np.float32)}}
    return found | ({"bias": table[:, 0]} if bias else {})


def test_rows_are_carried_and_all_else_is_taken_whole():
    fresh, older = params(4), params(3, start=100.0)
    rows = np.array([2, PAD, 0, PAD])
    found = carried(fresh, older, {"item": rows, "bias": rows}, "there")
    want = np.stack([older["item"][2], fresh["item"][1], older["item"][0], fresh["item"][3]])
    np.testing.assert_array_equal(found["item"], want)
    np.testing.assert_array_equal(found["bias"], want[:, 0])
    np.testing.assert_array_equal(found["head"]["kernel"], older["head"]["kernel"])
    assert fresh["item"][0, 0] == 0  # nothing is changed in place


@pytest.mark.parametrize(
    ("older", "message"),
    [
        (params(3, width=3), "parameter item has shape (3, 3) there and (4, 2) here"),
        (params(3, bias=False), "parameter bias has shape None there"),
        (params(3) | {"head": {"kernel": np.zeros((3, 4))}}, "parameter head.kernel"),
        (params(3) | {"more": np.zeros(1)}, "parameter more has shape (1,) there and None here"),
    ],
)
def test_another_architecture_is_refused(older, message):
    rows = np.array([0, 1, 2, PAD])
    refused(lambda: carried(params(4), older, {"item": rows, "bias": rows}, "there"), message)
