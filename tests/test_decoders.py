"""Llama, Mistral, Qwen and GPT-2 against transformers, layer by layer, and what is particular to decoders."""

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
from test_bert import inputs, masks
from test_hf import torch_named

from kd_jax.errors import InputError
from kd_jax.models.encoder import NativeEncoder
from kd_jax.models.gpt2 import GPT2, GPT2Config
from kd_jax.models.hf import load_model
from kd_jax.models.layers import Frozen
from kd_jax.models.llama import Llama, LlamaConfig

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = ("gpt2", "llama", "llama_linear", "llama_llama3", "mistral", "qwen2", "qwen3")
VOCABULARY = 40
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def assert_same(ours: Any, theirs: Any, mask: np.ndarray | None, tolerance: float = 1e-5) -> None:
    """Every hidden state; padding has none that mean anything."""
    assert len(ours) == len(theirs)
    tokens = np.ones(ours[0].shape[:2], bool) if mask is None else mask == 1
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine)[tokens], np.asarray(other)[tokens], rtol=0, atol=tolerance)
        assert np.isfinite(np.asarray(mine)).all()


@partial(jax.jit, static_argnums=0)
def _states(graphdef: Any, state: Any, ids: Any, mask: Any) -> Any:
    return nnx.merge(graphdef, state)(ids, mask).hidden_states


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


# Their Mistral sees one token more than its window: the fixture has the window, this is the rest.
FLAX = {
    "FlaxLlamaModel": ("LlamaConfig", {"num_key_value_heads": 2, "max_position_embeddings": 20}),
    "FlaxMistralModel": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": 20}),
    "FlaxGPT2Model": ("GPT2Config", {"activation_function": "gelu", "n_inner": 40}),
}


@pytest.mark.parametrize("name", FLAX)
def test_every_layer_equals_the_flax_classes(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip("transformers 5 has no Flax classes")
    config, changes = FLAX[name]
    with jax.numpy_rank_promotion("allow"):
        theirs = getattr(transformers, name)(getattr(transformers, config)(**SMALL | changes), _do_init=False)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(leaf.ndim == 1, 0.2, leaf.shape).astype("f"), theirs.params_shape_tree)
    theirs.config.save_pretrained(tmp_path)
    save_file(torch_named(params), tmp_path / "model.safetensors")
    ours = load_model(tmp_path)
    ids, _ = inputs(VOCABULARY)

    @jax.jit
    def reference(mask, positions):
        return theirs(ids, mask, position_ids=positions, params=params, output_hidden_states=True).hidden_states

    for padding in ("full", "right", "left"):
        mask = masks()[padding]
        with jax.numpy_rank_promotion("allow"):
            expected = reference(mask, np.maximum(mask.cumsum(1) - 1, 0))
        assert_same(states(ours, ids, mask), expected, mask)
