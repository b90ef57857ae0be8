"""Nomic BERT: BERT with rotary positions and a gated MLP, without biases in its linear maps.

Source: Nussbaum et al., "Nomic Embed: Training a Reproducible Long Context Text Embedder", TMLR
2025. transformers 5 has a class of it; the folders of its authors have other names of fields and
tensors, and code of their own, which is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.models.language.attention import attention, mask_both_ways
from kd_jax.models.language.bert import EMBEDDINGS, Bert, BertConfig, BertLayer, build
from kd_jax.models.language.encoder import ACTIVATIONS, Architecture, parameter_map
from kd_jax.models.language.rotary import PLAIN, Attended, frequencies, rope, rotate, rotation

# transformers' defaults.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30528,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 2048,
}
THETA = 1000.0
# The authors' names of fields -> transformers'.
FIELDS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
ACTS = {"swiglu": "silu", "geglu": "gelu"}
# Under other values of these fields the authors' code computes something else.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_function": tuple(ACTS),
    "causal": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "moe_every_n_layers": (0, None),
    "parallel_block": (False,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_rms_norm": (False, None),
}
# Parts of the authors' names of tensors -> transformers'.
NAMES = {
    "encoder.layers": "layers",
    "emb_ln": "embeddings.LayerNorm",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.fc11": "mlp.up_proj",
    "mlp.fc12": "mlp.gate_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}
QUERY_KEY_VALUE = "attn.Wqkv"


@dataclasses.dataclass(frozen=True)
class NomicConfig(BertConfig):
    """The fields of ``config.json`` that affect the computation; rope_scaling: see ``rotary``."""

    rope_theta: float = THETA
    rope_scaling: tuple[Any, ...] = PLAIN


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` with transformers' names of fields.

    Raises InputError for a value under which the authors' code computes something else.
    """
    if "n_embd" not in config:
        return dict(config)
    for field, values in SUPPORTED.items():
        if config.get(field, values[0]) not in values:
            raise InputError(
                f"{field}={config[field]!r} is not supported by the native backend (only"
                f" {', '.join(map(repr, values))}); use other weights"
            )
    ignored = (*FIELDS, *SUPPORTED, "auto_map", "max_trained_positions", "rotary_scaling_factor")
    found = {key: value for key, value in config.items() if key not in ignored}
    found |= {new: config[old] for old, new in FIELDS.items() if config.get(old) is not None}
    found["hidden_act"] = ACTS[config.get("activation_function", "swiglu")]
    trained = config.get("max_trained_positions")
    if config.get("rotary_scaling_factor") and trained:  # longer texts are rotated otherwise
        found["max_position_embeddings"] = min(found["max_position_embeddings"], trained)
    theta = found.pop("rope_theta", THETA)
    return found | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _config(config: Mapping[str, Any]) -> NomicConfig:
    given = DEFAULTS | written(config)
    theta, scaling = rope(
        {"rope_parameters": {"rope_theta": THETA} | (given.get("rope_parameters") or {})}
    )
    found = NomicConfig.from_dict(given | {"rope_theta": theta, "rope_scaling": scaling})
    width = found.hidden_size // found.num_attention_heads
    if width % 2 or given.get("head_dim") not in (None, width):
        raise InputError(
            f"head_dim {given.get('head_dim', width)} is not supported by the native backend (only"
            " hidden_size / num_attention_heads, and an even number)"
        )
    return found


class NomicLayer(BertLayer):
    """BertLayer with rotated queries and keys and a gated MLP."""

    use_bias = False

    def __init__(self, config: NomicConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(
            config.hidden_size,
            config.intermediate_size,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            rngs=rngs,
        )

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate = ACTIVATIONS[self.config.hidden_act](self.gate(x))
        return self.down(gate * self.up(x))

    def attention(
        self, x: Float[Array, "B L D"], bias: Attended, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        q, k, v = (linear(x).reshape(heads) for linear in (self.query, self.key, self.value))
        q, k = rotate(q, bias.rotation), rotate(k, bias.rotation)
        return attention(q, k, v, bias.mask, self.config.attention_probs_dropout_prob, rngs)


class NomicBert(Bert):
    """Bert without a table of positions."""

    layer_class = NomicLayer
    position_table = False

    def bias(self, attention_mask: Array | None, length: int) -> Attended:
        config: Any = self.config
        width = config.hidden_size // config.num_attention_heads
        radians = frequencies(width, config.rope_theta, config.rope_scaling)
        # Only differences between positions matter, so padding on the left may count.
        turned = rotation(jnp.arange(length)[None], radians)
        return Attended(mask_both_ways(attention_mask, length), turned)


class Renamed:
    """The tensors of the authors' folders under transformers' names."""

    def __init__(self, files: Any):
        self.files, self.folder, self.parts = files, files.folder, files.parts
        # Name -> name in the files, and which third of it, if it is not all.
        self.sources: dict[str, tuple[str, int | None]] = {}
        for source in files.shapes:
            name = source.removeprefix("bert.")
            for old, new in NAMES.items():
                name = name.replace(old, new)
            if QUERY_KEY_VALUE not in name:
                self.sources[name] = source, None
                continue
            for third, letter in enumerate("qkv"):
                part = name.replace(QUERY_KEY_VALUE, f"self_attn.{letter}_proj")
                self.sources[part] = source, third
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, (source, part) in self.sources.items():
            first, *rest = files.shapes[source]
            self.shapes[name] = (first if part is None else first // 3, *rest)

    def __getitem__(self, name: str) -> jnp.ndarray:
        source, third = self.sources[name]
        value = self.files[source]
        return value if third is None else jnp.split(value, 3)[third]

    def names(self, prefix: str) -> dict[str, str]:
        """Every name, none of which has a prefix."""
        return {name: name for name in self.shapes}


def _view(files: Any) -> Any:
    return Renamed(files) if any(QUERY_KEY_VALUE in name for name in files.shapes) else files


LAYER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "attention_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "post_mlp_layernorm",
}
_name = parameter_map(EMBEDDINGS, "layers", LAYER)
ARCHITECTURES = {
    "nomic_bert": Architecture(
        "nomic_bert", _config, partial(build, NomicBert), _name, _view, written
    )
}
