"""ModernBERT in Flax NNX.

Source: Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast,
Memory Efficient, and Long Context Finetuning and Inference", ACL 2025 (pre-norm without biases,
rotary positions, gated MLP, two of three layers with local attention).
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
from kd_jax.models.language.attention import attention, mask_both_ways
from kd_jax.models.language.decoder import Decoder
from kd_jax.models.language.encoder import ACTIVATIONS, Architecture, parameter_map
from kd_jax.models.language.rotary import (
    PLAIN,
    SLIDING,
    THETA,
    Attended,
    Shared,
    frequencies,
    rope_by_layer,
    rotate,
    rotation,
)
from kd_jax.models.layers import dropout


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
    """The fields of ``config.json`` that affect the computation, with transformers' defaults.

    sliding: for every layer, whether it has local attention, to tokens at most ``local_attention``
    // 2 away, and ``local_rope_theta``.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    global_rope_theta: float = 160000.0
    local_rope_theta: float = THETA
    local_attention: int = 128
    sliding: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.hidden_activation not in ACTIVATIONS:
            raise InputError(
                f"hidden_activation {self.hidden_activation!r} is"
                f" unknown{nearest(self.hidden_activation, ACTIVATIONS)}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads"
                f" {self.num_attention_heads} into heads of an even width"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModernBertConfig:
        """The configuration from the fields of ``config.json``.

        Raises InputError for an unsupported value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in config.items() if key in known and value is not None}
        theta = fields.get("global_rope_theta", cls.global_rope_theta)
        # Without a base of its own, local attention has that of the other layers.
        local = fields.get("local_rope_theta", theta if "local_rope_theta" in config else THETA)
        theta, scaling, local = rope_by_layer(config, theta, local)
        if scaling != PLAIN:
            raise InputError(
                f"rope_scaling type {scaling[0]!r} is not supported for ModernBERT by the native"
                " backend; choose other weights"
            )
        every = config.get("global_attn_every_n_layers", 3)
        layers = range(fields.get("num_hidden_layers", cls.num_hidden_layers))
        kinds = config.get("layer_types")
        sliding = [kind == SLIDING for kind in kinds] if kinds else [n % every > 0 for n in layers]
        fields |= {"global_rope_theta": theta, "local_rope_theta": local}
        return cls(**fields | {"sliding": tuple(sliding)})


class ModernBertLayer(nnx.Module):
    """Norm (not in layer 0), self-attention, residual; norm, gated MLP, residual."""

    def __init__(self, config: ModernBertConfig, number: int, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.sliding = config.sliding[number]
        init = nnx.initializers.normal(config.initializer_range)
        linear = partial(nnx.Linear, dtype=dtype, kernel_init=init, rngs=rngs)
        width, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = _norm(config, dtype, rngs) if number else None
        self.norm = _norm(config, dtype, rngs)
        self.query_key_value = linear(width, 3 * width, use_bias=config.attention_bias)
        self.attention_out = linear(width, width, use_bias=config.attention_bias)
        self.gate_up = linear(width, 2 * inner, use_bias=config.mlp_bias)
        self.down = linear(inner, width, use_bias=config.mlp_bias)

    def __call__(
        self, x: Float[Array, "B L D"], shared: Shared, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        config, own = self.config, shared.of(self.sliding)
        hidden = x if self.attention_norm is None else self.attention_norm(x)
        heads = (*x.shape[:2], config.num_attention_heads, -1)
        q, k, v = (
            part.reshape(heads) for part in jnp.split(self.query_key_value(hidden), 3, axis=-1)
        )
        q, k = rotate(q, own.rotation), rotate(k, own.rotation)
        attended = attention(q, k, v, own.mask, config.attention_dropout, rngs)
        x = x + dropout(self.attention_out(attended), config.attention_dropout, rngs)
        gate, up = jnp.split(self.gate_up(self.norm(x)), 2, axis=-1)
        hidden = ACTIVATIONS[config.hidden_activation](gate) * up
        return x + self.down(dropout(hidden, config.mlp_dropout, rngs))


def _norm(config: ModernBertConfig, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.norm_eps,
        use_bias=config.norm_bias,
        dtype=dtype,
        rngs=rngs,
    )


class ModernBert(Decoder):
    """Word embeddings with a norm, layers that read both ways, a final norm."""

    embeddings = ("words", "words_norm")

    def __init__(self, config: ModernBertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        self.words = nnx.Embed(
            config.vocab_size, config.hidden_size, dtype=dtype, embedding_init=normal, rngs=rngs
        )
        self.words_norm = _norm(config, dtype, rngs)
        self.layers = nnx.List(
            [
                ModernBertLayer(config, number, dtype=dtype, rngs=rngs)
                for number in range(config.num_hidden_layers)
            ]
        )
        self.norm = _norm(config, dtype, rngs)

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        x = self.words_norm(self.words(input_ids))
        return dropout(x, self.config.embedding_dropout, rngs)

    def shared(self, attention_mask: Array | None, positions: Int[Array, "B L"]) -> Shared:
        config, length = self.config, positions.shape[1]
        width = config.hidden_size // config.num_attention_heads
        windows = (
            (None, config.global_rope_theta),
            (config.local_attention, config.local_rope_theta),
        )
        return Shared(
            *(
                Attended(
                    mask_both_ways(attention_mask, length, window),
                    rotation(positions, frequencies(width, theta)),
                )
                for window, theta in windows
            )
        )


# Our names -> those of the saved tensors, around and inside the layers.
NAMES = {
    "words": "embeddings.tok_embeddings",
    "words_norm": "embeddings.norm",
    "norm": "final_norm",
}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "query_key_value": "attn.Wqkv",
    "attention_out": "attn.Wo",
    "norm": "mlp_norm",
    "gate_up": "mlp.Wi",
    "down": "mlp.Wo",
}


def _build(config: ModernBertConfig, saved: Collection[str], **how: Any) -> ModernBert:
    return ModernBert(config, **how)


_name = parameter_map(NAMES, "layers", LAYER_NAMES)
ARCHITECTURES = {"modernbert": Architecture("model", ModernBertConfig.from_dict, _build, _name)}
