"""Gemma 3, EmbeddingGemma, ModernBERT and Nomic BERT: configurations, training, saving, errors.

Their hidden states are compared in test_decoders.py.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from helpers.fixtures import FIXTURES
from helpers.hf_folders import edit, error, save_tokenizer, set_config
from kd_jax.models.language.encoder import NativeEncoder
from kd_jax.models.language.gemma import GemmaConfig
from kd_jax.models.language.hf import load_encoder, load_model, save_encoder
from kd_jax.models.language.modernbert import ModernBertConfig
from kd_jax.models.scorer import Frozen

AROUND = {
    "embeddinggemma": {"words", "norm"},
    "gemma3": {"words", "norm"},
    "modernbert": {"words", "words_norm", "norm"},
    "nomic_bert": {"words", "types", "norm"},
}
LINEAR = {
    **dict.fromkeys(
        ("embeddinggemma", "gemma3", "nomic_bert"),
        {"query", "key", "value", "attention_out", "gate", "up", "down"},
    ),
    "modernbert": {"query_key_value", "attention_out", "gate_up", "down"},
}
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16}


@pytest.fixture(scope="module", params=AROUND)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    """A copy of the family's folder, with a tokenizer, that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / family / name, tmp_path)
    save_tokenizer(tmp_path, ["heat", "crime"], unk_token="<unk>", pad_token="<pad>")
    return tmp_path


def paths(model: Any, kind: Any = nnx.Param) -> set[Any]:
    return {path for path, _ in nnx.to_flat_state(nnx.state(model, kind))}


@partial(jax.jit, static_argnums=0)
def _states(graphdef: Any, state: Any, ids: Any, mask: Any, below: Any = None) -> Any:
    return nnx.merge(graphdef, state)(ids, mask, states=below).hidden_states


def saved(family: str) -> tuple[np.ndarray, np.ndarray]:
    tensors = load_file(FIXTURES / family / "parity.safetensors")
    return tensors["ids.right"], tensors["mask.right"]


# Training


def test_frozen_layers_leave_training_and_their_states_can_be_kept(family):
    model = load_model(FIXTURES / family)
    last = model.num_layers - 1
    assert {path[0] for path in paths(model)} == AROUND[family] | {"layers"}
    ids, mask = saved(family)
    before = _states(*nnx.split(model), ids, mask)
    model.freeze_below(last)
    kept = {path[:2] if path[0] == "layers" else path[:1] for path in paths(model)}
    assert kept == {("layers", last)} | ({("norm",)} if family != "nomic_bert" else set())
    resumed = _states(*nnx.split(model), ids, mask, before[last])
    np.testing.assert_allclose(resumed[-1], before[-1], rtol=0, atol=1e-6)
    model.freeze_below(last + 1)
    assert not paths(model) and paths(model, Frozen)


def test_adapters_go_beside_every_linear_map(family):
    encoder = NativeEncoder(load_model(FIXTURES / family))
    encoder.add_lora(2, sorted(LINEAR[family]))
    adapted = {path[3] for path in paths(encoder, nnx.LoRAParam)}
    assert adapted == LINEAR[family]
    assert paths(encoder, nnx.Param) == paths(encoder, nnx.LoRAParam)
    other = NativeEncoder(load_model(FIXTURES / family))
    names = error(other.add_lora, 2, ["quer"])
    assert "no linear map 'quer'" in names and sorted(LINEAR[family])[-1] in names


@pytest.mark.slow
def test_gradient_reaches_every_parameter(family):
    encoder = NativeEncoder(load_model(FIXTURES / family))
    encoder.model.remat = True
    graphdef, params = nnx.split(encoder)
    ids, mask = saved(family)
    mask = np.where(np.arange(9) > 2, 2, 1) * mask  # two texts: both token types
    loss = lambda params: (nnx.merge(graphdef, params)(ids, mask) ** 3).sum()  # noqa: E731
    for path, leaf in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        if path[-2:] != ("key", "bias"):  # softmax ignores a bias of the keys
            assert abs(leaf[...]).max() > 1e-6, path


def test_bfloat16_computes_in_bfloat16_and_keeps_f32_parameters():
    model = load_model(FIXTURES / "gemma3", jnp.bfloat16)
    last = _states(*nnx.split(model), *saved("gemma3"))[-1]
    assert last.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    expected = load_file(FIXTURES / "gemma3/parity.safetensors")["last.right"]
    differences = np.abs(np.float32(last) - expected)[saved("gemma3")[1] == 1]
    assert differences.mean() < 0.03  # of values of size 1, with 8 bits of mantissa


# Folders


def test_what_was_loaded_is_what_is_saved(family, folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp(family) / "saved"
    save_encoder(*load_encoder(folder), folder, copy)
    before, after = (
        dict(nnx.to_flat_state(nnx.state(load_model(where)))) for where in (folder, copy)
    )
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf[...], after[path][...])
    if family != "nomic_bert":
        assert (
            load_file(copy / "model.safetensors").keys()
            == load_file(folder / "model.safetensors").keys()
        )


def test_tensors_may_have_the_prefix_of_a_whole_model(family, folder):
    prefix = {"nomic_bert": "bert"}.get(family, "model")
    expected = nnx.to_pure_dict(nnx.state(load_model(folder)))
    edit(folder, lambda name: f"{prefix}.{name}", lm_head__weight=np.zeros((40, 16), np.float32))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(load_model(folder))), expected
    )


def test_all_tensors_that_do_not_fit_are_named_at_once(family, folder):
    down = {"modernbert": "mlp.Wo", "nomic_bert": "mlp.fc2"}.get(family, "mlp.down_proj")
    start = "encoder.layers" if family == "nomic_bert" else "layers"
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{start}.7.{down}.weight"] = tensors.pop(f"{start}.1.{down}.weight")
    save_file(tensors, folder / "model.safetensors")
    message = error(load_model, folder)
    down = down.replace("fc2", "down_proj")
    assert f"missing: layers.1.{down}.weight" in message
    assert f"unexpected: layers.7.{down}.weight" in message


def test_nomic_folders_of_its_authors(tmp_path):
    """Their names of fields; their names of tensors are those of the fixture."""
    shutil.copy(FIXTURES / "nomic_bert/model.safetensors", tmp_path)
    fields = {
        "model_type": "nomic_bert",
        "auto_map": {"AutoModel": "elsewhere--modeling.NomicBertModel"},
        "activation_function": "swiglu",
        "n_embd": 16,
        "n_head": 4,
        "n_inner": 24,
        "n_layer": 2,
        "n_positions": 80,
        "max_trained_positions": 20,
        "rotary_scaling_factor": 2,
        "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 100,
        "rotary_emb_fraction": 1.0,
        "qkv_proj_bias": False,
        "type_vocab_size": 2,
        "vocab_size": 40,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    ours, theirs = load_model(tmp_path), load_model(FIXTURES / "nomic_bert")
    assert ours.config == theirs.config
    set_config(tmp_path, rotary_scaling_factor=None)
    assert load_model(tmp_path).max_length == 80
    for field, value in {"prenorm": True, "qkv_proj_bias": True, "moe_every_n_layers": 2}.items():
        path.write_text(json.dumps(fields | {field: value}))
        assert f"{field}={value} is not supported" in error(load_model, tmp_path)
    path.write_text(json.dumps(fields | {"activation_function": "gelu"}))
    assert "'swiglu', 'geglu'" in error(load_model, tmp_path)
    path.write_text(json.dumps(fields))
    save_tokenizer(tmp_path, ["heat"], unk_token="<unk>", pad_token="<pad>")
    save_encoder(*load_encoder(tmp_path), tmp_path, tmp_path / "saved")
    written = json.loads((tmp_path / "saved/config.json").read_text())
    assert "auto_map" not in written and written["hidden_size"] == 16
    assert load_model(tmp_path / "saved").config == theirs.config


# Configurations


def test_transformers_5_writes_rotations_by_kind_of_layer():
    by_kind = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    old = {"rope_theta": 1e5, "rope_local_base_freq": 2e4}
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert GemmaConfig.from_dict({"rope_parameters": by_kind}) == GemmaConfig.from_dict(
        old | scaling
    )
    by_kind["full_attention"] = {"rope_type": "default", "rope_theta": 1e5}
    new = ModernBertConfig.from_dict(SIZES | {"rope_parameters": by_kind})
    assert new == ModernBertConfig.from_dict(
        SIZES | {"global_rope_theta": 1e5, "local_rope_theta": 2e4}
    )
    same = ModernBertConfig.from_dict(SIZES | {"local_rope_theta": None})
    assert same.local_rope_theta == same.global_rope_theta == 160000


def test_which_layers_have_a_window():
    config = GemmaConfig.from_dict({"num_hidden_layers": 7})
    assert config.sliding == (True,) * 5 + (False, True)
    assert GemmaConfig.from_dict({"sliding_window_pattern": 2, "num_hidden_layers": 3}).sliding == (
        True,
        False,
        True,
    )
    assert ModernBertConfig.from_dict(SIZES).sliding == (False, True, True, False)
    kinds = ["sliding_attention", "full_attention"] * 2
    found = ModernBertConfig.from_dict(SIZES | {"layer_types": kinds})
    assert found.sliding == (True, False) * 2


def test_configs_that_cannot_be_computed(family, folder):
    written = json.loads((folder / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10.0}
    act = "hidden_act" if family == "nomic_bert" else "hidden_activation"
    linear = {"rope_type": "linear", "factor": 2.0}
    cases: list[tuple[dict[str, Any], str]] = [({act: "gleu"}, "did you mean 'gelu'")]
    if family == "nomic_bert":
        cases += [
            ({"rope_parameters": yarn}, "'yarn' is not supported"),
            ({"head_dim": 6}, "head_dim 6"),
        ]
    else:
        by_kind = {"rope_parameters": {"full_attention": yarn}, "rope_scaling": None}
        cases += [
            (by_kind, "'yarn' is not supported"),
            ({"rope_parameters": {"sliding_attention": linear}}, "'linear' of sliding_attention"),
            ({"rope_parameters": linear}, "rope_parameters has factor, rope_type"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ]
    if family == "modernbert":
        cases += [({"rope_scaling": linear}, "'linear' is not supported for ModernBERT")]
        cases += [({"num_attention_heads": 3}, "not divisible by num_attention_heads 3")]
    if family == "gemma3":
        cases += [
            ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported")
        ]
    for changes, expected in cases:
        (folder / "config.json").write_text(json.dumps(written | changes))
        message = error(load_model, folder)
        assert expected in message and "config.json: " in message
