"""Reads GGUF files: configuration and quantised weights in a single file.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md). The ``gguf`` package reads and
dequantises. Tensors get the names that they have in transformers, and the rearrangements of
llama.cpp's converter are undone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.models.language import llama
from kd_jax.models.language.rotary import FULL, SLIDING, frequencies

_LLAMA = {"token_embd": "embed_tokens", "output_norm": "norm"}
_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The names in transformers of the tensors and settings of a ``general.architecture``.

    prefix: of all tensors. layers: of the list of layers. names, layer_names: GGUF's name ->
    transformers' name of the tensors outside and inside the layers. config: transformers' name ->
    GGUF's name of a setting. transposed: parts of a layer that transformers saves as [in, out].
    """

    prefix: str
    layers: str
    names: Mapping[str, str]
    layer_names: Mapping[str, str]
    config: Mapping[str, str]
    transposed: tuple[str, ...] = ()


_llama = Family("model", "layers", _LLAMA, _LLAMA_LAYER, _LLAMA_CONFIG)
_gpt2 = Family(
    "transformer",
    "h",
    {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"},
    {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    {
        "n_embd": "embedding_length",
        "n_inner": "feed_forward_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_positions": "context_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    ("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
)
_gemma = dataclasses.replace(
    _llama,
    layer_names=_LLAMA_LAYER
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
)
FAMILIES = {
    **dict.fromkeys(("llama", "qwen2", "qwen3"), _llama),
    "gpt2": _gpt2,
    **dict.fromkeys(("gemma3", "gemma-embedding"), _gemma),
}
DENSE = ("dense_2", "dense_3")  # EmbeddingGemma's maps after the pooling


def is_gguf(path: Path) -> bool:
    """Whether ``path`` has the ending of a GGUF file."""
    return path.suffix == ".gguf"


PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts(path: Path) -> list[Path]:
    """The files of a model: of 'x-00002-of-00003.gguf' all three, else the file alone.

    Raises InputError if one is missing.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found[3])
    files = [
        path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{path.parent} lacks {', '.join(missing)}; copy or download all {count} parts"
        )
    return files


def only_file(folder: Path) -> Path | None:
    """The GGUF file of a folder, the first of its parts; None if it has none.

    Raises InputError if it has several models.
    """
    first = sorted(
        path
        for path in folder.glob("*.gguf")
        if not (found := PART.fullmatch(path.name)) or int(found[2]) == 1
    )
    if len(first) > 1:
        raise InputError(
            f"{folder} holds {', '.join(path.name for path in first)}; set teacher.lm.weights to"
            " one of them"
        )
    return first[0] if first else None


class Reader:
    """The metadata and tensors of a GGUF file, or of all its parts.

    Raises InputError if a file is damaged or missing, or its architecture is not supported.
    """

    def __init__(self, path: Path):
        try:
            self.package = importlib.import_module("gguf")
        except ImportError:
            raise InputError(
                f"{path}: reading GGUF needs the gguf package; pip install gguf"
            ) from None
        self.path = path
        self.tensors: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}
        files = parts(path)
        for file in files:
            tensors, fields = self._read(file)
            self.tensors |= tensors
            self.fields = fields | self.fields  # only the first part has all of them
        if (count := int(self.fields.get("split.count", 0))) > len(files):
            raise InputError(
                f"{path} is one of {count} parts; name them as they were, such as"
                f" {path.stem}-00001-of-{count:05}.gguf, side by side"
            )
        self.kind = str(self.fields.get("general.architecture"))
        if self.kind not in FAMILIES:
            raise InputError(
                f"{path}: general.architecture {self.kind!r} is not supported (supported:"
                f" {', '.join(FAMILIES)}); choose other weights"
            )
        self.family = FAMILIES[self.kind]

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors and fields of one file."""
        try:
            reader = self.package.GGUFReader(path)
            return (
                {tensor.name: tensor for tensor in reader.tensors},
                {name: field.contents() for name, field in reader.fields.items()},
            )
        except Exception as error:  # various errors of NumPy, where the data ends
            size = path.stat().st_size if path.is_file() else 0
            raise InputError(
                f"{path} ({size:,} bytes) cannot be read as GGUF ({type(error).__name__}: {error});"
                " it is truncated or damaged: copy or download it again"
            ) from None

    def field(self, name: str) -> Any:
        """A setting of the architecture, or None; raises InputError if it differs by layer."""
        value = self.fields.get(f"{self.kind}.{name}")
        if isinstance(value, list):
            if len(set(value)) > 1:
                raise InputError(
                    f"{self.path}: {self.kind}.{name} differs between layers, which is not"
                    " supported"
                )
            value = value[0] if value else None
        # Stored as f32, of which the shortest decimal is meant: 1e-5, not 9.99999974e-6.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def value(self, name: str) -> np.ndarray:
        """The tensor ``name`` as f32; raises InputError for an unsupported quantisation."""
        tensor = self.tensors[name]
        try:
            return np.asarray(
                self.package.quants.dequantize(tensor.data, tensor.tensor_type), np.float32
            )
        except NotImplementedError:
            raise InputError(
                f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which the gguf"
                " package cannot dequantise; choose another quantisation of the model"
            ) from None


def read(path: Path) -> Reader:
    """The reader of a file; the last one is cached, since parsing takes a second or more."""
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, size: int, changed: int) -> Reader:
    return Reader(path)


_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta", "sliding_window")


def read_config(path: Path) -> dict[str, Any]:
    """The settings of the file, as the fields of transformers' ``config.json``.

    Raises InputError for missing or unsupported settings.
    """
    reader = read(path)
    names = reader.family.config
    config = {
        theirs: reader.field(key) for theirs, key in names.items() if reader.field(key) is not None
    }
    required = [
        key for theirs, key in names.items() if theirs not in config and theirs not in _OPTIONAL
    ]
    if required or "token_embd.weight" not in reader.tensors:
        lacking = ", ".join(f"{reader.kind}.{key}" for key in required) or "token_embd.weight"
        raise InputError(f"{path} lacks {lacking}; convert the model again or choose another file")
    config["vocab_size"] = int(reader.tensors["token_embd.weight"].shape[1])
    config["tie_word_embeddings"] = "output.weight" not in reader.tensors
    if reader.family is _gpt2:
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]} | config
    model_type = "mistral" if reader.kind == "llama" and "sliding_window" in config else reader.kind
    config |= {"model_type": model_type, "architectures": [f"{model_type.capitalize()}ForCausalLM"]}
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["attention_bias"] = "blk.0.attn_q.bias" in reader.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in reader.tensors
    if reader.field("expert_count"):
        raise InputError(f"{path}: a mixture of experts is not supported; choose other weights")
    if reader.field("rope.dimension_count") not in (None, config["head_dim"]):
        raise InputError(
            f"{path}: rotary positions of {reader.field('rope.dimension_count')} of"
            f" {config['head_dim']} numbers per head are not supported; choose other weights"
        )
    scaling = _rope_scaling(reader, config)
    config |= {"rope_scaling": scaling} if scaling else {}
    return config | _gemma_config(reader, config) if reader.family is _gemma else config


def _gemma_config(reader: Reader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Gemma 3 that a file does not have, by the rules of llama.cpp."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    pattern = reader.fields.get(f"{reader.kind}.attention.sliding_window_pattern") or 6
    pattern = pattern if "sliding_window" in config else 1
    if not isinstance(pattern, list):
        pattern = [(layer + 1) % pattern > 0 for layer in range(layers)]
    embedding = reader.kind == "gemma-embedding"
    # The scores of 27B alone (62 layers) are not divided by the root of a head's width.
    size = config["hidden_size"] / heads if layers == 62 else config["head_dim"]
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel" if embedding else "Gemma3ForCausalLM"],
        "layer_types": [SLIDING if slides else FULL for slides in pattern],
        "query_pre_attn_scalar": size,
        "rope_local_base_freq": reader.field("rope.freq_base_swa") or 10000.0,
        "use_bidirectional_attention": embedding,
    }


def _rope_scaling(reader: Reader, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """transformers' ``rope_scaling``, or None.

    Raises InputError for stored frequencies that it cannot express.
    """
    kind = reader.field("rope.scaling.type")
    scaling = None
    if kind not in (None, "none"):
        scaling = {"rope_type": str(kind), "factor": reader.field("rope.scaling.factor")}
    if "rope_freqs.weight" not in reader.tensors:
        return scaling
    # Llama 3.1 and later: the file has the divisor of each frequency instead of the parameters of
    # 'llama3'. All released models differ in the factor only, which is the largest divisor.
    divisors = reader.value("rope_freqs.weight")
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = llama.LlamaConfig.from_dict(config)
    scaled = llama.LlamaConfig.from_dict(dict(config) | {"rope_scaling": scaling})
    width, theta = plain.head_dim, plain.rope_theta
    expected = frequencies(width, theta) / frequencies(width, theta, scaled.rope_scaling)
    if expected.shape != divisors.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise InputError(
            f"{reader.path}: rope_freqs.weight does not follow Llama 3.1's rule; use the model's"
            " safetensors instead"
        )
    return scaling


class GGUFWeights:
    """The tensors of a GGUF file under their names in transformers.

    All shapes are read at once, values (f32) one at a time. parts: the sources of tensors and
    settings, for messages.
    """

    parts = ("its list of tensors", "its metadata")

    def __init__(self, path: Path):
        self.folder = path
        self.reader = read(path)
        self.sources = {
            self._name(name): name
            for name in self.reader.tensors
            if name != "rope_freqs.weight" and name.partition(".")[0] not in DENSE
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, source in self.sources.items():
            # GGUF lists the axes from the last one.
            shape = tuple(int(size) for size in self.reader.tensors[source].shape)
            self.shapes[name] = shape if self._transposed(source) else shape[::-1]

    def _name(self, name: str) -> str:
        family = self.reader.family
        if name == "output.weight":
            return "lm_head.weight"
        stem, _, leaf = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        if layer is None:
            return f"{family.prefix}.{family.names.get(stem, stem)}.{leaf}"
        part = family.layer_names.get(layer[2], layer[2])
        return f"{family.prefix}.{family.layers}.{layer[1]}.{part}.{leaf}"

    def _transposed(self, source: str) -> bool:
        parts = source.split(".")
        return parts[-1] == "weight" and parts[-2] in self.reader.family.transposed

    def __getitem__(self, name: str) -> jnp.ndarray:
        source = self.sources[name]
        value = self.reader.value(source)
        if self._transposed(source):
            value = value.T
        heads = self.reader.field("attention.head_count")
        key_heads = self.reader.field("attention.head_count_kv") or heads
        if self.reader.kind == "llama" and re.search(r"\.attn_[qk]\.", source):
            value = _separated(value, heads if ".attn_q." in source else key_heads)
        if self.reader.family is _gemma and source.endswith("norm.weight"):
            value = value - 1  # which the converter has added
        return jnp.asarray(value)

    def names(self, prefix: str) -> dict[str, str]:
        """Name without ``prefix`` -> name, of the tensors that have the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): name for name in self.shapes if name.startswith(start)}


def _separated(value: np.ndarray, heads: int) -> np.ndarray:
    """Query or key weights with the rows in transformers' order.

    The two numbers of a rotated pair are adjacent in a llama file, and half a head apart in
    transformers.
    """
    return value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
