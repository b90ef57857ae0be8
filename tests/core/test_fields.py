"""The fields of a section are the parameters of its reader that have a default."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.toy import refused
from kd_jax.core import fields


def reads(required, rate=0.5, count=3, names=("a",), columns={"user": "user"}, flag=False):  # noqa: B006
    return required, rate, count, names, columns, flag


@dataclasses.dataclass
class Spec:
    size: int
    dim: int = 4


def test_the_defaults_are_the_fields():
    assert fields.defaults(Spec) == {"dim": 4}
    assert set(fields.defaults(reads)) == {"rate", "count", "names", "columns", "flag"}


def test_what_a_section_lacks_is_filled_in():
    given = {"rate": 1, "names": ["x", "y"], "columns": {"item": "sku"}}
    found = fields.complete(given, reads, "data.x")
    assert found == {
        "rate": 1.0, "count": 3, "names": ("x", "y"), "columns": {"user": "user", "item": "sku"},
        "flag": False,
    }  # fmt: skip
    assert isinstance(found["rate"], float)
    assert fields.complete({}, Spec, "student.x") == {"dim": 4}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rte": 1.0}, "data.x: there is no field 'rte'; did you mean 'rate'?"),
        ({"required": 1}, "there is no field 'required'"),
        ({"count": 1.5}, "data.x.count=1.5 must be of type int, like its default 3"),
        ({"count": True}, "data.x.count=True must be of type int"),
        ({"rate": "fast"}, "data.x.rate='fast' must be of type float"),
        ({"names": "x"}, "data.x.names='x' must be of type tuple"),
        ({"flag": 1}, "data.x.flag=1 must be of type bool"),
    ],
)
def test_another_field_or_type_is_refused(section, message):
    refused(lambda: fields.complete(section, reads, "data.x"), message)
