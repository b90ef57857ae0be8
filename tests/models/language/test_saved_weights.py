"""Weights as people save them: adapters, shards, half precision, GGUF in parts.

``fixtures/lora`` has adapters and outputs that peft wrote (benchmarks/lora_fixtures.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file as save_flax
from safetensors.numpy import load_file, save_file

from helpers.fixtures import FIXTURES
from helpers.hf_folders import error, save_tokenizer
from kd_jax.models.language.hf import load_encoder, load_model, save_encoder
from kd_jax.models.language.weights import resolve_weights

LORA = FIXTURES / "lora"


def copy(tmp_path: Path, case: str = "llama") -> Path:
    """An adapter that a test may change, with its base model beside it."""
    family = {"llama": "llama", "gpt2": "gpt2", "roberta": "roberta"}[case]
    shutil.copytree(FIXTURES / family, tmp_path / family)
    return Path(shutil.copytree(LORA / case, tmp_path / "lora" / case))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def last(folder: Path, ids: np.ndarray) -> np.ndarray:
    return np.asarray(load_model(folder)(jnp.asarray(ids)).last_hidden_state)


@pytest.mark.parametrize("case", ["gpt2", "llama", "roberta"])
def test_an_adapter_is_merged_as_peft_applies_it(case):
    stored = load_file(LORA / case / "hidden.safetensors")
    found = last(LORA / case, stored["ids"])
    np.testing.assert_allclose(found, stored["last"], atol=1e-5)
    assert abs(last(FIXTURES / case, stored["ids"]) - stored["last"]).max() > 0.05


def test_an_encoder_of_an_adapter_is_saved_as_a_whole_model(tmp_path):
    folder = copy(tmp_path, "roberta")
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    save_tokenizer(tmp_path / "roberta", ["heat", "drama"], **special)  # the base's
    encoder, tokenizer = load_encoder(folder)
    save_encoder(encoder, tokenizer, folder, tmp_path / "saved")
    ids = load_file(folder / "hidden.safetensors")["ids"]
    np.testing.assert_array_equal(last(tmp_path / "saved", ids), last(folder, ids))
    assert not list((tmp_path / "saved").glob("adapter*"))


def test_a_base_model_that_is_not_at_hand_is_named(tmp_path):
    folder = copy(tmp_path)
    change(folder, base_model_name_or_path="no such model")
    message = error(load_model, folder)
    assert "the base model 'no such model' is not at hand" in message
    assert "set base_model_name_or_path" in message
    change(folder, base_model_name_or_path=None)
    assert "names no base model" in error(load_model, folder)
    change(folder, base_model_name_or_path=str(folder))
    assert "names its own folder" in error(load_model, folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save=['embed_tokens']"),
        ({"base_model_name_or_path": "../../qwen3"}, "base model"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(tmp_path, fields, message):
    folder = copy(tmp_path)
    shutil.copytree(FIXTURES / "qwen3", tmp_path / "qwen3")
    change(folder, **fields)
    assert message in error(load_model, folder)


def test_tensors_that_do_not_fit_the_base_are_refused(tmp_path):
    folder = copy(tmp_path)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    one = next(name for name in whole if name.endswith("lora_B.weight"))
    save_file(whole | {one.replace("layers.", "blocks."): whole[one]}, path)
    assert "has no tensor in the base model" in error(load_model, folder)
    save_file({name: value for name, value in whole.items() if name != one}, path)
    assert "has only one factor" in error(load_model, folder)
    save_file(whole | {one: whole[one][:-1].copy()}, path)
    assert "of the base model is" in error(load_model, folder)
    save_file(whole | {"base_model.model.lm_head.weight": whole[one]}, path)
    assert "is no part of a plain LoRA" in error(load_model, folder)
    path.rename(folder / "adapter_model.bin")
    assert "only safetensors are loaded" in error(load_model, folder)
    save_file(whole, path)
    shutil.copy(FIXTURES / "llama/model.safetensors", folder)
    assert "holds adapter_model.safetensors and model.safetensors" in error(load_model, folder)


def test_shards_are_read_as_one_file(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama"))
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    ids = np.arange(2, 9)[None]
    np.testing.assert_array_equal(last(folder, ids), last(FIXTURES / "llama", ids))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in error(load_model, folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_f32_without_another_rounding(tmp_path, dtype):
    folder = Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama"))
    path = folder / "model.safetensors"
    half = {name: jnp.asarray(value, dtype) for name, value in load_file(path).items()}
    save_flax(half, path)
    model = load_model(folder)
    words = model.words.embedding[...]
    saved = half["embed_tokens.weight"]
    assert words.dtype == jnp.float32
    np.testing.assert_array_equal(words, np.asarray(saved, np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_parts_of_a_gguf_file_are_read_as_one(tmp_path):
    gguf = pytest.importorskip("gguf")
    # The writer divides after two tensors; only the first part has the settings.
    writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama", split_max_tensors=5)
    config = json.loads((FIXTURES / "llama_linear/config.json").read_text())
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rng = np.random.default_rng(0)
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], 40
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"token_embd": (vocab, width), "output_norm": (width,)}
    for layer in range(config["num_hidden_layers"]):
        of_layer = {
            **dict.fromkeys(("attn_norm", "ffn_norm"), (width,)),
            **dict.fromkeys(("attn_q", "attn_output"), (width, width)),
            **dict.fromkeys(("attn_k", "attn_v"), (keys, width)),
            **dict.fromkeys(("ffn_gate", "ffn_up"), (inner, width)),
            "ffn_down": (width, inner),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    values = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    for name, value in values.items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 4 and parts[0].name == "llama-00001-of-00004.gguf"
    for given in (parts[0], parts[2], resolve_weights(tmp_path)):
        model = load_model(given)
        np.testing.assert_array_equal(
            model.words.embedding[...], values["token_embd.weight"].astype(np.float32)
        )
        last_one = values[f"blk.{config['num_hidden_layers'] - 1}.ffn_down.weight"]
        np.testing.assert_array_equal(
            model.layers[-1].down.kernel[...], last_one.T.astype(np.float32)
        )
    parts[0].rename(tmp_path / "renamed.gguf")
    assert "lacks llama-00001-of-00004.gguf" in error(load_model, parts[1])
    assert "is one of 4 parts" in error(load_model, tmp_path / "renamed.gguf")
    parts[1].rename(tmp_path / "other.gguf")
    assert "set teacher.lm.weights to one of them" in error(resolve_weights, tmp_path)
