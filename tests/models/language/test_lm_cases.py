"""Cases of the folder ``shared`` beside the repository, where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flax import nnx

from helpers.bert import minilm
from kd_jax.data.text import item_texts, token_problems, tokenize
from kd_jax.models.language.encoding import encode
from kd_jax.models.language.hf import load_encoder

CASES = Path(__file__).resolve().parents[3].parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder shared beside the repository")


def test_a_folder_of_sentence_transformers():
    encoder, tokenizer = load_encoder(CASES / "st-folder/model")
    assert (encoder.pooling, encoder.normalize, encoder.prompt) == ("cls", True, "passage: ")
    assert (encoder.dim, encoder.max_length) == (8, 16)
    table = tokenize(tokenizer, encoder.read(["title red"]), 16)
    (vector,) = encode(encoder, table)
    ids, mask = table.padded()
    first = np.asarray(encoder.hidden(ids, mask, None))[0, 0]
    (dense,) = encoder.head
    weights = {name: np.asarray(value) for name, value in dense.tensors().items()}
    by_hand = np.tanh(weights["linear.weight"] @ first + weights["linear.bias"])
    np.testing.assert_allclose(vector, by_hand / np.linalg.norm(by_hand), atol=1e-6)
    assert isinstance(dense, nnx.Module) and abs(np.linalg.norm(vector) - 1) < 1e-6


@pytest.mark.parametrize("name", ["backend", "extra"])
def test_tokenizers_of_transformers_5(name):
    folders = [CASES / "transformers-5-tokenizer" / one for one in ("plain", name)]
    plain, found = (load_encoder(folder)[1] for folder in folders)
    assert found("title red")["input_ids"] == plain("title red")["input_ids"]
    for role in ("pad", "cls", "sep", "unk"):
        assert getattr(found, f"{role}_token_id") == getattr(plain, f"{role}_token_id")


def test_an_unknown_script():
    encoder, tokenizer = load_encoder(minilm())
    items = pl.read_csv(CASES / "unknown-script/items.csv")
    texts = item_texts(items, ["title"])
    table = tokenize(tokenizer, encoder.read(texts), encoder.max_length)
    found = token_problems(texts, table, tokenizer, encoder.max_length)
    assert found.startswith("of 15 distinct texts 15 have the same tokens as another")
    assert "15 are mostly unknown tokens" in found and "teacher.lm.weights" in found
