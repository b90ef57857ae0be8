"""Folders of sentence-transformers: vectors as it computes them, and what is refused.

The folders in ``fixtures/sentence`` are written, with their vectors, by versions 3.4.1 and 6.2.0
(benchmarks/sentence_fixtures.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.hf_folders import error
from kd_jax.data.text import tokenize
from kd_jax.models.language.encoding import encode, fingerprint
from kd_jax.models.language.hf import load_encoder, save_encoder
from kd_jax.models.language.sentence import read_folder

FIXTURES = Path(__file__).parents[1] / "fixtures/sentence"
TEXTS = [
    "The red house",
    "a BLUE sea of green",
    "house",
    "the house of the red sea and the blue sea of the green house and a red and a blue house",
]
CASES = [
    (version, case.name)
    for version in ("v3", "v6")
    for case in sorted((FIXTURES / version).iterdir())
    if case.name != "base"
]
# Folders in the form of embedding models made from decoders (version 6.2.0, transformers 5.24.0).
EMBEDDERS = sorted((FIXTURES / "embedders").iterdir())


def assemble(folder: Path, version: str, case: str) -> Path:
    for part in ("base", case):
        shutil.copytree(FIXTURES / version / part, folder, dirs_exist_ok=True)
    return folder


def vectors(folder: Path, **how) -> np.ndarray:
    encoder, tokenizer = load_encoder(folder, **how)
    return encode(encoder, tokenize(tokenizer, encoder.read(TEXTS), encoder.max_length))


def change(path: Path, **fields) -> None:
    written = json.loads(path.read_text())
    kept = {name: value for name, value in (written | fields).items() if value is not ...}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(("version", "case"), CASES)
def test_vectors_are_those_of_sentence_transformers(tmp_path, version, case):
    expected = load_file(FIXTURES / version / case / "vectors.safetensors")["vectors"]
    found = vectors(assemble(tmp_path, version, case))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("folder", EMBEDDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("prompt", ["none", "query", "document"])
def test_vectors_of_embedders_are_those_of_sentence_transformers(folder, prompt):
    expected = load_file(folder / "vectors.safetensors")
    found = vectors(folder, prompt="" if prompt == "none" else prompt)
    np.testing.assert_allclose(found, expected[prompt], atol=1e-5)
    assert abs(expected["query"] - expected["none"]).max() > 0.1


@pytest.mark.parametrize("case", ["chain", "weighted", "last", "residual"])
def test_a_saved_folder_is_read_as_the_one_it_came_from(tmp_path, case):
    source = assemble(tmp_path / "source", "v6", case)
    encoder, tokenizer = load_encoder(source)
    save_encoder(encoder, tokenizer, source, tmp_path / "saved")
    np.testing.assert_allclose(vectors(tmp_path / "saved"), vectors(source), atol=1e-6)


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    source = assemble(tmp_path / "source", "v3", "dense")
    old = tmp_path / "old"
    (old / "0_Transformer").mkdir(parents=True)
    for path in source.iterdir():
        below = path.is_file() and path.name not in ("modules.json", "vectors.safetensors")
        below = below and path.name != "config_sentence_transformers.json"
        path.rename(old / ("0_Transformer" if below else "") / path.name)
    # The name that version 0 gave the file.
    (old / "0_Transformer/sentence_bert_config.json").rename(
        old / "0_Transformer/sentence_distilbert_config.json"
    )
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    expected = load_file(old / "vectors.safetensors")["vectors"]
    np.testing.assert_allclose(vectors(old), expected, atol=1e-5)


def test_the_configuration_wins_and_a_line_says_so(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    encoder, _ = load_encoder(folder)
    assert encoder.notes == ()
    assert (encoder.pooling, encoder.normalize, encoder.prompt) == ("mean", True, "passage: ")
    other, _ = load_encoder(folder, pooling="cls", normalize=False, max_length=9, prompt="")
    assert (other.pooling, other.normalize, other.max_length, other.prompt) == ("cls", False, 9, "")
    (note,) = other.notes
    for part in ("pooling='cls' (its files have 'mean')", "normalize=False", "max_tokens=9"):
        assert part in note
    assert "prompt='' (its files have 'passage: ')" in note
    same, _ = load_encoder(folder, pooling="mean", normalize=True, prompt="document")
    assert same.notes == ()
    assert fingerprint(same) == fingerprint(encoder) != fingerprint(other)
    query, _ = load_encoder(folder, prompt="query")
    assert query.prompt == "a "
    free, _ = load_encoder(folder, prompt="film: ")
    assert free.prompt == "film: "


def test_prompts_without_a_default_are_named(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    change(folder / "config_sentence_transformers.json", default_prompt_name=None)
    encoder, _ = load_encoder(folder)
    assert encoder.prompt == ""
    assert "has the prompts" in encoder.notes[0] and "document" in encoder.notes[0]
    assert load_encoder(folder, prompt="")[0].notes == ()
    change(folder / "config_sentence_transformers.json", default_prompt_name="passage")
    assert "default_prompt_name 'passage' is none of" in error(load_encoder, folder)


def test_a_folder_without_modules_is_read_as_before(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    (folder / "modules.json").unlink()
    encoder, _ = load_encoder(folder)
    found = (encoder.pooling, encoder.normalize, encoder.prompt, encoder.dim, encoder.notes)
    assert found == ("mean", False, "", 16, ())


def test_an_adapter_is_read_with_the_modules_of_its_base(tmp_path):
    base = assemble(tmp_path / "base", "v6", "dense")
    folder = tmp_path / "adapter"
    folder.mkdir()
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "../base"}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    name = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {f"{name}.lora_A.weight": np.ones((2, 16), np.float32)}
    tensors[f"{name}.lora_B.weight"] = np.zeros((16, 2), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    encoder, _ = load_encoder(folder)
    found = (encoder.pooling, encoder.normalize, encoder.prompt, encoder.dim)
    assert found == ("mean", True, "passage: ", 8)
    np.testing.assert_allclose(vectors(folder), vectors(base), atol=1e-6)


def test_the_default_weights_are_read_as_they_were_measured():
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"):
        reading = read_folder(name, Path("somewhere"))
        assert (reading.pooling, reading.normalize, reading.max_tokens) == ("mean", False, 64)
        assert (reading.weights, reading.prompt, reading.head) == (Path("somewhere"), None, ())


def test_modules_that_cannot_be_applied_are_refused(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    path = folder / "modules.json"
    whole = path.read_text()
    for kind in ("sentence_transformers.models.LSTM", "elsewhere.Dense"):
        modules = json.loads(whole)
        modules[2]["type"] = kind
        path.write_text(json.dumps(modules))
        assert f"the module {kind} cannot be applied" in error(load_encoder, folder)
    modules = json.loads(whole)
    path.write_text(json.dumps([modules[0], modules[2], modules[1]]))
    assert "order Transformer, Dense, Pooling is not supported" in error(load_encoder, folder)
    path.write_text(json.dumps(modules[:1]))
    assert "only a Transformer with a Pooling" in error(load_encoder, folder)
    modules[1]["path"] = "../1_Pooling"
    path.write_text(json.dumps(modules))
    assert "leaves the folder" in error(load_encoder, folder)
    path.write_text("{}")
    assert "no list of modules" in error(load_encoder, folder)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling 'attention'"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "in_features 16, but"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Foo"}, "'torch.nn.Foo'"),
        ("2_Dense/config.json", {"activation_function": "my.Tanh"}, "'my.Tanh'"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Dense/config.json", {"out_features": 9}, "mis-shaped"),
        ("2_Dense/config.json", {"bias": False}, "unexpected"),
        ("2_Dense/config.json", {"in_features": ...}, "has no in_features"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"module_output_name": "scores"}, "module_output_name"),
    ],
)
def test_settings_that_cannot_be_applied_are_refused(tmp_path, file, fields, message):
    folder = assemble(tmp_path, "v6", "dense")
    change(folder / file, **fields)
    assert message in error(load_encoder, folder)


def test_a_dense_module_in_a_pickle_is_refused(tmp_path):
    folder = assemble(tmp_path, "v3", "dense")
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")
    message = error(load_encoder, folder)
    assert "2_Dense holds pytorch_model.bin" in message and "safe_serialization" in message


def test_a_dense_module_without_a_named_activation_is_tanh(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    expected = vectors(folder)
    change(folder / "2_Dense/config.json", activation_function=...)
    np.testing.assert_array_equal(vectors(folder), expected)


def test_weights_of_a_dense_module_are_part_of_the_identity(tmp_path):
    folder = assemble(tmp_path, "v6", "dense")
    before = fingerprint(load_encoder(folder)[0])
    path = folder / "2_Dense/model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert fingerprint(load_encoder(folder)[0]) != before
