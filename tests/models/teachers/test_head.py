"""The head beside an exported language model: both together give the teacher's scores."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from helpers import toy
from kd_jax.data import text
from kd_jax.models.language import encoding, hf
from kd_jax.models.language.encoding import Texts
from kd_jax.models.teachers import head
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.cross_encoder import CrossEncoder, CrossSpec
from kd_jax.models.teachers.spec import TeacherSpec

pytestmark = pytest.mark.slow

ITEMS, HISTORY, HEADS, DIM = 12, 4, 2, 8


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """(folder, encoder, tokenizer, texts of the items)."""
    folder = toy.tiny_bert(tmp_path_factory.mktemp("weights") / "bert")
    encoder, tokenizer = hf.load_encoder(folder)
    texts = text.item_texts(toy.raw(items=ITEMS).items, ["title", "genre"])
    return folder, encoder, tokenizer, texts


def encoded(encoder, tokenizer, texts):
    table = text.tokenize(tokenizer, texts, encoder.max_length)
    return encoding.encode(encoder, table), table


def randomised(model):
    """The model with random parameters outside of the language model."""
    rng = np.random.default_rng(3)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if "encoder" not in path:
            leaf[...] = leaf[...] + jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)
    return model


def bi_encoder(language_model, **fields):
    _, encoder, tokenizer, texts = language_model
    vectors, table = encoded(encoder, tokenizer, texts)
    spec = TeacherSpec(
        ITEMS,
        np.zeros(ITEMS, np.float32),
        np.ones(ITEMS, bool),
        dim=DIM,
        heads=HEADS,
        history=HISTORY,
        hidden=6,
        components=5,
        **fields,
    )
    return randomised(
        BiEncoder(spec, Texts(vectors, *table.padded()), None, encoder, rngs=nnx.Rngs(0))
    )


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Reader:
    """The computation that head.json describes, in NumPy."""

    def __init__(self, folder):
        self.tensors = load_file(folder / "head.safetensors")

    def linear(self, name, x):
        return x @ self.tensors[f"{name}.kernel"] + self.tensors[f"{name}.bias"]

    def norm(self, name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * self.tensors[f"{name}.scale"] + self.tensors[f"{name}.bias"]

    def tower(self, name, x):
        x = (x - self.tensors[f"{name}.whitening.mean"]) @ self.tensors[f"{name}.whitening.map"]
        up = gelu(self.linear(f"{name}.up", x))
        return self.linear(f"{name}.linear", x) + self.linear(f"{name}.down", up)

    def context(self, history, vectors, blocks, heads):
        """The context vector [D] after the items ``history``, oldest first."""
        x = 3 * vectors[history] + self.tensors["transformer.position"][-len(history) :]
        length, dim = x.shape
        for n in range(blocks):
            block = f"transformer.blocks.{n}"
            qkv = self.linear(f"{block}.qkv", self.norm(f"{block}.norm1", x))
            q, k, v = qkv.reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)
            logits = q @ k.swapaxes(1, 2) / np.sqrt(dim / heads)
            weights = np.exp(np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf))
            weights /= weights.sum(-1, keepdims=True)
            x = x + self.linear(f"{block}.out", (weights @ v).swapaxes(0, 1).reshape(length, dim))
            up = gelu(self.linear(f"{block}.up", self.norm(f"{block}.norm2", x)))
            x = x + self.linear(f"{block}.down", up)
        return self.norm("transformer.norm", x[-1])


@pytest.mark.parametrize("trends", [False, True])
def test_the_folder_alone_gives_the_scores_of_the_teacher(language_model, tmp_path, trends):
    folder, encoder, tokenizer, texts = language_model
    rng = np.random.default_rng(1)
    features = rng.normal(size=(5, ITEMS, 3)).astype(np.float32) if trends else None
    model = bi_encoder(language_model, item_features="text+id", trends=features)
    hf.save_encoder(encoder, tokenizer, folder, tmp_path / "teacher")
    head.write(tmp_path / "teacher", model, {"model": {"heads": HEADS, "blocks": 2}})

    described = json.loads((tmp_path / "teacher/head.json").read_text())
    reader = Reader(tmp_path / "teacher")
    shapes = {name: list(value.shape) for name, value in reader.tensors.items()}
    assert described["tensors"] == shapes
    assert any("popularity" in line for line in described["how"]) == trends
    assert not any("pair" in line for line in described["how"])
    c = described["settings"]["model"]

    again, its_tokenizer = hf.load_encoder(tmp_path / "teacher")  # the head is not in its way
    vectors = reader.tower("text", encoded(again, its_tokenizer, texts)[0]) + reader.tensors["id"]
    bias, histories = reader.tensors["bias"], [[3, 1, 7, 2], [5], [0, 11]]
    contexts = np.stack([reader.context(h, vectors, c["blocks"], c["heads"]) for h in histories])
    if trends:
        f, t = reader.tensors["trends"], reader.tensors
        assert f.shape == (ITEMS, 3)
        bias = bias + f @ t["trend"] + np.sum(f * (vectors @ t["trend_of_item"]), 1)
        vectors = np.concatenate([vectors, f], axis=1)
        contexts = np.concatenate([t["gain"] * contexts, contexts @ t["trend_of_context"]], axis=1)
    padded = np.full((3, HISTORY), -1, np.int32)
    for row, history in zip(padded, histories, strict=True):
        row[-len(history) :] = history
    graphdef, state = nnx.split(model)
    want = jax.jit(
        lambda state, batch: (m := nnx.merge(graphdef, state)).scores(batch, m.items()).dense()
    )(state, {"history": padded})
    np.testing.assert_allclose(contexts @ vectors.T + bias, want, rtol=1e-4, atol=1e-4)


def test_transformers_loads_the_folder_as_it_is(language_model, tmp_path):
    modeling = pytest.importorskip("transformers.models.bert.modeling_flax_bert")
    folder, encoder, tokenizer, texts = language_model
    hf.save_encoder(encoder, tokenizer, folder, tmp_path / "teacher")
    head.write(tmp_path / "teacher", bi_encoder(language_model), {})
    table = text.tokenize(tokenizer, texts, encoder.max_length)
    theirs = modeling.FlaxBertModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False)
    with jax.numpy_rank_promotion("allow"):
        found = theirs(*table.padded()).last_hidden_state
    np.testing.assert_allclose(found, encoder.hidden(*table.padded(), None), rtol=0, atol=1e-5)


def test_a_head_has_every_trained_parameter_outside_of_the_language_model(language_model):
    encoder = language_model[1]
    counts = np.random.default_rng(0).integers(1, 9, (ITEMS, 2)).astype(np.float32)
    spec = CrossSpec(encoder.dim, counts, np.zeros(5, np.int8), hidden=6)
    cross = CrossEncoder(spec, None, encoder, rngs=nnx.Rngs(0))
    assert head.tensors_of(cross).keys() == {
        "counts",
        "smoothing",
        *(f"head.norm.{part}" for part in ("scale", "bias")),
        *(f"head.{part}.{of}" for part in ("up", "down", "linear") for of in ("kernel", "bias")),
    }
    rates = bi_encoder(language_model, num_classes=2)
    for model in (cross, rates, bi_encoder(language_model)):
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        trained = {
            ".".join(map(str, path)): leaf[...] for path, leaf in flat if "encoder" not in path
        }
        found = head.tensors_of(model)
        assert trained.keys() <= found.keys()
        for name, value in trained.items():
            np.testing.assert_array_equal(found[name], value)
            assert any(name.startswith(start) or name.startswith("head.") for start in head.HOW)
