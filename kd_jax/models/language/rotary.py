"""Rotary positions: queries and keys are rotated by angles that grow with the position.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError, nearest

THETA = 10000.0  # transformers' default of rope_theta
# rope_scaling type -> the fields it needs.
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
PLAIN = ("default",)
# Types of layers in ``layer_types`` and in ``rope_parameters``.
FULL = "full_attention"
SLIDING = "sliding_attention"


def rope(config: Mapping[str, Any]) -> tuple[float, tuple[Any, ...]]:
    """rope_theta and rope_scaling: (type, values in the order of ROPE_TYPES).

    transformers 5 writes both as ``rope_parameters``. Raises InputError for an unsupported type.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = float(config.get("rope_theta", scaling.get("rope_theta", THETA)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise InputError(
            f"rope_scaling type {kind!r} is not supported by the native"
            f" backend{nearest(kind, ROPE_TYPES)}; choose other weights"
        )
    missing = [field for field in ROPE_TYPES[kind] if field not in scaling]
    if missing:
        raise InputError(
            f"rope_scaling of type {kind!r} lacks {', '.join(missing)}; copy config.json again"
        )
    _check_whole({**scaling, **config})
    return theta, (kind, *(float(scaling[field]) for field in ROPE_TYPES[kind]))


def _check_whole(config: Mapping[str, Any]) -> None:
    """Raises InputError where only a part of each head is rotated."""
    factor = config.get("partial_rotary_factor", 1.0)
    if factor != 1.0:
        raise InputError(
            f"partial_rotary_factor={factor} is not supported by the native backend (only 1.0)"
        )


def rope_by_layer(
    config: Mapping[str, Any], theta: float, local: float
) -> tuple[float, tuple[Any, ...], float]:
    """rope_theta and rope_scaling of full layers, and rope_theta of layers with a window.

    theta, local: where ``rope_parameters`` of transformers 5 has none by type of layer. Raises
    InputError for a scaling of layers with a window, and for ``rope_parameters`` of another form.
    """
    by_layer = config.get("rope_parameters") or {}
    if unknown := sorted(set(by_layer) - {FULL, SLIDING}):
        raise InputError(
            f"rope_parameters has {', '.join(unknown)}, where this architecture has {FULL} and"
            f" {SLIDING} alone; copy config.json again, or choose other weights"
        )
    _check_whole(config)
    full = by_layer.get(FULL) or {"rope_theta": theta} | (config.get("rope_scaling") or {})
    theta, scaling = rope({"rope_scaling": {"rope_theta": theta} | full})
    local, kind = rope({"rope_scaling": {"rope_theta": local} | (by_layer.get(SLIDING) or {})})
    if kind != PLAIN:
        raise InputError(
            f"rope_parameters: type {kind[0]!r} of {SLIDING} is not supported by the native backend"
            " (only 'default')"
        )
    return theta, scaling, local


def frequencies(width: int, theta: float, scaling: tuple[Any, ...] = PLAIN) -> np.ndarray:
    """Radians per position for every pair of numbers in a head of ``width``, f32 [width / 2].

    'linear' divides all frequencies by ``factor``. 'llama3' divides those with a wavelength above
    context / low_freq_factor by ``factor``, keeps those with a wavelength below context /
    high_freq_factor, and interpolates between them linearly in the number of wavelengths in the
    context, where context is original_max_position_embeddings (Grattafiori et al., "The Llama 3
    Herd of Models", 2024, and the code released with Llama 3.1).
    """
    plain = 1 / theta ** (np.arange(0, width, 2) / width)
    kind, *values = scaling
    if kind == "linear":
        plain = plain / values[0]
    elif kind == "llama3":
        factor, low, high, context = values
        waves = context * plain / (2 * math.pi)
        share = np.clip((waves - low) / (high - low), 0, 1)
        plain = share * plain + (1 - share) * plain / factor
    return plain.astype(np.float32)


class Rotation(NamedTuple):
    """Cosines and sines of the angles at each position, f32 [B, L, 1, K]."""

    cos: Float[Array, "B L 1 K"]
    sin: Float[Array, "B L 1 K"]


def rotation(positions: Int[Array, "B L"], radians: np.ndarray) -> Rotation:
    """The angles at ``positions``; radians: per position, [K / 2]."""
    angles = positions[:, :, None, None].astype(jnp.float32) * radians[None, None, None]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B L H K"], by: Rotation) -> Float[Array, "B L H K"]:
    """Rotates the pairs (x[i], x[i + K / 2]) by the angles of the position, in f32."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * by.cos + turned * by.sin).astype(x.dtype)


class Attended(NamedTuple):
    """What a layer with rotations needs: the mask of keys [B, 1, L, L], and the rotation."""

    mask: Bool[Array, "B 1 L L"]
    rotation: Rotation


class Shared(NamedTuple):
    """The inputs of layers without and with a sliding window."""

    full: Attended
    local: Attended

    def of(self, sliding: bool) -> Attended:
        """Those of one layer."""
        return self.local if sliding else self.full
