"""Tokenizers as transformers 4 and 5 save them have the ids of tokenizer.json itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.hf_folders import error
from kd_jax.models.language.hf import load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
models, normalizers = tokenizers.models, tokenizers.normalizers
pre_tokenizers, processors = tokenizers.pre_tokenizers, tokenizers.processors

TEXTS = ["Title red", "a red 123 house", "THE REDS, 45", "", "ünknown ☃ red"]
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDPIECE += ["title", "red", "##s", "house", "a", ","]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("1", "2"), ("12", "3")]
PIECES = ["▁", "▁red", "▁house", "red", "a", "▁a", "1", "2", "3", "123", "▁123", "s", "▁title"]


def template(*parts: str, **ids: int) -> Any:
    names = {"cls": "[CLS]", "sep": "[SEP]", "bos": "<s>", "eos": "</s>"}
    used = [(names[name], number) for name, number in ids.items()]
    pair = [*parts, *(part.replace("A", "B") for part in parts[parts.index("$A") :])]
    return processors.TemplateProcessing(single=list(parts), pair=pair, special_tokens=used)


def wordpiece(words: list[str] = WORDPIECE) -> Any:
    unknown = next(word for word in words if "unk" in word.lower())
    rules = tokenizers.Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(words)}, unk_token=unknown)
    )
    rules.normalizer = normalizers.BertNormalizer(lowercase=True)
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.post_processor = template("[CLS]", "$A", "[SEP]", cls=2, sep=3)
    return rules


def mpnet() -> Any:
    """BERT's words with RoBERTa's special tokens, and its own between two texts."""
    rules = wordpiece(["<s>", "<pad>", "</s>", "<unk>", *WORDPIECE[5:], "[UNK]", "<mask>"])
    rules.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    rules.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return rules


def roberta() -> Any:
    rules = byte_level()
    rules.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return rules


def llama_3() -> Any:
    """Up to three digits are one token; the text is not changed before it is split."""
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated")
    rules = byte_level(bos=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    return rules


def sentencepiece_bpe(prefix: bool, bos: str) -> Any:
    """Llama 2 (with a space before each text) and Gemma: bytes in place of unknown characters."""
    words = [bos, "</s>", "<unk>", *(f"<0x{number:02X}>" for number in range(256))]
    words += ["▁", "r", "e", "d", "a", "1", "2", "3", "re", "red", "▁red", "▁a", "12"]
    merges = [("r", "e"), ("re", "d"), ("▁", "red"), ("▁", "a"), ("1", "2")]
    rules = tokenizers.Tokenizer(
        models.BPE(
            {word: n for n, word in enumerate(words)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Prepend("▁")] if prefix else []
    rules.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    rules.add_special_tokens(words[:3])
    pair = [bos, "$A", f"{bos}:1", "$B:1"]
    rules.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=pair, special_tokens=[(bos, 0)]
    )
    return rules


def byte_level(digits: Any = None, *, bos: bool = False) -> Any:
    words = ["<s>", "</s>", "<unk>", *ALPHABET, *("".join(pair) for pair in MERGES)]
    rules = tokenizers.Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, MERGES))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([*([digits] if digits else []), bytes_])
    rules.add_special_tokens(words[:3])
    rules.post_processor = template("<s>", "$A", bos=0) if bos else processors.ByteLevel()
    return rules


def unigram() -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", *PIECES]
    rules = tokenizers.Tokenizer(
        models.Unigram([(word, -1.0 - 0.1 * n) for n, word in enumerate(words)], 3, False)
    )
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.add_special_tokens(words[:4])
    rules.post_processor = template("<s>", "$A", "</s>", bos=0, eos=2)
    return rules


SPLIT = pre_tokenizers.Digits(individual_digits=True)
QWEN = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "isolated")
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
XLMR = {**LLAMA, "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
# (rules, class in transformers 4, special tokens)
FAMILIES = {
    "bert": (wordpiece(), "BertTokenizer", BERT),
    "distilbert": (wordpiece(), "DistilBertTokenizer", BERT),
    "gemma": (sentencepiece_bpe(False, "<bos>"), "GemmaTokenizer", {**LLAMA, "bos_token": "<bos>"}),
    "gpt2": (byte_level(), "GPT2Tokenizer", LLAMA),
    "llama 2": (sentencepiece_bpe(True, "<s>"), "LlamaTokenizer", LLAMA),
    "llama 3": (llama_3(), "PreTrainedTokenizerFast", LLAMA),
    "mpnet": (mpnet(), "MPNetTokenizer", {**XLMR, "unk_token": "[UNK]"}),
    "llama": (byte_level(SPLIT, bos=True), "LlamaTokenizer", LLAMA),
    "llama as gpt2": (byte_level(SPLIT), "GPT2Tokenizer", LLAMA),
    "qwen2": (byte_level(QWEN), "Qwen2Tokenizer", LLAMA),
    "roberta": (roberta(), "RobertaTokenizer", {**XLMR, "pad_token": "</s>"}),
    "t5": (unigram(), "T5Tokenizer", {**XLMR, "bos_token": None, "cls_token": None}),
    "xlm-roberta": (unigram(), "XLMRobertaTokenizer", XLMR),
}


def save(folder: Path, rules: Any, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rules.save(str(folder / "tokenizer.json"))
    written = {name: value for name, value in fields.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_file(tmp_path, family, version):
    rules, name, special = FAMILIES[family]
    fields: dict[str, Any] = {"tokenizer_class": name, "extra_special_tokens": {}}
    if version == 5:
        fields = {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend"}
        fields |= {"extra_special_tokens": [special["unk_token"]], "add_prefix_space": None}
    found = load_tokenizer(save(tmp_path, rules, **fields, **special))
    for text in TEXTS:
        assert found(text)["input_ids"] == rules.encode(text).ids
        if text:  # transformers takes an empty second text for none
            assert found(text, text)["input_ids"] == rules.encode(text, text).ids
    for role, token in special.items():
        assert getattr(found, role) == token
        assert getattr(found, f"{role}_id") == (token and rules.token_to_id(token))
    for text in ("a red 123 house", "THE REDS, 45"):
        assert found(text, truncation=True, max_length=4)["input_ids"] == cut(rules, text)


def cut(rules: Any, text: str) -> list[int]:
    shorter = tokenizers.Tokenizer.from_str(rules.to_str())
    shorter.enable_truncation(4)
    return shorter.encode(text).ids


def test_a_known_class_gets_its_usual_special_tokens(tmp_path):
    found = load_tokenizer(save(tmp_path, wordpiece(), tokenizer_class="BertTokenizer"))
    assert (found.pad_token, found.cls_token, found.sep_token) == ("[PAD]", "[CLS]", "[SEP]")
    assert (found.unk_token, found.mask_token) == ("[UNK]", "[MASK]")
    # By the model, where no class is named; RoBERTa's models take no token types.
    save(tmp_path, unigram())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    found = load_tokenizer(tmp_path)
    assert (found.pad_token, found.cls_token, found.sep_token) == ("<pad>", "<s>", "</s>")
    assert found.model_input_names == ["input_ids", "attention_mask"]
    # A special token that the vocabulary lacks is not added.
    assert found.mask_token is None and len(found) == unigram().get_vocab_size()


def test_special_tokens_may_lie_in_a_file_of_their_own(tmp_path):
    save(tmp_path, byte_level())
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<unk>"})
    )
    found = load_tokenizer(tmp_path)
    assert (found.eos_token, found.pad_token, found.bos_token) == ("</s>", "<unk>", None)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer", "TokenizersBackend"])
@pytest.mark.parametrize("already", [False, True])
@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, None), (False, True), (False, None)])
def test_the_flags_of_bos_and_eos_are_obeyed(tmp_path, name, already, bos, eos):
    rules = byte_level(SPLIT, bos=already)
    flags = {"add_bos_token": bos, "add_eos_token": eos, "tokenizer_class": name}
    found = load_tokenizer(save(tmp_path, rules, **flags, **LLAMA))
    plain = rules.encode("red 12", add_special_tokens=False).ids
    start, end = [0] * bool(bos), [1] * bool(eos)
    assert found("red 12")["input_ids"] == [*start, *plain, *end]
    if not already:  # else the file may join two texts in its own way
        two = rules.encode("red 12", "red 12", add_special_tokens=False).ids
        expected = 2 * [*start, *plain, *end] if start or end else two
        assert found("red 12", "red 12")["input_ids"] == expected


def test_flags_do_not_change_what_else_a_file_adds(tmp_path):
    rules = wordpiece()
    fields = {"add_bos_token": False, "add_eos_token": True, "bos_token": "a", "eos_token": "red"}
    found = load_tokenizer(save(tmp_path, rules, **fields, **BERT))
    assert found("title")["input_ids"] == rules.encode("title").ids


def test_a_saved_tokenizer_has_the_same_ids_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    rules, _, special = FAMILIES["llama as gpt2"]
    fields = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<unk>"]}
    found = load_tokenizer(save(tmp_path / "a", rules, add_bos_token=True, **fields, **special))
    found.save_pretrained(tmp_path / "b")
    for again in (load_tokenizer(tmp_path / "b"), AutoTokenizer.from_pretrained(tmp_path / "b")):
        assert again("red 123")["input_ids"] == found("red 123")["input_ids"]
        assert again("red 123")["input_ids"][0] == 0


def test_folders_without_tokenizer_json_are_read_by_class(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDPIECE))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert load_tokenizer(tmp_path)("Title reds")["input_ids"] == [2, 5, 6, 7, 3]
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    words = ["<|endoftext|>", *ALPHABET, *("".join(pair) for pair in MERGES)]
    (gpt2 / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (gpt2 / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]))
    (gpt2 / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found = load_tokenizer(gpt2)
    assert found("red red")["input_ids"] == [words.index("red"), words.index("Ġred")]
    assert found.pad_token == "<|endoftext|>"


def test_damaged_files_are_named(tmp_path):
    save(tmp_path, wordpiece(), **BERT)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json holds no fields" in error(load_tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "New"}}')
    assert "tokenizer.json cannot be read" in error(load_tokenizer, tmp_path)
