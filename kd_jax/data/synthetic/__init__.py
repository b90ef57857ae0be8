"""Synthetic data in the formats of published data sets, one file a shape, one line in ``SHAPES``.

A generator is a function of a folder, a seed and sizes, all with a default. It writes the same
bytes again for the same arguments and the same versions of numpy, polars and zlib. Items have
hidden topics, which their texts name and the interactions follow in part. A figure that is measured
on such data says that the code runs, and nothing of a recommender's quality.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kd_jax.data.synthetic import amazon, courses, mind, posts

SHAPES: dict[str, Callable[..., list[Path]]] = {
    "amazon": amazon.write,
    "courses": courses.write,
    "mind": mind.write,
    "posts": posts.write,
}
