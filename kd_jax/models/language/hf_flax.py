"""The Flax classes of transformers as text encoders: BERT, RoBERTa, GPT-2, Llama and more."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.language.encoder import TextEncoder, freeze
from kd_jax.models.language.weights import load_tensors, open_weights, read_config

# Families with the same vectors as in PyTorch (benchmarks/hf_flax_families.py). The other Flax
# classes are for images or sound, or are encoder-decoders.
FAMILIES = (
    "albert",
    "bert",
    "big_bird",
    "bloom",
    "distilbert",
    "electra",
    "gemma",
    "gpt-sw3",
    "gpt2",
    "gpt_neo",
    "gptj",
    "llama",
    "mistral",
    "opt",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "xglm",
    "xlm-roberta",
)


class HFFlaxEncoder(TextEncoder):
    """A FlaxAutoModel with its parameters as ``nnx.Param``, as in the native models.

    max_length: tokens of the longest text; decoders create a causal mask of this length squared.
    Raises InputError for an unsupported model, and for files that cannot be read or do not fit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pooling: str = "mean",
        normalize: bool = False,
        dtype: Any = jnp.float32,
        max_length: int = 128,
    ):
        super().__init__(pooling=pooling, normalize=normalize)
        model, self.max_length = _build(Path(folder), dtype, max_length)
        config = model.config
        self.width = config.hidden_size
        self.num_layers = config.num_hidden_layers
        self.vocab_size = config.vocab_size
        self.dtype = dtype
        self.settings = config.to_json_string()
        self.apply = _apply(model)
        self.frozen = False
        self.prefix = model.base_model_prefix
        flat = traverse_util.flatten_dict(model.params_shape_tree)
        shapes = {".".join(path): leaf.shape for path, leaf in flat.items()}
        values = load_tensors(open_weights(Path(folder)), shapes, self.prefix)
        params = traverse_util.unflatten_dict({path: values[".".join(path)] for path in flat})
        self.params = _wrap(params)

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array,
        rngs: nnx.Rngs | None,
        states: Array | None = None,
    ) -> Float[Array, "B L D"]:
        assert states is None  # frozen_layers is 0
        params = _unwrap(self.params)
        if self.frozen:
            params = jax.lax.stop_gradient(params)
        key = None if rngs is None else rngs.dropout()
        return self.apply(params, input_ids, attention_mask, key)

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights under transformers' Flax names."""
        flat = traverse_util.flatten_dict(_unwrap(self.params))
        return {".".join(path): np.asarray(value) for path, value in flat.items()}

    def freeze_below(self, layer: int) -> None:
        """Freezes all layers or none; raises InputError for a part of the layers."""
        if layer not in (0, self.num_layers):
            raise InputError(
                "teacher.lm.train='top_n' needs teacher.lm.backend='native'; hf_flax trains all"
                f" {self.num_layers} layers ('full') or none ('head')"
            )
        if layer:
            self.frozen = True
            freeze(self)


def _wrap(tree: Mapping[str, Any]) -> nnx.Dict:
    return nnx.Dict(
        {k: _wrap(v) if isinstance(v, Mapping) else nnx.Param(v) for k, v in tree.items()}
    )


def _unwrap(tree: Any) -> Any:
    return {k: _unwrap(v) if isinstance(v, nnx.Dict) else v[...] for k, v in tree.items()}


def _apply(model: Any) -> Callable[..., Array]:
    """A function (params, ids, mask, dropout key or None) -> hidden states.

    It is a plain function, since NNX then treats it as a static attribute.
    """
    accepted = inspect.signature(type(model).__call__).parameters

    def apply(params: Any, input_ids: Array, attention_mask: Array, key: Array | None) -> Array:
        options: dict[str, Any] = {}
        if "token_type_ids" in accepted:
            # Explicit, since ELECTRA's default is ones in Flax, but zeros in PyTorch.
            options["token_type_ids"] = jnp.zeros_like(input_ids)
        if "train" in accepted:
            options["train"] = key is not None
        else:
            options["deterministic"] = key is None
        # Position ids are left to the classes: RoBERTa counts from the padding id, OPT from the
        # mask. The classes broadcast across ranks, which callers may have forbidden.
        with jax.numpy_rank_promotion("allow"):
            mask = (attention_mask > 0).astype(jnp.int32)
            output = model(input_ids, mask, params=params, dropout_rng=key, **options)
        return output.last_hidden_state

    return apply


def _build(folder: Path, dtype: Any, max_length: int) -> tuple[Any, int]:
    """The model without parameters, and its longest text; raises InputError if unsupported."""
    transformers, flax_classes = _flax_classes()
    written = read_config(folder)
    kind = str(written.get("model_type"))
    if kind not in flax_classes:
        raise InputError(
            f"{folder}/config.json: model_type {kind!r} has no Flax class in"
            f" transformers{nearest(kind, FAMILIES)}"
        )
    if kind not in FAMILIES:
        raise InputError(
            f"{folder}/config.json: model_type {kind!r} is no plain text encoder or decoder; choose"
            f" weights of {', '.join(FAMILIES)}"
        )
    config = transformers.CONFIG_MAPPING[kind].from_dict(written)
    model_class = getattr(transformers, flax_classes[kind])
    max_length = _cut_positions(config, folder, max_length)
    fields = {field.name for field in dataclasses.fields(model_class.module_class)}
    options = {"add_pooling_layer": False} if "add_pooling_layer" in fields else {}
    logger = logging.getLogger("transformers.modeling_flax_utils")
    level = logger.level
    # Hides a warning that version 5 drops these classes; requirements.txt has version 4.
    logger.setLevel(logging.ERROR)
    try:
        with jax.numpy_rank_promotion("allow"):
            model = model_class(config, dtype=dtype, _do_init=False, **options)
    finally:
        logger.setLevel(level)
    if kind == "xlm-roberta":
        model.base_model_prefix = "roberta"  # as in PyTorch, which wrote the names in the files
    return model, max_length


def _flax_classes() -> tuple[Any, Mapping[str, str]]:
    """The transformers module, and the name of the Flax class of each model_type.

    Raises InputError where transformers has no Flax classes.
    """
    transformers = importlib.import_module("transformers")
    try:
        names = importlib.import_module(
            "transformers.models.auto.modeling_flax_auto"
        ).FLAX_MODEL_MAPPING_NAMES
    except ImportError:
        raise InputError(
            "teacher.lm.backend='hf_flax' needs the Flax classes of transformers 4, and"
            f" {transformers.__version__} is installed: pip install 'transformers<5', or set"
            " teacher.lm.backend='native', which needs none of them"
        ) from None
    return transformers, names


# Families with rotary positions; max_position_embeddings is only the size of tables and masks.
ROTARY = ("llama", "mistral", "gemma", "gptj")


def _cut_positions(config: Any, folder: Path, max_length: int) -> int:
    """Reduces max_position_embeddings where no weight depends on it; returns the longest text.

    Raises InputError for rotary settings that the Flax classes ignore.
    """
    limit = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in ("roberta", "xlm-roberta", "roberta-prelayernorm"):
        limit -= config.pad_token_id + 1  # their positions start after the padding id
    if config.model_type == "big_bird":
        # Up to this length PyTorch attends to all tokens; beyond it attention is sparse by blocks.
        limit = min(limit, (5 + 2 * config.num_random_blocks) * config.block_size)
        config.attention_type = "original_full"
    max_length = min(limit, max_length)
    if config.model_type not in ROTARY:
        return max_length
    rope = getattr(config, "rope_parameters", None) or {}  # the field of transformers 5
    theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    scaling = getattr(config, "rope_scaling", None)
    if rope.get("rope_type", "default") != "default":
        scaling = rope
    if theta != 10000.0 or scaling:
        raise InputError(
            f"{folder}/config.json: rope_theta {theta} and rope_scaling {scaling} are ignored by"
            " transformers' Flax classes (they compute 10000 and none), so that the vectors would"
            " be wrong; choose other weights"
        )
    # The classes cut their table of sines and cosines to this number in its width, too.
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    config.max_position_embeddings = max(max_length, 2 * head_dim)
    if config.model_type == "mistral" and config.sliding_window is None:
        config.sliding_window = max_length  # the class takes None for a window of one token
    return max_length
