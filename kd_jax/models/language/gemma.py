"""Gemma 3 and EmbeddingGemma: the Llama family with two rotations and four norms in a layer.

Sources: Gemma Team, "Gemma 3 Technical Report", 2025 (layers with a sliding window, whose rotations
have a base of their own, between layers without one); Vera et al., "EmbeddingGemma: Powerful and
Lightweight Text Representations", 2025 (the same model, reading both ways).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.models.language.decoder import causal_mask, mask_both_ways
from kd_jax.models.language.encoder import Architecture, parameter_map
from kd_jax.models.language.llama import (
    LAYER_NAMES,
    NAMES,
    Llama,
    LlamaConfig,
    LlamaLayer,
    Shared,
    frequencies,
    rope,
    rotations,
)

# transformers' defaults.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The fields of ``config.json`` that affect the computation, see ``LlamaConfig``.

    rope_theta, rope_scaling: of the layers without a sliding window. rope_local_base_freq: the base
    of the others, which have no scaling. query_pre_attn_scalar: see ``LlamaLayer.query_size``.
    use_bidirectional_attention: tokens attend to later ones, too, and ``sliding_window`` counts
    those on both sides.
    """

    query_pre_attn_scalar: float = 256
    rope_local_base_freq: float = 10000.0
    use_bidirectional_attention: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GemmaConfig:
        """The configuration from the fields of ``config.json``.

        Raises InputError for an unsupported value.
        """
        given = DEFAULTS | {key: value for key, value in config.items() if value is not None}
        if given.get("attn_logit_softcapping") is not None:
            raise InputError("attn_logit_softcapping is not supported by the native backend")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in given.items() if key in known}
        layers = range(given["num_hidden_layers"])
        pattern = given["sliding_window_pattern"]
        kinds = given.get("layer_types") or [
            SLIDING if (layer + 1) % pattern else FULL for layer in layers
        ]
        bias = bool(given.get("attention_bias", False))
        return cls(
            **fields
            | _rotations(given)
            | {
                "hidden_act": given["hidden_activation"],
                "qkv_bias": bias,
                "out_bias": bias,
                "qk_norm": True,
                "sliding": tuple(kind == SLIDING for kind in kinds),
            }
        )


def _rotations(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both rotations; transformers 5 writes them as ``rope_parameters``."""
    written = given.get("rope_parameters") or {}
    theta, scaling = rope(given | {"rope_parameters": None} | _flat(written.get(FULL)))
    local = given.get("rope_local_base_freq", GemmaConfig.rope_local_base_freq)
    local, plain = rope({"rope_theta": local} | _flat(written.get(SLIDING)))
    if plain != ("default",):
        raise InputError(
            f"rope_parameters: {SLIDING} of type {plain[0]!r} is not supported by the native backend"
            " (only 'default')"
        )
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_local_base_freq": local}


def _flat(written: Mapping[str, Any] | None) -> dict[str, Any]:
    """An entry of ``rope_parameters`` as the fields of transformers 4."""
    if not written:
        return {}
    base = {"rope_theta": written["rope_theta"]} if "rope_theta" in written else {}
    return base | {"rope_scaling": dict(written)}


class ShiftedNorm(nnx.Module):
    """The RMS norm whose weights are kept as differences from 1."""

    def __init__(self, width: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.zeros((width,)))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        size = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        weights = jnp.expand_dims(1 + self.scale[...], tuple(range(x.ndim - 1)))
        return (wide * size * weights).astype(self.dtype)


class Layers(NamedTuple):
    """The inputs of layers without and with a sliding window."""

    full: Shared
    local: Shared


class GemmaLayer(LlamaLayer):
    """Norm, self-attention, norm, residual; norm, gated MLP, norm, residual."""

    norm_class = ShiftedNorm

    def __init__(self, config: GemmaConfig, *, sliding: bool, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, sliding=sliding, dtype=dtype, rngs=rngs)
        self.query_size = config.query_pre_attn_scalar
        how = {"epsilon": config.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.after_attention = ShiftedNorm(config.hidden_size, **how)
        self.after_mlp = ShiftedNorm(config.hidden_size, **how)

    def __call__(
        self, x: Float[Array, "B L D"], shared: Layers, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        own = shared.local if self.sliding else shared.full
        x = x + self.after_attention(self.attention(self.attention_norm(x), own, rngs))
        return x + self.after_mlp(self.mlp(self.norm(x)))


class Gemma(Llama):
    """Word embeddings times the root of their width, layers, a final norm."""

    layer_class = GemmaLayer

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        scale = jnp.asarray(self.config.hidden_size**0.5, self.dtype)
        return self.words(input_ids) * scale

    def shared(self, attention_mask: Array | None, positions: Int[Array, "B L"]) -> Layers:
        config = self.config
        mask = mask_both_ways if config.use_bidirectional_attention else causal_mask
        base = {"rope_theta": config.rope_local_base_freq, "rope_scaling": ("default",)}
        kinds = (None, config), (config.sliding_window, dataclasses.replace(config, **base))
        length = positions.shape[1]
        full, local = (
            Shared(
                mask(attention_mask, length, window),
                None,
                *rotations(positions, frequencies(rotated)),
            )
            for window, rotated in kinds
        )
        return Layers(full, local)


def _build(config: GemmaConfig, saved: Collection[str], **how: Any) -> Gemma:
    return Gemma(config, **how)


_name = parameter_map(
    NAMES,
    "layers",
    LAYER_NAMES
    | {
        "after_attention": "post_attention_layernorm",
        "norm": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
)
ARCHITECTURES = {"gemma3_text": Architecture("model", GemmaConfig.from_dict, _build, _name)}
