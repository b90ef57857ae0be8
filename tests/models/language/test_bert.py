"""The native BERT against transformers' FlaxBertModel, layer by layer.

Gradients, frozen layers and pooling are also tested.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.bert import LENGTH, SMALL, flax_bert, inputs, masks, minilm, small
from helpers.marks import first_fast
from kd_jax.core.errors import InputError
from kd_jax.models.language.bert import Bert, BertConfig
from kd_jax.models.language.encoder import NativeEncoder
from kd_jax.models.language.hf import load_model
from kd_jax.models.language.pooling import pool
from kd_jax.models.scorer import Frozen


@functools.cache
def program(model: Any) -> Any:
    return jax.jit(
        lambda params, *args, **kwargs: model(
            *args, params=params, output_hidden_states=True, **kwargs
        )
    )


def reference(model: Any, *args: Any, **kwargs: Any) -> Any:
    with jax.numpy_rank_promotion("allow"):
        return program(model)(model.params, *args, **kwargs)


@nnx.jit
def ours(bert: Bert, *args: Any, **kwargs: Any) -> Any:
    return bert(*args, **kwargs)


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    pairs = [
        *zip(ours.hidden_states, theirs.hidden_states, strict=True),
        (ours.pooler_output, theirs.pooler_output),
    ]
    for mine, other in [*pairs, (ours.last_hidden_state, theirs.last_hidden_state)]:
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "changes",
    first_fast(
        [
            {},
            {"hidden_act": "relu", "num_attention_heads": 1},
            {"hidden_act": "gelu_new", "num_attention_heads": 6, "type_vocab_size": 3},
            {"hidden_act": "tanh", "layer_norm_eps": 1e-3, "num_hidden_layers": 1},
            {"hidden_act": "silu", "type_vocab_size": 1, "intermediate_size": 8},
        ]
    ),
    ids=str,
)
def test_every_layer_equals_flax_bert(tmp_path, changes):
    model = flax_bert(**changes)
    model.save_pretrained(tmp_path, safe_serialization=True)
    bert = load_model(tmp_path)
    ids, types = inputs(SMALL["vocab_size"], bert.config.type_vocab_size)
    for mask in masks().values():
        assert_same(ours(bert, ids, mask, types), reference(model, ids, mask, types))


def test_positions_and_defaults_equal_flax_bert(tmp_path):
    model = flax_bert()
    model.save_pretrained(tmp_path, safe_serialization=True)
    bert = load_model(tmp_path)
    ids, _ = inputs(SMALL["vocab_size"])
    assert_same(ours(bert, ids), reference(model, ids))
    positions = np.broadcast_to(np.arange(LENGTH)[::-1][None], ids.shape)
    assert_same(
        ours(bert, ids, position_ids=positions), reference(model, ids, position_ids=positions)
    )


@pytest.mark.slow
def test_minilm_equals_flax_bert():
    transformers = pytest.importorskip("transformers.models.bert.modeling_flax_bert")
    folder = minilm()
    model = transformers.FlaxBertModel.from_pretrained(folder, local_files_only=True)
    bert = load_model(folder)
    ids, _ = inputs(bert.config.vocab_size)
    for mask in masks().values():
        assert_same(ours(bert, ids, mask), reference(model, ids, mask))


def test_dropout_only_with_rngs():
    bert = small()
    ids, _ = inputs(SMALL["vocab_size"])
    plain = bert(ids).last_hidden_state
    np.testing.assert_array_equal(plain, bert(ids).last_hidden_state)
    first, again, other = (
        bert(ids, rngs=nnx.Rngs(dropout=seed)).last_hidden_state for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 0.1 and abs(first - plain).max() > 0.1
    none = small(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    np.testing.assert_array_equal(
        none(ids, rngs=nnx.Rngs(dropout=1)).last_hidden_state, none(ids).last_hidden_state
    )


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_f32_parameters():
    half = Bert(BertConfig(**SMALL), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ids, _ = inputs(SMALL["vocab_size"])
    mask = masks()["right"]
    output = half(ids, mask).last_hidden_state
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    # Three layers of values of size 1 with 8 bits of mantissa.
    np.testing.assert_allclose(
        output.astype(np.float32), small()(ids, mask).last_hidden_state, rtol=0, atol=0.1
    )


def gradients(encoder: NativeEncoder) -> tuple[Any, float]:
    """Gradient of a scalar of the vectors, and the operations that XLA counts for it."""
    graphdef, params, rest = nnx.split(encoder, nnx.Param, ...)
    ids, _ = inputs(SMALL["vocab_size"])

    def loss(params, rest):
        return (nnx.merge(graphdef, params, rest)(ids, masks()["right"]) ** 3).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, rest).compile()
    return compiled(params, rest), compiled.cost_analysis()["flops"]


def test_full_gradient_reaches_every_parameter():
    grads, _ = gradients(NativeEncoder(small()))
    # A key's bias moves all scores of a query alike, so softmax ignores it; everything else must
    # learn.
    flat = {
        path: abs(leaf[...]).max()
        for path, leaf in nnx.to_flat_state(grads)
        if path[-2:] != ("key", "bias")
    }
    assert len(flat) == 5 + 3 * 15 and min(flat.values()) > 1e-6


def test_top_n_gradient_stops_below():
    encoder = NativeEncoder(small())
    _, full = gradients(encoder)
    encoder.model.stop_gradient_below = 2
    grads, part = gradients(encoder)
    for path, leaf in nnx.to_flat_state(grads):
        above = path[:3] == ("model", "layers", 2)
        if path[-2:] != ("key", "bias"):
            assert (abs(leaf[...]).max() > 0) == above, path
    assert part < 0.62 * full  # forward of 3 layers + backward of 1, of 3 + twice that of 3: 5 / 9


def test_freeze_below_takes_parameters_out_of_training():
    encoder = NativeEncoder(small())
    ids, _ = inputs(SMALL["vocab_size"])
    before, count = encoder(ids, masks()["right"]), encoder.num_params
    encoder.freeze_below(2)
    np.testing.assert_array_equal(encoder(ids, masks()["right"]), before)
    assert encoder.num_params == count
    _, params, frozen = nnx.split(encoder, nnx.Param, ...)
    assert {path[:3] for path, _ in nnx.to_flat_state(params)} == {("model", "layers", 2)}
    assert all(isinstance(leaf, Frozen) for _, leaf in nnx.to_flat_state(frozen))
    encoder.freeze_below(3)
    assert not jax.tree.leaves(nnx.state(encoder, nnx.Param))
    with pytest.raises(InputError, match="has 3 layers"):
        encoder.freeze_below(4)


def test_encoder_through_split_merge_and_plain_jit():
    encoder = NativeEncoder(small(), normalize=True)
    ids, _ = inputs(SMALL["vocab_size"])
    graphdef, state = nnx.split(encoder)
    jitted = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask))
    vectors = jitted(state, ids, masks()["left"])
    assert vectors.shape == (3, encoder.dim) and vectors.dtype == jnp.float32
    np.testing.assert_allclose(vectors, encoder(ids, masks()["left"]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    with pytest.raises(ValueError, match="at most 20"):
        encoder(np.zeros((1, 21), np.int32), np.ones((1, 21), np.int32))


def test_num_params_counts_the_encoder_without_pooler():
    width, inner = SMALL["hidden_size"], SMALL["intermediate_size"]
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    rows = SMALL["vocab_size"] + SMALL["max_position_embeddings"] + SMALL["type_vocab_size"]
    assert NativeEncoder(small()).num_params == rows * width + 2 * width + 3 * layer


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_pooling_is_over_tokens_only(side):
    mask = masks()[side]
    hidden = np.random.default_rng(1).normal(size=(3, LENGTH, 4)).astype(np.float32)
    for row in range(3):
        tokens = hidden[row][mask[row] == 1]
        by_hand = {
            "mean": tokens.mean(0),
            "cls": tokens[0],
            "last": tokens[-1],
            "max": tokens.max(0),
        }
        for pooling, expected in by_hand.items():
            pooled = pool(jnp.asarray(hidden), jnp.asarray(mask), pooling)[row]
            np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_max_pooling_reads_negative_values_and_gives_its_gradient_to_the_greatest_token():
    hidden = jnp.array([[[9.0, 9.0], [-3.0, -1.0], [-2.0, -4.0]]])
    mask = jnp.array([[0, 1, 1]])
    np.testing.assert_array_equal(pool(hidden, mask, "max"), [[-2.0, -1.0]])
    grad = jax.grad(lambda h: pool(h, mask, "max").sum())(hidden)
    np.testing.assert_array_equal(grad, [[[0, 0], [0, 1], [1, 0]]])


def test_pooling_without_tokens_is_zero_and_has_a_finite_gradient():
    mask = jnp.zeros((2, 3), jnp.int32)
    hidden = jnp.ones((2, 3, 4))
    assert not pool(hidden, mask, "mean", normalize=True).any()
    assert jnp.isfinite(
        jax.grad(lambda h: pool(h, mask, "mean", normalize=True).sum())(hidden)
    ).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gleu"}, "did you mean 'gelu'"),
        ({"num_attention_heads": 5}, "not divisible"),
        ({"is_decoder": True}, "hf_flax"),
        ({"position_embedding_type": "relative_key"}, "hf_flax"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_computed(changes, message):
    with pytest.raises(InputError, match=message):
        BertConfig.from_dict(SMALL | changes)


def test_unknown_pooling():
    with pytest.raises(InputError, match="did you mean 'mean'"):
        NativeEncoder(small(), pooling="meen")
