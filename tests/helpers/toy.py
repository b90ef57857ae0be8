"""Toy data sets with a structure that can be learned, and a tiny BERT folder.

The item texts name the genres that the interactions depend on.
"""

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from kd_jax.core.errors import InputError
from kd_jax.data import dataset as datasets
from kd_jax.data.raw import RawData

GENRES = ("drama", "comedy", "horror", "western")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", *GENRES, *"0123456789"]


def raw(users=40, items=24, per_user=12, seed=0, ratings=False):
    """Users who mostly choose within one genre; an item's text is 'film <digits>' and its genre."""
    rng = np.random.default_rng(seed)
    genre = np.arange(items) % len(GENRES)
    rows = []
    for user in range(users):
        taste = np.where(genre == user % len(GENRES), 8.0, 1.0)
        chosen = rng.choice(items, per_user, replace=False, p=taste / taste.sum())
        rows += [(user + 100, item + 500, user % 7 + 40 * step) for step, item in enumerate(chosen)]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    if ratings:
        liked = [(u % len(GENRES)) == ((i - 500) % len(GENRES)) for u, i, _ in rows]
        frame = frame.with_columns(
            pl.Series("rating", np.where(liked, 5.0, 2.0).astype(np.float32))
        )
    texts = pl.DataFrame(
        {
            "item": np.arange(items) + 500,
            "title": [f"film {' '.join(str(i))}" for i in range(items)],
            "genre": [GENRES[g] for g in genre],
        }
    )
    return RawData("toy", frame, texts)


def dataset(split="leave_one_out", **options):
    keys = ("users", "items", "per_user", "seed", "ratings")
    world = raw(**{key: options.pop(key) for key in keys if key in options})
    return datasets.build(world, split=split, **options)


def write_csv(folder, **options):
    """interactions.csv and items.csv of ``raw`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    world = raw(**options)
    world.interactions.write_csv(folder / "interactions.csv")
    world.items.write_csv(folder / "items.csv")
    return folder


def tiny_bert(folder, width=16, layers=2, seed=0):
    """A random BERT in HF's layout: config.json, vocab.txt and model.safetensors."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bert",
                "architectures": ["BertModel"],
                "vocab_size": len(WORDS),
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": 2,
                "intermediate_size": 2 * width,
                "max_position_embeddings": 32,
                "type_vocab_size": 2,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-12,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "pad_token_id": 0,
            }
        )
    )
    tensors = {}

    def dense(name, out, into):
        tensors[f"{name}.weight"] = rng.normal(size=(out, into)).astype(np.float32) / np.sqrt(into)
        tensors[f"{name}.bias"] = np.zeros(out, np.float32)

    def norm(name):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            np.ones(width, np.float32),
            np.zeros(width, np.float32),
        )

    for name, rows in (("word", len(WORDS)), ("position", 32), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = rng.normal(size=(rows, width)).astype(
            np.float32
        )
    norm("embeddings.LayerNorm")
    for layer in range(layers):
        base = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dense(f"{base}.attention.self.{part}", width, width)
        dense(f"{base}.attention.output.dense", width, width)
        norm(f"{base}.attention.output.LayerNorm")
        dense(f"{base}.intermediate.dense", 2 * width, width)
        dense(f"{base}.output.dense", width, 2 * width)
        norm(f"{base}.output.LayerNorm")
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(call, *fragments):
    """``call`` raises a one-line InputError that has the fragments. Returns the line."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message
    return message
