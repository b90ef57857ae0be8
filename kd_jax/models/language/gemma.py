"""Gemma 3 and EmbeddingGemma: the Llama family with two rotations and four norms in a layer.

Sources: Gemma Team, "Gemma 3 Technical Report", 2025 (layers with a sliding window, whose rotations
have a base of their own, between layers without one); Vera et al., "EmbeddingGemma: Powerful and
Lightweight Text Representations", 2025 (the same model, reading both ways).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.models.language.attention import causal_mask, mask_both_ways
from kd_jax.models.language.encoder import Architecture, parameter_map
from kd_jax.models.language.llama import LAYER_NAMES, NAMES, Llama, LlamaConfig, LlamaLayer
from kd_jax.models.language.rotary import (
    FULL,
    SLIDING,
    THETA,
    Attended,
    Shared,
    frequencies,
    rope_by_layer,
    rotation,
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
    "rope_local_base_freq": THETA,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The fields of ``config.json`` that affect the computation, see ``LlamaConfig``.

    rope_theta, rope_scaling: of the layers without a sliding window. rope_local_base_freq: the base
    of the others, which have no scaling. query_pre_attn_scalar: see ``LlamaLayer.query_size``.
    use_bidirectional_attention: tokens attend to later ones, too, and ``sliding_window`` counts
    those on both sides.
    """

    query_pre_attn_scalar: float = 256
    rope_local_base_freq: float = THETA
    use_bidirectional_attention: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GemmaConfig:
        """The configuration from the fields of ``config.json``.

        Raises InputError for an unsupported value.
        """
        given = DEFAULTS | {key: value for key, value in config.items() if value is not None}
        if given.get("attn_logit_softcapping") is not None:
            raise InputError(
                f"attn_logit_softcapping={given['attn_logit_softcapping']} is not supported by the"
                " native backend (only null); choose other weights"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in given.items() if key in known}
        layers = range(given["num_hidden_layers"])
        pattern = given["sliding_window_pattern"]
        kinds = given.get("layer_types") or [
            SLIDING if (layer + 1) % pattern else FULL for layer in layers
        ]
        bias = bool(given.get("attention_bias", False))
        theta, scaling, local = rope_by_layer(
            given, given["rope_theta"], given["rope_local_base_freq"]
        )
        return cls(
            **fields
            | {
                "rope_theta": theta,
                "rope_scaling": scaling,
                "rope_local_base_freq": local,
                "hidden_act": given["hidden_activation"],
                "qkv_bias": bias,
                "out_bias": bias,
                "qk_norm": True,
                "sliding": tuple(kind == SLIDING for kind in kinds),
            }
        )


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
        self, x: Float[Array, "B L D"], shared: Shared, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        attended = self.attention(self.attention_norm(x), shared.of(self.sliding), rngs)
        x = x + self.after_attention(attended)
        return x + self.after_mlp(self.mlp(self.norm(x)))


class Gemma(Llama):
    """Word embeddings times the root of their width, layers, a final norm."""

    layer_class = GemmaLayer

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        scale = jnp.asarray(self.config.hidden_size**0.5, self.dtype)
        return self.words(input_ids) * scale

    def shared(self, attention_mask: Array | None, positions: Int[Array, "B L"]) -> Shared:
        config, length = self.config, positions.shape[1]
        mask = mask_both_ways if config.use_bidirectional_attention else causal_mask
        full = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        local = frequencies(config.head_dim, config.rope_local_base_freq)
        return Shared(
            Attended(mask(attention_mask, length), rotation(positions, full)),
            Attended(
                mask(attention_mask, length, config.sliding_window), rotation(positions, local)
            ),
        )


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
