"""MPNet: BERT without token types, with a bias by distance in every layer.

Positions are counted from the padding id. Sources: Song et al., "MPNet: Masked and Permuted
Pre-training for Language Understanding", NeurIPS 2020; the buckets of distances are those of Raffel
et al., "Exploring the Limits of Transfer Learning", JMLR 2020, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError
from kd_jax.models.language.bert import EMBEDDINGS, Bert, BertConfig, build
from kd_jax.models.language.encoder import Architecture, freeze, parameter_map

# Constants of transformers' implementation, which ignores other values in config.json.
BUCKETS = 32
MAX_DISTANCE = 128
PADDING_IDX = 1


def buckets(length: int) -> Int[np.ndarray, "L L"]:
    """The bucket of the distance from each query (row) to each key (column).

    Half of the buckets are for keys to the right. In each half, the first 8 buckets have one
    distance each, and the other 8 divide the distances up to MAX_DISTANCE on a logarithmic scale;
    the last one also has all larger distances.
    """
    half = BUCKETS // 2
    exact = BUCKETS // 4
    signed = np.arange(length)[None] - np.arange(length)[:, None]
    distance = np.abs(signed)
    octaves = np.log(np.maximum(distance, exact) / exact) / np.log(MAX_DISTANCE / exact)
    step = octaves * (half - exact)
    # The distances 16, 32 and 64 begin a bucket, even if rounding makes their step too small.
    far = np.minimum(exact + np.floor(step + 1e-6).astype(np.int32), half - 1)
    return np.where(signed > 0, half, 0) + np.where(distance < exact, distance, far)


class MPNet(Bert):
    """Bert with a table [BUCKETS, H] of biases by distance, shared by all layers.

    The table counts as an embedding: it is frozen as soon as any layer is.
    """

    def __init__(
        self, config: BertConfig, *, dtype: Any = jnp.float32, pooler: bool = True, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, pooler=pooler, rngs=rngs)
        normal = nnx.initializers.normal(config.initializer_range)
        self.distances = nnx.Embed(
            BUCKETS, config.num_attention_heads, embedding_init=normal, rngs=rngs
        )

    def bias(self, attention_mask: Array | None, length: int) -> Float[Array, "#B H L L"]:
        by_distance = self.distances(jnp.asarray(buckets(length))).transpose(2, 0, 1)[None]
        if self.stop_gradient_below:
            by_distance = jax.lax.stop_gradient(by_distance)
        return super().bias(attention_mask, length) + by_distance

    def freeze_below(self, layer: int) -> None:
        super().freeze_below(layer)
        if layer > 0:
            freeze(self.distances)


LAYER = {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention_out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def _config(config: Mapping[str, Any]) -> BertConfig:
    if config.get("relative_attention_num_buckets", BUCKETS) != BUCKETS:
        raise InputError(
            f"relative_attention_num_buckets={config['relative_attention_num_buckets']!r} is not"
            f" supported (only {BUCKETS}, as in transformers); choose other weights"
        )
    written = {"vocab_size": 30527, **config, "type_vocab_size": 0, "padding_idx": PADDING_IDX}
    return BertConfig.from_dict(written)


_name = parameter_map(
    EMBEDDINGS | {"distances": "encoder.relative_attention_bias"}, "encoder.layer", LAYER
)
ARCHITECTURES = {"mpnet": Architecture("mpnet", _config, partial(build, MPNet), _name)}
