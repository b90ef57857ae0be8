"""GGUF files in: one file with configuration, quantised weights and tokenizer, read as if it were a
folder of the hub.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md). The ``gguf`` package reads and
dequantises; tensors are renamed to what transformers calls them, and what llama.cpp's converter
rearranged is put back.
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
    """A ``general.architecture``: transformers' names for its tensors, around and inside the
    layers, and for its settings. transposed: parts of a layer that transformers saves as [in,
    out].
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
FAMILIES = {"llama": _llama, "qwen2": _llama, "qwen3": _llama, "gpt2": _gpt2}


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


class Reader:
    """A GGUF file's metadata and tensors. Raises InputError if it is damaged or its architecture is
    unknown.
    """

    def __init__(self, path: Path):
        try:
            self.package = importlib.import_module("gguf")
        except ImportError:
            raise InputError(
                f"{path}: reading GGUF needs the gguf package; pip install gguf"
            ) from None
        self.path = path
        try:
            reader = self.package.GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except (
            Exception
        ) as error:  # the package raises what NumPy raises at the place where the data ends
            size = path.stat().st_size if path.is_file() else 0
            raise InputError(
                f"{path} ({size:,} bytes) cannot be read as GGUF ({type(error).__name__}: {error});"
                " it is truncated or damaged: copy or download it again"
            ) from None
        self.kind = str(self.fields.get("general.architecture"))
        if self.kind not in FAMILIES:
            raise InputError(
                f"{path}: general.architecture {self.kind!r} is not supported (supported:"
                f" {', '.join(FAMILIES)}); choose other weights"
            )
        self.family = FAMILIES[self.kind]

    def field(self, name: str) -> Any:
        """A setting of the architecture, or None. Raises InputError if it differs from layer to
        layer.
        """
        value = self.fields.get(f"{self.kind}.{name}")
        if isinstance(value, list):
            if len(set(value)) > 1:
                raise InputError(
                    f"{self.path}: {self.kind}.{name} differs between layers, which is not"
                    " supported"
                )
            value = value[0] if value else None
        # Stored as f32: 1e-5 and not 9.99999974e-6 is what was meant.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def value(self, name: str) -> np.ndarray:
        """A tensor, f32, under its name in the file. Raises InputError for a quantisation that
        cannot be undone.
        """
        tensor = self.tensors[name]
        try:
            return np.asarray(
                self.package.quants.dequantize(tensor.data, tensor.tensor_type), np.float32
            )
        except NotImplementedError:
            raise InputError(
                f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which the gguf"
                " package does not undo; choose another quantisation of the model"
            ) from None


def read(path: Path) -> Reader:
    """The file's reader. Parsing the vocabulary takes a second or more, so the last file is
    kept.
    """
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, size: int, changed: int) -> Reader:
    return Reader(path)


_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta", "sliding_window")


def read_config(path: Path) -> dict[str, Any]:
    """The file's settings as transformers writes them into ``config.json``."""
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
    return config | ({"rope_scaling": scaling} if scaling else {})


def _rope_scaling(reader: Reader, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """transformers' ``rope_scaling``. Raises InputError where the file's frequencies are none that
    it describes.
    """
    kind = reader.field("rope.scaling.type")
    scaling = None
    if kind not in (None, "none"):
        scaling = {"rope_type": str(kind), "factor": reader.field("rope.scaling.factor")}
    if "rope_freqs.weight" not in reader.tensors:
        return scaling
    # Llama 3.1 and later: what 'llama3' makes of each frequency is stored, and not what it was made
    # from. All released models differ in the factor alone, which is what the longest waves are
    # stretched by.
    stretch = reader.value("rope_freqs.weight")
    scaling = {
        "rope_type": "llama3",
        "factor": float(stretch.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = llama.LlamaConfig.from_dict(config)
    scaled = llama.LlamaConfig.from_dict(dict(config) | {"rope_scaling": scaling})
    expected = llama.frequencies(plain) / llama.frequencies(scaled)
    if expected.shape != stretch.shape or not np.allclose(stretch, expected, rtol=1e-3):
        raise InputError(
            f"{reader.path}: rope_freqs.weight is not what Llama 3.1's rule gives; take the model's"
            " safetensors instead"
        )
    return scaling


class GGUFWeights:
    """The file's tensors under transformers' names: shapes at once, values (f32) one at a time."""

    parts = ("its list of tensors", "its metadata")

    def __init__(self, path: Path):
        self.folder, self.reader = path, read(path)
        self.sources = {
            self._name(name): name for name in self.reader.tensors if name != "rope_freqs.weight"
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, source in self.sources.items():
            shape = tuple(int(size) for size in self.reader.tensors[source].shape)
            self.shapes[name] = (
                shape if self._transposed(source) else shape[::-1]
            )  # GGUF counts from the last axis

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
        return jnp.asarray(value)

    def names(self, prefix: str) -> dict[str, str]:
        """Name without ``prefix`` -> name as it is here."""
        start = f"{prefix}."
        return {name.removeprefix(start): name for name in self.shapes if name.startswith(start)}


def _separated(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys: the two numbers of a rotated pair, side by side in a llama file,
    half a head apart.
    """
    return value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


# How byte-level tokenizers cut a text into words before pairs are merged. The names are
# llama.cpp's.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {"gpt-2": "", "smollm": "digits", "qwen2": r"{1}", "llama-bpe": r"{1,3}"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def read_tokenizer(path: Path) -> Any:
    """The file's tokenizer as one of transformers' fast ones. Raises InputError for a kind that is
    not known here.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    fields = read(path).fields
    setting = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    kind = setting.get("model")
    if kind not in ("gpt2", "llama") or "tokens" not in setting:
        raise InputError(
            f"{path}: tokenizer.ggml.model {kind!r} is not supported (supported: gpt2, llama); take"
            " the model's safetensors instead"
        )
    tokens = setting["tokens"]
    tokenizer = _byte_level(path, setting) if kind == "gpt2" else _sentence_piece(setting)
    types = setting.get("token_type", [])
    added = [
        AddedToken(token, special=type_ == CONTROL, normalized=False)
        for token, type_ in zip(tokens, types, strict=False)
        if type_ in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    ids = {name: setting.get(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    special = {
        name: tokens[index]
        for name, index in ids.items()
        if index is not None and index < len(tokens)
    }
    start = (
        setting.get("add_bos_token", kind == "llama" or setting.get("pre") == "llama-bpe")
        and "bos" in special
    )
    stop = setting.get("add_eos_token", False) and "eos" in special
    if start or stop:
        frame = [special["bos"]] * start + ["$A"] + [special["eos"]] * stop
        used = [
            (special[name], ids[name]) for name, wanted in (("bos", start), ("eos", stop)) if wanted
        ]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(frame), special_tokens=used
        )
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{names[name]: token for name, token in special.items()},
    )


def _byte_level(path: Path, setting: Mapping[str, Any]) -> Any:
    """Pairs of bytes merged in the order of a list (GPT-2, Llama 3, Qwen)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = setting.get("pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise InputError(
            f"{path}: tokenizer.ggml.pre {pre!r} is not supported (supported:"
            f" {', '.join(PRE_TOKENIZERS)}); take the model's safetensors instead"
        )
    merges = [tuple(merge.split(" ")) for merge in setting["merges"]]
    vocabulary = {token: index for index, token in enumerate(setting["tokens"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    plain = pre in ("gpt-2", "smollm")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)
    if pre == "smollm":
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif not plain:
        pattern = Regex(_WORDS.replace("DIGITS", PRE_TOKENIZERS[pre]))
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), words])
    tokenizer.pre_tokenizer, tokenizer.decoder = words, decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentence_piece(setting: Mapping[str, Any]) -> Any:
    """Pairs of pieces merged in the order of the scores of what they give (Llama 2, Mistral)."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(setting["tokens"])}
    scores, types = setting["scores"], setting["token_type"]
    ranked = []
    for token, index in vocabulary.items():
        if types[index] == NORMAL:
            halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            ranked += [
                (-scores[index], *pair)
                for pair in halves
                if pair[0] in vocabulary and pair[1] in vocabulary
            ]
    ranked.sort(key=lambda merge: merge[0])
    merges = [(left, right) for _, left, right in ranked]
    unknown = setting["tokens"][setting.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    space = [normalizers.Prepend("▁")] if setting.get("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    words = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*words, *([decoders.Strip(" ", 1, 0)] if space else [])])
    return tokenizer
