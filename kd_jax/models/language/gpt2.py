"""GPT-2 in Flax NNX.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (pre-norm,
learned positions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.language.attention import attention, causal_mask
from kd_jax.models.language.decoder import Decoder
from kd_jax.models.language.encoder import ACTIVATIONS, Architecture, parameter_map
from kd_jax.models.layers import dropout

# Our names -> those of GPT-2's config.json.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "initializer_range": "initializer_range",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "embedding_dropout": "embd_pdrop",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The fields of ``config.json`` that affect the computation, with the names of other models."""

    vocab_size: int = 50257
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    layer_norm_epsilon: float = 1e-5
    embedding_dropout: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"activation_function {self.hidden_act!r} is"
                f" unknown{nearest(self.hidden_act, ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"n_embd {self.hidden_size} is not divisible by n_head {self.num_attention_heads}"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GPT2Config:
        """The configuration from the fields of ``config.json``.

        Raises InputError for an unsupported value.
        """
        unsupported = {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
        for field, value in unsupported.items():
            if config.get(field, value) != value:
                raise InputError(
                    f"{field}={config[field]!r} is not supported by the native backend (only"
                    f" {value!r}); use other weights"
                )
        # transformers' attribute_map allows the names of other models in the config, too.
        fields = {
            ours: config.get(theirs, config.get(ours))
            for ours, theirs in _FIELDS.items()
            if config.get(theirs, config.get(ours)) is not None
        }
        fields.setdefault("intermediate_size", 4 * fields.get("hidden_size", cls.hidden_size))
        return cls(**fields)


class GPT2Layer(nnx.Module):
    """Norm, self-attention, residual; norm, MLP, residual."""

    def __init__(self, config: GPT2Config, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(config.initializer_range)
        linear = partial(nnx.Linear, dtype=dtype, kernel_init=init, rngs=rngs)
        norm = partial(
            nnx.LayerNorm,
            config.hidden_size,
            epsilon=config.layer_norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        width = config.hidden_size
        inner = config.intermediate_size
        self.attention_norm = norm()
        self.norm = norm()
        self.query_key_value = linear(width, 3 * width)
        self.attention_out = linear(width, width)
        self.up = linear(width, inner)
        self.down = linear(inner, width)

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B 1 L L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        rate = self.config.dropout
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        parts = jnp.split(self.query_key_value(self.attention_norm(x)), 3, axis=-1)
        q, k, v = (part.reshape(heads) for part in parts)
        attended = self.attention_out(attention(q, k, v, mask, self.config.attention_dropout, rngs))
        x = x + dropout(attended, rate, rngs)
        hidden = ACTIVATIONS[self.config.hidden_act](self.up(self.norm(x)))
        return x + dropout(self.down(hidden), rate, rngs)


class GPT2(Decoder):
    """Word and position embeddings, layers, a final norm."""

    embeddings = ("words", "positions")

    def __init__(self, config: GPT2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        embed = partial(
            nnx.Embed, features=config.hidden_size, dtype=dtype, embedding_init=normal, rngs=rngs
        )
        self.words = embed(config.vocab_size)
        self.positions = embed(config.max_position_embeddings)
        self.layers = nnx.List(
            [GPT2Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nnx.LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs
        )

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        x = self.words(input_ids) + self.positions(positions)
        return dropout(x, self.config.embedding_dropout, rngs)

    def shared(
        self, attention_mask: Array | None, positions: Int[Array, "B L"]
    ) -> Bool[Array, "B 1 L L"]:
        return causal_mask(attention_mask, positions.shape[1])


# Our names -> those of the saved tensors, around and inside the layers.
_NAMES = {"words": "wte", "positions": "wpe", "norm": "ln_f"}
_LAYER_NAMES = {
    "attention_norm": "ln_1",
    "query_key_value": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


_names = parameter_map(_NAMES, "h", _LAYER_NAMES)


def _name(path: tuple[Any, ...]) -> str:
    # Linear maps are saved as [in, out], as in Flax: the name 'weight' prevents a transposition.
    return _names((*path[:-1], "weight" if path[-1] == "kernel" else path[-1]))


def _build(config: GPT2Config, saved: Collection[str], **how: Any) -> GPT2:
    return GPT2(config, **how)


ARCHITECTURES = {"gpt2": Architecture("transformer", GPT2Config.from_dict, _build, _name)}
