"""DistilBERT: BERT without token types and pooler, with other names of fields and tensors.

Source: Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
lighter", 2019. In training it has BERT's dropout after the attention output, which transformers'
DistilBERT lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from kd_jax.models.language.bert import EMBEDDINGS, Bert, BertConfig, build
from kd_jax.models.language.encoder import Architecture, parameter_map

# Fields of DistilBERT's config.json -> those of BERT's. Sinusoidal positions are saved as a table,
# as learned ones are.
FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}


def _config(config: Mapping[str, Any]) -> BertConfig:
    written = {"n_layers": 6, **config}
    fields = {ours: written[theirs] for theirs, ours in FIELDS.items() if theirs in written}
    return BertConfig.from_dict({**fields, "type_vocab_size": 0})


_name = parameter_map(EMBEDDINGS, "transformer.layer", LAYER)
ARCHITECTURES = {"distilbert": Architecture("distilbert", _config, partial(build, Bert), _name)}
