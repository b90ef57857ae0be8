"""Hugging Face folders that tests write and change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from kd_jax.core.errors import InputError

WORDS = ["heat", "crime", "drama", "toy", "story", "comedy", "the", "of", "and", "1995"]


def save_tokenizer(folder: Path, words: list[str], **special: str) -> None:
    """A whitespace tokenizer of known words, built without a network."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*special.values(), *words])}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token=special["unk_token"])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def torch_named(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    tensors = {}
    for path, value in traverse_util.flatten_dict(params).items():
        name = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(
            path[-1], path[-1]
        )
        value = np.asarray(value.T if path[-1] == "kernel" else value)
        tensors[prefix + ".".join((*path[:-1], name))] = np.ascontiguousarray(value)
    return tensors


def edit(folder: Path, rename: Any = None, **changes: Any) -> None:
    """Rewrites the weights of a folder.

    rename: maps names; None drops the tensor. changes: tensors to set, with '.' in their names
    written as '__'.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if rename is not None:
        tensors = {
            rename(name): value for name, value in tensors.items() if rename(name) is not None
        }
    save_file(tensors | {name.replace("__", "."): value for name, value in changes.items()}, path)


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def error(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
