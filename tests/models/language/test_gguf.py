"""GGUF files against the same weights in a folder.

Every setting, every parameter, tokenizers, and errors are tested.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from helpers.fixtures import FIXTURES
from helpers.hf_folders import error, set_config
from kd_jax.core.files import write_json
from kd_jax.models.language import gguf_tokenizer
from kd_jax.models.language.hf import load_encoder, load_model, load_tokenizer
from kd_jax.models.language.weights import read_config, resolve_weights

package = pytest.importorskip("gguf")

LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
AROUND = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "wte": "token_embd",
    "wpe": "position_embd",
}
AROUND["ln_f"] = "output_norm"


def name(saved: str, gemma: bool = False) -> str:
    """transformers' name -> llama.cpp's."""
    stem, leaf = saved.rsplit(".", 1)
    layer = re.fullmatch(r"(?:layers|h)\.(\d+)\.(.+)", stem)
    if layer and gemma and layer[2] == "post_attention_layernorm":  # in Llama it is the second norm
        return f"blk.{layer[1]}.post_attention_norm.{leaf}"
    return f"blk.{layer[1]}.{LAYER[layer[2]]}.{leaf}" if layer else f"{AROUND[stem]}.{leaf}"


def paired(value: np.ndarray, heads: int) -> np.ndarray:
    """Interleaves the halves of a head, as llama.cpp's converter does for queries and keys."""
    return np.stack(
        np.split(value.reshape(heads, -1, *value.shape[1:]), 2, axis=1), axis=2
    ).reshape(value.shape)


def write(
    path: Path,
    folder: Path,
    quantise: Any = None,
    words: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Writes a folder's model as a GGUF file, in the arrangement of llama.cpp's converter.

    Returns the tensors of the folder, dequantised. quantise: how matrices are stored. words:
    settings of the tokenizer. changes: tensors to add, or None to leave out.
    """
    config, kept = read_config(folder), {}
    both_ways = config.get("use_bidirectional_attention")
    gemma = {"gemma3_text": "gemma-embedding" if both_ways else "gemma3"}
    kind = ({"mistral": "llama"} | gemma).get(config["model_type"], config["model_type"])
    writer = package.GGUFWriter(path, kind)
    gpt2 = kind == "gpt2"
    heads = config["n_head" if gpt2 else "num_attention_heads"]
    writer.add_block_count(config["n_layer" if gpt2 else "num_hidden_layers"])
    writer.add_context_length(config["n_positions" if gpt2 else "max_position_embeddings"])
    writer.add_embedding_length(config["n_embd" if gpt2 else "hidden_size"])
    writer.add_feed_forward_length(config["n_inner" if gpt2 else "intermediate_size"])
    writer.add_head_count(heads)
    if gpt2:
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        if config.get("head_dim"):
            writer.add_key_length(config["head_dim"])
            writer.add_rope_dimension_count(config["head_dim"])
        scaling = config.get("rope_scaling") or {}
        if kind in gemma.values():
            writer.add_sliding_window(config["sliding_window"])
        if "linear" in (scaling.get("type"), scaling.get("rope_type")):
            writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling["factor"])
    for saved, value in load_file(folder / "model.safetensors").items():
        permuted = kind == "llama" and re.search(r"\.[qk]_proj\.", saved)
        if permuted:
            value = paired(value, config["num_key_value_heads"] if ".k_proj." in saved else heads)
        transposed = gpt2 and re.search(r"\.c_\w+\.weight", saved)
        if transposed:
            value = np.ascontiguousarray(value.T)
        stored, how = value, None
        if quantise is not None and value.ndim == 2:
            stored, how = package.quants.quantize(value, quantise), quantise
            value = package.quants.dequantize(stored, quantise)
        if kind in gemma.values() and saved.endswith("norm.weight"):
            stored = value + 1
        if (called := name(saved, kind in gemma.values())) not in changes:
            writer.add_tensor(called, stored, raw_dtype=how)
        if permuted:
            count = config["num_key_value_heads"] if ".k_proj." in saved else heads
            halves = value.reshape(count, -1, 2, *value.shape[1:])
            value = np.concatenate([halves[:, :, 0], halves[:, :, 1]], axis=1).reshape(value.shape)
        kept[saved] = np.ascontiguousarray(value.T if transposed else value)
    for added, value in changes.items():
        if value is not None:
            writer.add_tensor(added, value)
    for setting, value in (words or {}).items():
        getattr(writer, f"add_{setting}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def assert_same(path: Path, folder: Path, tolerance: float = 0) -> None:
    ours, theirs = load_model(path), load_model(folder)
    assert ours.config == theirs.config
    expected = dict(nnx.to_flat_state(nnx.state(theirs)))
    for where, leaf in nnx.to_flat_state(nnx.state(ours)):
        np.testing.assert_allclose(
            leaf[...], expected.pop(where)[...], rtol=0, atol=tolerance, err_msg=str(where)
        )
    assert not expected


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama_linear", "qwen3"])
def test_a_file_gives_the_model_of_the_folder(family, tmp_path):
    write(tmp_path / "model.gguf", FIXTURES / family)
    assert_same(tmp_path / "model.gguf", FIXTURES / family)
    assert resolve_weights(tmp_path / "model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize("family", ["gemma3", "embeddinggemma"])
def test_gemma_files_have_norms_plus_1_and_rules_in_place_of_settings(family, tmp_path):
    folder = tmp_path / family
    shutil.copytree(FIXTURES / family, folder)
    # What a file does not have follows from the number of layers and the width of a head.
    kinds = ["full_attention" if layer == 5 else "sliding_attention" for layer in range(6)]
    fields = {"num_hidden_layers": 6, "layer_types": kinds, "query_pre_attn_scalar": 8}
    set_config(folder, **fields, rope_local_base_freq=10000.0)
    tensors = load_file(folder / "model.safetensors")
    for saved in [saved for saved in tensors if saved.startswith("layers.0.")]:
        for layer in range(2, 6):
            tensors[saved.replace("layers.0", f"layers.{layer}")] = tensors[saved]
    save_file(tensors, folder / "model.safetensors")
    write(tmp_path / "model.gguf", folder)
    assert_same(tmp_path / "model.gguf", folder, tolerance=2e-7)


def test_dense_modules_of_a_gemma_file_follow_its_pooling(tmp_path):
    random = np.random.default_rng(0)
    maps = {
        f"dense_{number}.weight": random.normal(size=shape).astype(np.float32)
        for number, shape in ((2, (24, 16)), (3, (5, 24)))
    }
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "▁", "▁a", "  "]
    words = {
        "tokenizer_model": "llama",
        "token_list": pieces,
        "token_scores": [0.0] * 7 + [-1.0, 0.0],
        "token_types": [3, 3, 3, 2, 1, 1, 1, 1, 4],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unk_token_id": 3,
        "add_eos_token": True,
        "add_space_prefix": False,
        "pooling_type": package.PoolingType.MEAN,
    }
    path = tmp_path / "model.gguf"
    write(path, FIXTURES / "embeddinggemma", words=words, **maps)
    encoder, tokenizer = load_encoder(path)
    ids = tokenizer("a a  b")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "a", "▁a", "  ", "b", "<eos>"]
    assert (encoder.pooling, encoder.dim) == ("mean", 5)
    batch = np.asarray([ids]), np.ones((1, 6), np.int32)
    hidden = np.asarray(encoder.model(*batch).last_hidden_state[0])
    expected = maps["dense_3.weight"] @ (maps["dense_2.weight"] @ hidden.mean(0))
    np.testing.assert_allclose(encoder(*batch)[0], expected, rtol=1e-4, atol=1e-4)
    message = error(load_encoder, path, pooling="cls+mean")
    assert "dense_2 has 16 inputs, but the vectors before it have 32 numbers" in message


def random_llama(folder: Path, **config: Any) -> Path:
    """A llama folder with rows of 32 numbers, the least that is quantised."""
    written = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    write_json(folder / "config.json", written | config)
    random, layer = np.random.default_rng(0), "layers.0"
    shapes = {
        "embed_tokens": (40, 32),
        "norm": (32,),
        f"{layer}.input_layernorm": (32,),
        f"{layer}.post_attention_layernorm": (32,),
        f"{layer}.self_attn.q_proj": (32, 32),
        f"{layer}.self_attn.k_proj": (16, 32),
        f"{layer}.self_attn.v_proj": (16, 32),
        f"{layer}.self_attn.o_proj": (32, 32),
        f"{layer}.mlp.gate_proj": (64, 32),
        f"{layer}.mlp.up_proj": (64, 32),
        f"{layer}.mlp.down_proj": (32, 64),
    }
    tensors = {
        f"{key}.weight": random.normal(size=shape).astype(np.float32)
        for key, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("quantisation", ["Q4_1", "Q8_0", "F16"])
def test_quantised_weights_equal_the_dequantised_folder(quantisation, tmp_path):
    folder = random_llama(tmp_path)
    how = getattr(package.GGMLQuantizationType, quantisation)
    save_file(write(tmp_path / "model.gguf", folder, how), folder / "model.safetensors")
    assert_same(tmp_path / "model.gguf", folder)


def test_llama_3_stores_the_scaled_frequencies(tmp_path):
    folder = random_llama(tmp_path, rope_theta=500000.0)
    # The rule of Llama 3.1 with factor 8, written out for the 8 waves of a head of 16: 2 pi
    # theta^(i / 8) tokens long.
    lengths = 2 * np.pi * 500000.0 ** (np.arange(8) / 8)
    share = (8192 / lengths - 1) / (4 - 1)
    stretch = np.where(
        lengths < 2048, 1.0, np.where(lengths > 8192, 8.0, 1 / ((1 - share) / 8 + share))
    )
    write(tmp_path / "model.gguf", folder, **{"rope_freqs.weight": stretch.astype(np.float32)})
    assert load_model(tmp_path / "model.gguf").config.rope_scaling == (
        "llama3",
        8.0,
        1.0,
        4.0,
        8192.0,
    )
    write(
        tmp_path / "other.gguf",
        folder,
        **{"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)},
    )
    assert "rope_freqs.weight" in error(load_model, tmp_path / "other.gguf")


# Tokenizers

BYTES = [chr(byte) for byte in range(33, 127)] + ["Ġ", "Ċ"]


def byte_level(folder: Path, pre: str, **more: Any) -> Any:
    merges = ["1 2", "12 3", "123 4", "a b", "Ġ ab"]
    tokens = ["<s>", "</s>", *BYTES, *(merge.replace(" ", "") for merge in merges)]
    words = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": tokens,
        "token_types": [3, 3] + [1] * (len(tokens) - 2),
        "token_merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    path = folder / f"{pre}.gguf"
    write(path, FIXTURES / "llama", words=words | more)
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("pre", "digits", "start"),
    [
        ("gpt-2", ["1234", "5"], []),
        ("smollm", ["1", "2", "3", "4", "5"], []),
        ("qwen2", ["1", "2", "3", "4", "5"], []),
        ("llama-bpe", ["123", "4", "5"], ["<s>"]),
    ],
)
def test_byte_level_tokenizers(pre, digits, start, tmp_path):
    tokenizer = byte_level(tmp_path, pre)
    ids = tokenizer("ab ab12345</s>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*start, "ab", "Ġab", *digits, "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab ab12345"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "</s>")


def test_first_and_last_token_are_added_where_the_file_sets_them(tmp_path):
    tokenizer = byte_level(tmp_path, "smollm", add_bos_token=True, add_eos_token=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab")["input_ids"]) == ["<s>", "ab", "</s>"]


def test_sentence_pieces_merge_by_score(tmp_path):
    random = np.random.default_rng(0)
    pieces = ["▁", *"abc"]
    while len(pieces) < 60:
        piece = "".join(random.choice(pieces, 2))
        if piece not in pieces and len(piece) < 7:
            pieces.append(piece)
    tokens = ["<unk>", "<s>", "</s>", "<0x21>", *pieces]
    scores = [0.0] * 4 + list(map(float, -random.permutation(len(pieces))))
    words = {
        "tokenizer_model": "llama",
        "token_list": tokens,
        "token_scores": scores,
        "token_types": [2, 3, 3, 6] + [1] * len(pieces),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
    }
    write(tmp_path / "model.gguf", FIXTURES / "llama", words=words)
    tokenizer = gguf_tokenizer.read_tokenizer(tmp_path / "model.gguf")
    rank = dict(zip(tokens, scores, strict=True))
    for _ in range(30):
        text = "".join(random.choice([*"abc "], 12)).strip() or "a"
        merged = [*("▁" + text.replace(" ", "▁"))]
        while True:  # the best pair first, the first of equal ones
            pairs = [
                (rank[a + b], -at)
                for at, (a, b) in enumerate(zip(merged, merged[1:], strict=False))
                if a + b in rank
            ]
            if not pairs:
                break
            at = -max(pairs)[1]
            merged[at : at + 2] = [merged[at] + merged[at + 1]]
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["<s>", *merged]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a!")["input_ids"])[-1] == "<0x21>"
    assert tokenizer.decode(tokenizer("ab ca")["input_ids"], skip_special_tokens=True) == "ab ca"


# Errors


def test_a_tokenizer_of_another_kind(tmp_path):
    assert "tokenizer.ggml.pre 'tekken' is not supported (supported: gpt-2, " in error(
        byte_level, tmp_path, "tekken"
    )
    write(tmp_path / "none.gguf", FIXTURES / "llama")
    assert "tokenizer.ggml.model None is not supported" in error(
        load_tokenizer, tmp_path / "none.gguf"
    )


def test_a_tokenizer_that_does_not_belong_to_the_weights(tmp_path):
    byte_level(tmp_path, "smollm")
    message = error(load_encoder, tmp_path / "smollm.gguf")
    assert re.search(r"ids up to 102 but .* vocab_size 40", message)


def test_tensors_that_do_not_fit(tmp_path):
    extra = {
        "blk.0.attn_sinks.weight": np.zeros(4, np.float32),
        "blk.1.ffn_up.weight": np.zeros((7, 16), np.float32),
    }
    write(tmp_path / "model.gguf", FIXTURES / "qwen3", **{"blk.1.attn_k.weight": None} | extra)
    message = error(load_model, tmp_path / "model.gguf")
    assert "model.gguf: its list of tensors does not fit its metadata" in message
    assert "missing: layers.1.self_attn.k_proj.weight [16, 16]" in message
    assert "unexpected: layers.0.attn_sinks.weight [4]" in message
    assert "layers.1.mlp.up_proj.weight is [7, 16], its metadata requires [24, 16]" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -8, 0.5])
def test_a_truncated_file(keep, tmp_path):
    path = tmp_path / "model.gguf"
    write(path, FIXTURES / "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    message = error(load_model, path)
    assert (
        "cannot be read as GGUF" in message
        and "truncated or damaged" in message
        and str(path) in message
    )


def test_another_architecture(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, FIXTURES / "qwen3")
    path.write_bytes(path.read_bytes().replace(b"qwen3", b"falco"))
    message = error(load_model, path)
    assert (
        "general.architecture 'falco' is not supported (supported: llama, qwen2, qwen3, gpt2,"
        " gemma3, gemma-embedding)" in message
    )


def test_a_missing_setting(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, FIXTURES / "qwen3")
    path.write_bytes(path.read_bytes().replace(b"qwen3.block_count", b"qwen3.block_cound"))
    assert "lacks qwen3.block_count" in error(load_model, path)


def test_without_the_package(tmp_path, monkeypatch):
    write(tmp_path / "model.gguf", FIXTURES / "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in error(load_model, tmp_path / "model.gguf")
