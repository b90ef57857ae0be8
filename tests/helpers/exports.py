"""Exports of given vectors, and the readers that docs/compression.md shows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from helpers.students import bundle_of
from kd_jax.serving.exporters.bundle import Bundle, Vectors

DOCS = Path(__file__).parents[2] / "docs/compression.md"
# Refuses kd_jax, also where the environment has it installed.
WITHOUT_KD_JAX = "import sys\nsys.modules['kd_jax'] = None\n"


def program_in_docs(name: str) -> str:
    """The Python block of docs/compression.md that reads the file ``name``."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if name in block]
    return found


@dataclasses.dataclass(frozen=True)
class Given(Bundle):
    """A bundle of given vectors."""

    given: Vectors | None = None

    @property
    def vectors(self):
        return self.given


def given(width, items=24, seed=0):
    """A bundle of the toy data set (24 items) with random vectors of ``width``."""
    bundle, rng = bundle_of("mf"), np.random.default_rng(seed)
    users = bundle.dataset.num_users
    vectors = Vectors(
        rng.normal(size=(users, width)).astype(np.float32),
        rng.normal(size=(items, width)).astype(np.float32),
        rng.normal(size=items).astype(np.float32),
    )
    return Given(bundle.dataset, bundle.model, bundle.description, given=vectors)
