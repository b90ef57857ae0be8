"""Tokenizers from GGUF files, as fast tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.models.language.gguf import read

# How byte-level tokenizers split a text into words before pairs are merged. The names are those of
# llama.cpp.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {"gpt-2": "", "smollm": "digits", "qwen2": r"{1}", "llama-bpe": r"{1,3}"}
# Token types.
NORMAL = 1
CONTROL = 3
USER_DEFINED = 4


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a GGUF file; raises InputError for an unsupported kind."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    fields = read(path).fields
    setting = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    kind = setting.get("model")
    if kind not in ("gpt2", "llama") or "tokens" not in setting:
        raise InputError(
            f"{path}: tokenizer.ggml.model {kind!r} is not supported (supported: gpt2, llama); use"
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
    template = ["$A"]
    used = []
    if "bos" in special and setting.get(
        "add_bos_token", kind == "llama" or setting.get("pre") == "llama-bpe"
    ):
        template.insert(0, special["bos"])
        used.append((special["bos"], ids["bos"]))
    if "eos" in special and setting.get("add_eos_token", False):
        template.append(special["eos"])
        used.append((special["eos"], ids["eos"]))
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=used
        )
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{names[name]: token for name, token in special.items()},
    )


def _byte_level(path: Path, setting: Mapping[str, Any]) -> Any:
    """A byte-level BPE, with a list of merges (GPT-2, Llama 3, Qwen)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = setting.get("pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise InputError(
            f"{path}: tokenizer.ggml.pre {pre!r} is not supported (supported:"
            f" {', '.join(PRE_TOKENIZERS)}); use the model's safetensors instead"
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
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentence_piece(setting: Mapping[str, Any]) -> Any:
    """A SentencePiece BPE (Llama 2, Mistral), with merges in the order of their scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(setting["tokens"])}
    scores = setting["scores"]
    types = setting["token_type"]
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
    if space:
        words.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(words)
    return tokenizer
