"""Personal baselines without a teacher: one object each and one line in ``BASELINES``."""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.core.errors import InputError, nearest
from kd_jax.evaluation.baselines import factors
from kd_jax.evaluation.baselines.base import Baseline
from kd_jax.evaluation.baselines.ease import Ease
from kd_jax.evaluation.baselines.item_knn import ItemKnn

BASELINES: dict[str, Baseline] = {
    "item_knn": ItemKnn(),
    "ease": Ease(),
    "bpr": factors.Bpr(),
    "ials": factors.Ials(),
}
PACKAGED = ("bpr", "ials")  # of the package implicit


def check(names: Sequence[str]) -> None:
    """Raises InputError for an unknown baseline, and for one whose package is not installed."""
    for name in names:
        if name not in BASELINES:
            raise InputError(f"eval.baselines: {name!r} is unknown{nearest(name, BASELINES)}")
        if name in PACKAGED:
            factors.check_package(name)
