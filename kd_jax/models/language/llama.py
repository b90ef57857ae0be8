"""The Llama family in Flax NNX: Llama, SmolLM2, Qwen2 and 2.5, Qwen3, Mistral.

Sources: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023 (pre-norm,
SwiGLU); Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; Zhang and
Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019; Jiang et al., "Mistral 7B", 2023
(sliding window); Yang et al., "Qwen3 Technical Report", 2025 (norms of queries and keys).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.language.attention import attention, causal_mask
from kd_jax.models.language.decoder import Decoder
from kd_jax.models.language.encoder import ACTIVATIONS, Architecture, parameter_map
from kd_jax.models.language.rotary import (
    PLAIN,
    SLIDING,
    THETA,
    Attended,
    Shared,
    frequencies,
    rope,
    rotate,
    rotation,
)

# transformers' defaults of each model_type, where they differ from those of LlamaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "qwen3": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "head_dim": 128,
    },
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The fields of ``config.json`` that affect the computation, except for the following.

    rope_scaling: see ``rotary.rope``. qkv_bias, out_bias, mlp_bias, qk_norm: whether the model has
    these biases and norms. sliding: for every layer, whether it attends to ``sliding_window``
    tokens only.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = THETA
    rope_scaling: tuple[Any, ...] = PLAIN
    attention_dropout: float = 0.0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {self.hidden_act!r} is unknown{nearest(self.hidden_act, ACTIVATIONS)}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by"
                f" num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim {self.head_dim} is odd: rotary positions rotate pairs of numbers"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """The configuration from the fields of ``config.json``.

        Raises InputError for an unsupported value.
        """
        kind = str(config.get("model_type", "llama"))
        given = {
            key: value
            for key, value in (DEFAULTS[kind] | dict(config)).items()
            if value is not None
        }
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in given.items() if key in known}
        heads = fields.setdefault("num_attention_heads", cls.num_attention_heads)
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", fields.get("hidden_size", cls.hidden_size) // heads)
        bias = bool(given.get("attention_bias", False)) and kind != "mistral"
        sliding = _sliding(kind, given, fields.get("num_hidden_layers", cls.num_hidden_layers))
        theta, scaling = rope(given)
        fields |= {
            "rope_theta": theta,
            "rope_scaling": scaling,
            "qkv_bias": bias or kind == "qwen2",
            "out_bias": bias and kind != "qwen2",
            "mlp_bias": bool(given.get("mlp_bias", False)) and kind == "llama",
            "qk_norm": kind == "qwen3",
            "sliding": sliding,
            "sliding_window": fields.get("sliding_window") if any(sliding) else None,
        }
        return cls(**fields)


def _sliding(kind: str, config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer has the sliding window."""
    window = config.get("sliding_window") is not None
    if kind == "mistral":
        return (window,) * layers
    if kind == "llama" or not (window and config.get("use_sliding_window", False)):
        return (False,) * layers
    if "layer_types" in config:
        return tuple(name == SLIDING for name in config["layer_types"])
    return tuple(layer >= config.get("max_window_layers", 28) for layer in range(layers))


class LlamaLayer(nnx.Module):
    """Norm, self-attention, residual; norm, gated MLP, residual.

    norm_class: of all norms of the model. query_size: the scores are divided by its root; None is
    the width of a head.
    """

    norm_class: Any = nnx.RMSNorm
    query_size: float | None = None

    def __init__(self, config: LlamaConfig, *, sliding: bool, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.sliding = sliding
        init = nnx.initializers.normal(config.initializer_range)
        linear = partial(nnx.Linear, dtype=dtype, kernel_init=init, rngs=rngs)
        norm = partial(self.norm_class, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        width = config.hidden_size
        inner = config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.attention_norm = norm(width)
        self.norm = norm(width)
        self.query = linear(width, queries, use_bias=config.qkv_bias)
        self.key = linear(width, keys, use_bias=config.qkv_bias)
        self.value = linear(width, keys, use_bias=config.qkv_bias)
        self.query_norm = norm(config.head_dim) if config.qk_norm else None
        self.key_norm = norm(config.head_dim) if config.qk_norm else None
        self.attention_out = linear(queries, width, use_bias=config.out_bias)
        self.gate = linear(width, inner, use_bias=config.mlp_bias)
        self.up = linear(width, inner, use_bias=config.mlp_bias)
        self.down = linear(inner, width, use_bias=config.mlp_bias)

    def __call__(
        self, x: Float[Array, "B L D"], shared: Shared, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        x = x + self.attention(self.attention_norm(x), shared.of(self.sliding), rngs)
        return x + self.mlp(self.norm(x))

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The gated MLP."""
        gate = ACTIVATIONS[self.config.hidden_act](self.gate(x))
        return self.down(gate * self.up(x))

    def attention(
        self, x: Float[Array, "B L D"], own: Attended, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        """Self-attention with rotary positions and grouped heads."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (linear(x).reshape(heads) for linear in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q = self.query_norm(q)
            k = self.key_norm(k)
        q, k = rotate(q, own.rotation), rotate(k, own.rotation)
        rate = self.config.attention_dropout
        return self.attention_out(attention(q, k, v, own.mask, rate, rngs, self.query_size))


class Llama(Decoder):
    """Word embeddings, layers, a final norm; positions are rotations of queries and keys."""

    layer_class: type[LlamaLayer] = LlamaLayer

    def __init__(self, config: LlamaConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        self.words = nnx.Embed(
            config.vocab_size, config.hidden_size, dtype=dtype, embedding_init=normal, rngs=rngs
        )
        sliding = config.sliding or (False,) * config.num_hidden_layers
        self.layers = nnx.List(
            [self.layer_class(config, sliding=slides, dtype=dtype, rngs=rngs) for slides in sliding]
        )
        self.norm = self.layer_class.norm_class(
            config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs
        )

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        return self.words(input_ids)

    def shared(self, attention_mask: Array | None, positions: Int[Array, "B L"]) -> Shared:
        config, length = self.config, positions.shape[1]
        radians = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        turned = rotation(positions, radians)
        full = Attended(causal_mask(attention_mask, length), turned)
        window = config.sliding_window
        if window is None or length <= window:
            return Shared(full, full)
        return Shared(full, Attended(causal_mask(attention_mask, length, window), turned))


# Our names -> those of the saved tensors, around and inside the layers.
NAMES = {"words": "embed_tokens", "norm": "norm"}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_out": "self_attn.o_proj",
    "norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def _build(config: LlamaConfig, saved: Collection[str], **how: Any) -> Llama:
    return Llama(config, **how)


_name = parameter_map(NAMES, "layers", LAYER_NAMES)
ARCHITECTURES = {
    kind: Architecture("model", LlamaConfig.from_dict, _build, _name) for kind in DEFAULTS
}
