"""BERT and RoBERTa in Flax NNX; DistilBERT, MPNet and Nomic BERT build on this module.

Sources: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019
(post-norm encoder); Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019,
and Conneau et al., "Unsupervised Cross-lingual Representation Learning at Scale", ACL 2020 (XLM-R):
BERT with positions counted from the padding id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.language.attention import attend, keys_of, until
from kd_jax.models.language.encoder import (
    ACTIVATIONS,
    Architecture,
    freeze_bottom,
    hidden_states,
    parameter_map,
)
from kd_jax.models.layers import dropout


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of ``config.json`` of an HF BERT that affect the computation, with HF's defaults.

    type_vocab_size: 0 without token types. padding_idx: None where the position of a token is its
    column, from 0; else the id of padding tokens and also their position, from which the other
    tokens of a text are counted.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {self.hidden_act!r} is unknown{nearest(self.hidden_act, ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads"
                f" {self.num_attention_heads}"
            )

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest text that has positions."""
        unused = 0 if self.padding_idx is None else self.padding_idx + 1
        return self.max_position_embeddings - unused

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration from the fields of ``config.json``; unknown fields are ignored.

        Raises InputError for an unsupported value.
        """
        unsupported = {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
        }
        for field, value in unsupported.items():
            if config.get(field, value) != value:
                raise InputError(
                    f"{field}={config[field]!r} is not supported by the native backend (only"
                    f" {value!r}); set teacher.lm.backend='hf_flax' or use other weights"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})


class BertOutput(NamedTuple):
    """The outputs of ``Bert``.

    last_hidden_state: [B, L, D]. pooler_output: [B, D], or None without pooler. hidden_states:
    [B, L, D] after the embeddings and after every layer.
    """

    last_hidden_state: Array
    pooler_output: Array | None
    hidden_states: tuple[Array, ...]


class BertLayer(nnx.Module):
    """Self-attention and an MLP, each followed by residual and LayerNorm."""

    use_bias = True  # of the linear maps

    def __init__(self, config: BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        linear = partial(
            nnx.Linear,
            use_bias=self.use_bias,
            dtype=dtype,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            rngs=rngs,
        )
        norm = partial(
            nnx.LayerNorm, config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )
        width = config.hidden_size
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.attention_out = linear(width, width)
        self.attention_norm = norm()
        self.up = linear(width, config.intermediate_size)
        self.down = linear(config.intermediate_size, width)
        self.norm = norm()

    def __call__(
        self, x: Float[Array, "B L D"], bias: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        rate = self.config.hidden_dropout_prob
        attended = self.attention_out(self.attention(x, bias, rngs))
        x = self.attention_norm(x + dropout(attended, rate, rngs))
        return self.norm(x + dropout(self.mlp(x), rate, rngs))

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The MLP, before residual and norm."""
        return self.down(ACTIVATIONS[self.config.hidden_act](self.up(x)))

    def attention(
        self, x: Float[Array, "B L D"], bias: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        """Multi-head self-attention, before the output projection; bias: added to the scores."""
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        q, k, v = (linear(x).reshape(heads) for linear in (self.query, self.key, self.value))
        return attend(q, k, v, bias, self.config.attention_probs_dropout_prob, rngs)


class Bert(nnx.Module):
    """The encoder, with parameters in f32 and activations in ``dtype``.

    stop_gradient_below: n, where no gradient enters the embeddings and the layers 0 … n-1, so that
    they have no backward pass; 0 (the default) trains everything. ``freeze_below`` also turns their
    arrays from ``nnx.Param`` into ``Frozen``. remat: see ``call_layer``.
    """

    layer_class: type[BertLayer] = BertLayer
    position_table = True  # whether positions are embedded

    def __init__(
        self, config: BertConfig, *, dtype: Any = jnp.float32, pooler: bool = True, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        self.stop_gradient_below = 0
        self.remat = False
        self.dim = config.hidden_size
        self.num_layers = config.num_hidden_layers
        self.max_length = config.max_length
        normal = nnx.initializers.normal(config.initializer_range)
        embed = partial(
            nnx.Embed, features=config.hidden_size, dtype=dtype, embedding_init=normal, rngs=rngs
        )
        self.words = embed(config.vocab_size)
        self.positions = embed(config.max_position_embeddings) if self.position_table else None
        self.types = embed(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = nnx.LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List(
            [
                self.layer_class(config, dtype=dtype, rngs=rngs)
                for _ in range(config.num_hidden_layers)
            ]
        )
        width = config.hidden_size
        self.pooler = (
            nnx.Linear(width, width, dtype=dtype, kernel_init=normal, rngs=rngs) if pooler else None
        )

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Int[Array, "B *L L"] | Bool[Array, "B *L L"] | None = None,
        token_type_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        states: Float[Array, "B L D"] | None = None,
    ) -> BertOutput:
        """Runs the encoder.

        attention_mask: see ``keys_of``. rngs: for dropout (stream 'dropout'); None: no dropout.
        states: the hidden states after layer ``stop_gradient_below``, where they are known; the
        layers below are then skipped.
        """
        if position_ids is None:
            position_ids = self.position_ids(input_ids, attention_mask)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        bias = self.bias(attention_mask, input_ids.shape[1])

        def embed() -> Array:
            x = self.embeddings(input_ids, token_type_ids, position_ids)
            return dropout(self.norm(x), self.config.hidden_dropout_prob, rngs)

        found = hidden_states(self, embed, states, bias, rngs)
        pooled = None if self.pooler is None else jnp.tanh(self.pooler(found[-1][:, 0]))
        return BertOutput(found[-1], pooled, found)

    def embeddings(
        self, input_ids: Array, token_type_ids: Array, position_ids: Array
    ) -> Float[Array, "B L D"]:
        """The sum of word, type and position embeddings."""
        x = self.words(input_ids)
        if self.types is not None:
            x = x + self.types(token_type_ids)
        return x if self.positions is None else x + self.positions(position_ids)

    def position_ids(
        self, input_ids: Int[Array, "B L"], attention_mask: Array | None = None
    ) -> Int[Array, "B L"]:
        """The default positions of the tokens in their text, see ``BertConfig.padding_idx``."""
        padding = self.config.padding_idx
        if attention_mask is not None and attention_mask.ndim == 3:
            before = until(attention_mask)
            if padding is None:
                return jnp.maximum(before.sum(2) - 1, 0)
            known = input_ids != padding
            return padding + (before & known[:, None]).sum(2) * known
        if padding is None:
            return jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
        token = (input_ids != padding).astype(jnp.int32)
        return padding + jnp.cumsum(token, axis=1) * token

    def bias(self, attention_mask: Array | None, length: int) -> Any:
        """What every layer needs: a bias of the attention scores, [#B, #H, #L, #L]; length: L.

        attention_mask: see ``keys_of``.
        """
        if attention_mask is None:
            return jnp.zeros((1, 1, 1, 1))
        # Added, not assigned, as in HF: a row without tokens has uniform attention, not 0 / 0.
        return jnp.where(keys_of(attention_mask), 0.0, jnp.finfo(self.dtype).min)

    def freeze_below(self, layer: int) -> None:
        """See ``freeze_bottom``."""
        parts = (self.words, self.positions, self.types, self.norm)
        freeze_bottom(self, layer, [part for part in parts if part is not None])


EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def build(model: type[Bert], config: BertConfig, saved: Collection[str], **how: Any) -> Bert:
    """A ``model``, with a pooler if the saved tensors have one; how: further arguments."""
    return model(config, pooler=any(name.startswith("pooler.dense.") for name in saved), **how)


def _roberta(config: Mapping[str, Any]) -> BertConfig:
    padding = config.get("pad_token_id")
    return BertConfig.from_dict(
        {"vocab_size": 50265, **config, "padding_idx": 1 if padding is None else padding}
    )


_name = parameter_map(EMBEDDINGS, "encoder.layer", LAYER)
ARCHITECTURES = {
    "bert": Architecture("bert", BertConfig.from_dict, partial(build, Bert), _name),
    "roberta": Architecture("roberta", _roberta, partial(build, Bert), _name),
    "xlm-roberta": Architecture("roberta", _roberta, partial(build, Bert), _name),
}
