"""Students: small recommenders, one file each and one line in ``STUDENTS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.models.students.base import Inputs, Student, StudentSpec
from kd_jax.models.students.gru4rec import GRU4Rec
from kd_jax.models.students.mf import MatrixFactorization
from kd_jax.models.students.mlp import MLP
from kd_jax.models.students.sasrec import SASRec
from kd_jax.models.students.two_tower import TwoTower

STUDENTS: dict[str, type[Student]] = {
    "mf": MatrixFactorization,
    "mlp": MLP,
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "two_tower": TwoTower,
}


def student_class(name: str) -> type[Student]:
    """The class of the student ``name``; raises InputError for an unknown name."""
    if name not in STUDENTS:
        raise InputError(f"student.name={name!r} is unknown{nearest(name, STUDENTS)}")
    return STUDENTS[name]


def student_spec(name: str, section: Mapping[str, Any], **sizes: Any) -> StudentSpec:
    """The spec of the student ``name``.

    section: ``config.student.<name>``; what it lacks has the spec's default. sizes: the fields of
    ``StudentSpec`` without a default. Raises InputError for an unknown student or field, and for a
    value that the spec refuses.
    """
    spec, where = student_class(name).spec, f"student.{name}"
    values = fields.complete(section, spec, where)
    try:
        return spec(**sizes, **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def build_student(name: str, spec: StudentSpec, inputs: Inputs, *, rngs: nnx.Rngs) -> Student:
    """The student ``name`` with its initial parameters.

    inputs: the arrays in ``Student.reads`` that its role may read; others are ignored.
    """
    cls = student_class(name)
    read = {key: inputs[key] for key in cls.reads(spec.vectors) if key in inputs}
    return cls(spec, read, rngs=rngs)
