"""Recommendations from an exported student, with NumPy alone: no JAX, no Flax, no polars.

from kd_jax import runtime

recommender = runtime.load("runs/quickstart/export")
recommender.recommend(history=["Gravity (2013)", 1024648], k=10)
"""

from __future__ import annotations

from kd_jax.runtime.filters import Filters, Recommendation
from kd_jax.runtime.runtime import Runtime, load

__all__ = ["Filters", "Recommendation", "Runtime", "load"]
