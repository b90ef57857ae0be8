"""kd_jax: distil a language model into a recommender that is cheap enough to serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_jax.serving.recommender import Recommender

__version__ = "0.1.0"


def load(workdir: str | Path) -> Recommender:
    """The recommender of a finished run.

    For example ``kd_jax.load("runs/quickstart").recommend(user=7, k=10)``.
    """
    from kd_jax.serving import recommender  # not at import time: jax starts only when it is used

    return recommender.load(workdir)
