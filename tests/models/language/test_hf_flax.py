"""transformers' own Flax classes as teachers: tiny random folders of each family, made here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from helpers.bert import minilm, randomized
from helpers.hf_folders import WORDS, error, save_tokenizer, torch_named
from kd_jax.data import text
from kd_jax.models.language import encoding, hf_flax
from kd_jax.models.language.hf import load_encoder
from kd_jax.models.language.hf_flax import HFFlaxEncoder

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers", minversion="4.57")
if not hasattr(transformers, "FlaxBertModel"):
    pytest.skip("this transformers has no Flax classes", allow_module_level=True)

COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 30}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", COMMON),
    "roberta": ("Roberta", COMMON | {"pad_token_id": 1, "type_vocab_size": 1}),
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", COMMON | {"num_key_value_heads": 1}),
}
TEXTS = ["Heat 1995 crime drama", "Toy Story comedy", "story", "the drama of the crime"]


def build(kind: str, folder: Path, **changes: Any) -> Any:
    """Writes a folder with random weights; returns the Flax model that has them.

    The folder has PyTorch names.
    """
    name, config = FAMILIES[kind]
    model_config = getattr(transformers, f"{name}Config")(**config | changes)
    with jax.numpy_rank_promotion("allow"):
        model = randomized(getattr(transformers, f"Flax{name}Model")(model_config))
    model_config.save_pretrained(folder)
    save_file(
        torch_named(model.params, f"{model.base_model_prefix}."),
        folder / "model.safetensors",
        {"format": "pt"},
    )
    special = (
        {"unk_token": "<unk>", "eos_token": "</s>"}
        if kind in ("gpt2", "llama")
        else {"unk_token": "<unk>", "pad_token": "<pad>"}
    )
    save_tokenizer(folder, WORDS, **special)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, build(request.param, folder)


def tokens(folder: Path, **options: Any) -> tuple[HFFlaxEncoder, np.ndarray, np.ndarray]:
    encoder, tokenizer = load_encoder(folder, backend="hf_flax", **options)
    ids, mask = text.tokenize(tokenizer, TEXTS, encoder.max_length).padded()
    return encoder, ids, mask


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_the_pooled_states_of_the_flax_class(family, pooling):
    folder, model = family
    encoder, ids, mask = tokens(folder, pooling=pooling)
    with jax.numpy_rank_promotion("allow"):
        states = np.asarray(model(ids, mask).last_hidden_state)
    rows = [state[keep == 1] for state, keep in zip(states, mask, strict=True)]
    expected = [{"mean": row.mean(0), "cls": row[0], "last": row[-1]}[pooling] for row in rows]
    vectors = encoder(ids, mask)
    assert vectors.shape == (len(TEXTS), 16) and encoder.dim == 16 and mask.min() == 0
    np.testing.assert_allclose(vectors, np.stack(expected), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        encoding.encode(encoder, _table(folder, encoder)), vectors, rtol=0, atol=1e-5
    )


def _table(folder: Path, encoder: HFFlaxEncoder) -> text.TokenTable:
    return text.tokenize(load_encoder(folder, backend="hf_flax")[1], TEXTS, encoder.max_length)


def test_weights_are_what_transformers_itself_loads(family):
    folder, _ = family
    with jax.numpy_rank_promotion("allow"):
        theirs = transformers.FlaxAutoModel.from_pretrained(folder, local_files_only=True).params
    theirs.pop("pooler", None)  # sentence vectors do not come from it
    encoder, *_ = tokens(folder)
    ours = nnx.to_pure_dict(nnx.state(encoder))["params"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert encoder.num_params == sum(leaf.size for leaf in jax.tree.leaves(theirs))


def test_gradient_in_full_through_split_merge_and_plain_jit(family):
    encoder, ids, mask = tokens(family[0], pooling="last")
    graphdef, params, rest = nnx.split(encoder, nnx.Param, ...)

    @jax.jit
    def grad(params):
        return jax.grad(lambda p: (nnx.merge(graphdef, p, rest)(ids, mask) ** 3).sum())(params)

    grads = nnx.to_flat_state(grad(params))
    still = [path for path, leaf in grads if not abs(leaf[...]).max() > 0]
    # Softmax ignores a bias of the keys; in GPT-2 they share a tensor with queries and values.
    assert all(path[-2:] == ("key", "bias") for path in still) and len(grads) > 15


def test_frozen_whole_or_not_at_all(family):
    encoder, ids, mask = tokens(family[0])
    before = encoder(ids, mask)
    assert "native" in error(encoder.freeze_below, 1)
    encoder.freeze_below(encoder.num_layers)
    assert not jax.tree.leaves(nnx.state(encoder, nnx.Param)) and encoder.num_params > 0
    np.testing.assert_array_equal(encoder(ids, mask), before)


def test_dropout_only_with_rngs(family):
    encoder, ids, mask = tokens(family[0])
    np.testing.assert_array_equal(encoder(ids, mask), encoder(ids, mask))
    dropped = abs(encoder(ids, mask, rngs=nnx.Rngs(dropout=0)) - encoder(ids, mask)).max()
    assert (dropped > 0) == ("llama" not in family[0].name)  # Llama has none


def test_computing_in_bfloat16_keeps_f32_parameters_and_vectors(family):
    encoder, ids, mask = tokens(family[0], dtype=jnp.bfloat16)
    vectors, exact = encoder(ids, mask), tokens(family[0])[0](ids, mask)
    assert vectors.dtype == jnp.float32
    assert 1e-4 < abs(vectors - exact).max() < 0.1  # values of size 1, 8 bits of mantissa
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder))} == {jnp.dtype("float32")}


def test_decoder_pads_with_its_end_token_and_reads_empty_texts(tmp_path):
    build("gpt2", tmp_path)
    encoder, tokenizer = load_encoder(tmp_path, backend="hf_flax", pooling="last")
    assert tokenizer.pad_token == "</s>"
    alone = encoding.encode(encoder, text.tokenize(tokenizer, [""], 9))
    beside = encoding.encode(
        encoder, text.tokenize(tokenizer, ["", TEXTS[0]], 9), batch_tokens=1000
    )
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)


def test_positions_of_a_long_decoder_are_cut_to_the_longest_text(tmp_path):
    model = build("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 1_000_000})
    )
    encoder, ids, mask = tokens(tmp_path, max_length=20)  # uncut, a mask of 10^12 entries
    assert encoder.max_length == 20
    with jax.numpy_rank_promotion("allow"):
        expected = model(ids, mask).last_hidden_state[0, mask[0].sum() - 1]
    encoder.pooling = "last"
    np.testing.assert_allclose(encoder(ids, mask)[0], expected, atol=1e-5)


def test_mistral_without_a_window_sees_the_whole_text(tmp_path, monkeypatch):
    monkeypatch.setitem(
        FAMILIES, "mistral", ("Mistral", COMMON | {"num_key_value_heads": 1, "sliding_window": 30})
    )
    model = build("mistral", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    encoder, ids, mask = tokens(tmp_path, pooling="last")
    with jax.numpy_rank_promotion("allow"):
        states = model(ids, mask).last_hidden_state
    expected = states[np.arange(len(ids)), mask.sum(1) - 1]
    np.testing.assert_allclose(encoder(ids, mask), expected, atol=1e-5)


SMALL_GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "big_bird": ("BigBird", COMMON | {"block_size": 4}),  # sparse attention takes whole blocks
    "electra": (
        "Electra",
        COMMON | {"embedding_size": 8},
    ),  # its Flax class takes token types 1 where none are given
    "gptj": ("GPTJ", SMALL_GPT | {"n_positions": 131072, "rotary_dim": 4}),
    # Twice the head's width is more than the longest text.
    "mistral": ("Mistral", COMMON | {"num_key_value_heads": 1, "max_position_embeddings": 131072}),
    "opt": (
        "OPT",
        COMMON | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    ),  # 'deterministic', not 'train'
    "xlm-roberta": ("XLMRoberta", COMMON | {"pad_token_id": 1}),  # PyTorch's prefix is 'roberta'
}


@pytest.mark.parametrize("kind", OTHERS)
def test_families_with_ways_of_their_own(tmp_path, kind):
    name, fields = OTHERS[kind]
    config, random = getattr(transformers, f"{name}Config")(**fields), np.random.default_rng(0)
    config.save_pretrained(tmp_path)
    if getattr(config, "max_position_embeddings", 0) > 1000:
        config.max_position_embeddings = 30  # as it stands, a mask of 17 GB
    config.attention_type = "original_full"
    with jax.numpy_rank_promotion("allow"):
        theirs = getattr(transformers, f"Flax{name}Model")(config, _do_init=False)
    params = jax.tree.map(
        lambda leaf: random.normal(0.0, 0.3, leaf.shape).astype(np.float32),
        theirs.params_shape_tree,
    )
    prefix = "roberta" if kind == "xlm-roberta" else theirs.base_model_prefix
    save_file(torch_named(params, f"{prefix}."), tmp_path / "model.safetensors")
    encoder = HFFlaxEncoder(tmp_path, max_length=9)
    assert encoder.max_length == 9
    ids, mask = (
        random.integers(2, 40, (2, 9), np.int32),
        np.array([[1] * 9, [1] * 5 + [0] * 4], np.int32),
    )
    types = {"token_type_ids": np.zeros_like(ids)} if kind == "electra" else {}
    graphdef, state = nnx.split(encoder)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(
            lambda params: theirs(ids, mask, params=params, **types).last_hidden_state
        )(params)
    hidden = jax.jit(
        lambda state: nnx.merge(graphdef, state).hidden(jnp.asarray(ids), jnp.asarray(mask), None)
    )(state)
    np.testing.assert_allclose(hidden[mask > 0], expected[mask > 0], rtol=0, atol=1e-5)


def test_big_bird_reads_no_more_than_full_attention_is_for(tmp_path):
    transformers.BigBirdConfig(
        **COMMON | {"block_size": 2, "num_random_blocks": 1}
    ).save_pretrained(tmp_path)
    assert hf_flax._build(tmp_path, jnp.float32, 128)[1] == 14  # 5 blocks and 2 for each random one


def test_roberta_reads_as_many_tokens_as_it_has_positions_behind_the_padding(tmp_path):
    build("roberta", tmp_path)
    encoder, _ = load_encoder(tmp_path, backend="hf_flax", max_length=128)
    assert encoder.max_length == 28  # 30 positions, the first two are for padding


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build("llama", folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 500000.0}, "rope_theta 500000.0"),
        (
            {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
            "rope_theta 500000.0",
        ),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"model_type": "t5"}, "no plain text encoder"),
        ({"model_type": "vit"}, "no plain text encoder"),
        ({"model_type": "clip"}, "choose weights of albert, bert,"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"num_hidden_layers": 1}, "unexpected: layers.1"),
        ({"num_hidden_layers": 3}, "missing: layers.2"),
        ({"vocab_size": 41}, "embed_tokens.weight is [40, 16], config.json requires [41, 16]"),
    ],
    ids=str,
)
def test_folders_that_do_not_fit(llama, tmp_path, changes, message):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    assert message in error(load_encoder, tmp_path, backend="hf_flax")


def test_transformers_5_is_named(tmp_path, monkeypatch):
    build("bert", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_flax_auto", None)
    message = error(load_encoder, tmp_path, backend="hf_flax")
    assert "transformers<5" in message and "native" in message


def test_both_backends_give_the_same_minilm_vectors():
    titles = [
        f"{word} ({year}). {genre}"
        for word in ("Heat", "Toy Story", "Amélie")
        for year in (1995, 2001)
        for genre in ("Crime, Drama", "Animation, Children, Comedy")
    ]
    vectors = []
    for backend in ("native", "hf_flax"):
        encoder, tokenizer = load_encoder(minilm(), backend=backend)
        vectors.append(
            encoding.encode(encoder, text.tokenize(tokenizer, titles, encoder.max_length))
        )
    # The same sums in another order, through six layers of f32; vectors are of size 1, 1e-6 was
    # seen.
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-5)
