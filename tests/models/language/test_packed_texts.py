"""Rows of several texts: the vectors are those of one text a row, for every architecture."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from helpers.bert import small
from helpers.fixtures import FIXTURES
from kd_jax.data.text import TokenTable
from kd_jax.models.language import batching, encoding
from kd_jax.models.language.attention import attend
from kd_jax.models.language.encoder import NativeEncoder
from kd_jax.models.language.hf import load_model
from kd_jax.models.language.pooling import POOLINGS

FOLDERS = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))


def texts_of(lengths, vocab_size, pad_id=1):
    """Random texts of these lengths, without the padding id."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, vocab_size, sum(lengths)).astype(np.int32)
    return TokenTable(ids, np.cumsum([0, *lengths]), pad_id)


def short(count):
    return np.random.default_rng(1).integers(1, 10, count).tolist()


def in_rows_of_their_own(encoder, table):
    """The vectors of the padded form, which attends by a mask of padding."""
    graphdef, state = nnx.split(encoder)
    run = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask))
    return np.asarray(run(state, *table.padded()))


def planned(table, batch_tokens=None):
    return batching.plan_batches(table.lengths, batch_tokens, shared=False).batches


@pytest.mark.parametrize("folder", FOLDERS)
def test_vectors_are_those_of_one_text_a_row(folder):
    model = load_model(FIXTURES / folder)
    encoder = NativeEncoder(model, pooling="+".join(POOLINGS))
    long = min(encoder.max_length, 30)
    table = texts_of([*short(30), long, *short(5)], model.config.vocab_size)
    assert max(batch.texts.shape[1] for batch in planned(table)) > 1
    expected = in_rows_of_their_own(encoder, table)
    found = encoding.encode(encoder, table)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_pairs_have_a_row_each_and_their_token_types(tmp_path):
    """The same tokens, divided elsewhere, are another pair, in the cache too."""
    table = texts_of([9, 6, 9], 50)
    ids = np.concatenate([table.ids[:15], table.ids[:9]])
    pairs = TokenTable(ids, table.indptr, table.pad_id, np.array([4, 2, 6]))
    encoder = NativeEncoder(small())
    expected = in_rows_of_their_own(encoder, pairs)
    found = encoding.encode(encoder, pairs, cache=tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3
    alone = TokenTable(ids, table.indptr, table.pad_id)
    other = encoding.encode(encoder, alone, cache=tmp_path)
    assert np.abs(other - found).max() > 1e-3
    np.testing.assert_allclose(other, in_rows_of_their_own(encoder, alone), atol=1e-5)


def test_there_are_fixtures_of_every_kind_of_position():
    assert {"mpnet", "modernbert", "roberta", "llama", "distilbert"} <= set(FOLDERS)


@pytest.mark.parametrize("skipped, normalize", [(2, False), (0, True)])
def test_skipped_tokens_and_unit_length(skipped, normalize):
    encoder = NativeEncoder(small(), normalize=normalize)
    encoder.skipped = skipped
    table = texts_of([3, 4, 7, 5, 6, 4], 50)
    expected = in_rows_of_their_own(encoder, table)
    np.testing.assert_allclose(encoding.encode(encoder, table), expected, rtol=0, atol=1e-5)


def test_a_text_without_tokens_has_a_vector_of_zeros():
    encoder = NativeEncoder(small())
    found = encoding.encode(encoder, texts_of([3, 0, 5], 50))
    assert not found[1].any() and found[[0, 2]].any(1).all()
    assert encoding.encode(encoder, texts_of([0], 50)).shape == (1, encoder.dim)
    assert encoding.encode(encoder, texts_of([], 50)).shape == (0, encoder.dim)


def test_short_texts_share_one_program():
    encoder = NativeEncoder(small(hidden_size=20))
    before = encoding._forward._cache_size()
    encoding.encode(encoder, texts_of(short(2000), 50))
    assert encoding._forward._cache_size() == before + 1


def test_frozen_states_of_every_token(tmp_path):
    encoder = NativeEncoder(small())
    encoder.freeze_below(2)
    table = texts_of(short(40), 50)
    graphdef, state = nnx.split(encoder)
    run = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state).states(ids, mask))
    ids, mask = table.padded()
    expected = np.asarray(run(state, ids, mask))[mask > 0]
    states = encoding.frozen_states(encoder, table, tmp_path)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-5)
    found = encoding.encode(encoder, table, states=states)
    np.testing.assert_allclose(found, encoding.encode(encoder, table), rtol=0, atol=1e-5)


def test_an_encoder_that_does_not_read_them_gets_one_text_a_row(monkeypatch):
    encoder = NativeEncoder(small())
    table = texts_of(short(60), 50)
    expected = encoding.encode(encoder, table)
    monkeypatch.setattr(NativeEncoder, "reads_packed", False)
    widths = []
    forward = encoding._forward
    monkeypatch.setattr(
        encoding, "_forward", lambda *given: widths.append(given[1]) or forward(*given)
    )
    np.testing.assert_allclose(encoding.encode(encoder, table), expected, rtol=0, atol=1e-5)
    assert set(widths) == {1}


@pytest.mark.parametrize("batch_tokens", [1, 100, 1024])
@pytest.mark.parametrize("longest", [9, 150])
def test_a_plan_has_every_text_once_in_rows_that_hold_it(batch_tokens, longest):
    lengths = np.array([*short(1000), longest])
    batches = batching.plan_batches(lengths, batch_tokens, shared=False).batches
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(1001))
    for batch in batches:
        filled = np.where(batch.texts >= 0, lengths[batch.texts], 0).sum(1)
        assert filled.max() <= batch.length and len(batch.texts) <= batch.size
    if longest == 9 and batch_tokens == 1024:
        shapes = {(batch.size, batch.length, batch.texts.shape[1]) for batch in batches}
        assert len(shapes) == 1
        (shape,) = shapes
        assert len(batches) * shape[0] * shape[1] < 1.1 * lengths.sum()


def test_rows_are_as_long_as_is_cheapest():
    def chosen(lengths):
        return batching.row_lengths(np.bincount(lengths), 4096)

    assert chosen([13] * 10_000) == (40,)  # three of 13 leave one place; 104 attends to more
    assert chosen([10] * 3) == (32,)
    assert len(chosen([8] * 20_000 + [500] * 20)) == 2
    assert chosen([8] * 20 + [500] * 20) == (504,)


def test_tokens_of_a_batch():
    table = TokenTable(np.arange(10, 20, dtype=np.int32), np.array([0, 3, 3, 5, 10]), 0)
    found = batching.layout(table, np.array([[2, 0, -1], [3, 1, -1]]), 3, 7)
    assert found.ids.tolist() == [[13, 14, 10, 11, 12, 0, 0], [15, 16, 17, 18, 19, 0, 0], [0] * 7]
    assert found.segment.tolist() == [[1, 1, 2, 2, 2, 0, 0], [1] * 5 + [0, 0], [0] * 7]
    real = found.segment > 0
    np.testing.assert_array_equal(table.ids[found.places[real]], found.ids[real])


@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_attention_by_hand(dtype, error):
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((2, 5, 3, 4)).astype(dtype) for _ in range(3))
    mask = rng.random((2, 1, 5, 5)) < 0.6
    mask[0, 0, 1] = False  # a query without keys: uniform
    bias = np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32)
    found = np.asarray(attend(q, k, v, bias, size=9.0), np.float64).reshape(2, 5, 3, 4)
    q, k, v = (part.astype(np.float64) for part in (q, k, v))
    for b, i, h in np.ndindex(2, 5, 3):
        weights = np.exp(k[b, :, h] @ q[b, i, h] / 3) * mask[b, 0, i]
        weights = weights if weights.any() else np.ones(5)
        expected = weights @ v[b, :, h] / weights.sum()
        np.testing.assert_allclose(found[b, i, h], expected, rtol=0, atol=error)
