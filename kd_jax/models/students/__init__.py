"""Students: small recommenders, one file each and one line in ``STUDENTS``."""

from __future__ import annotations

from typing import Any

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.scorer import Scorer
from kd_jax.models.students.mf import MatrixFactorization
from kd_jax.models.students.mlp import MLP
from kd_jax.models.students.sasrec import SASRec

STUDENTS: dict[str, type[Scorer]] = {"mf": MatrixFactorization, "mlp": MLP, "sasrec": SASRec}


def student_class(name: str) -> Any:
    """The registered class, called as ``cls(spec, rngs=…)``. Raises InputError for an unknown
    name.
    """
    if name not in STUDENTS:
        raise InputError(f"student.name={name!r} is unknown{nearest(name, STUDENTS)}")
    return STUDENTS[name]
