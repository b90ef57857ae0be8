"""Item texts, token tables, and encoding.

Each distinct text is encoded once, in batches of few shapes; its vector is the same as alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from helpers.bert import SMALL, small
from kd_jax.core.errors import InputError
from kd_jax.data import text
from kd_jax.data.text import token_problems, tokenize
from kd_jax.devices import sharding
from kd_jax.models.language import batching, encoding
from kd_jax.models.language.encoder import NativeEncoder

ITEMS = pl.DataFrame(
    {
        "item": ["a", "b", "c"],
        "title": ["Heat (1995)", " Toy\nStory ", "Solo"],
        "genres": [["Crime", "Drama"], None, []],
        "year": [1995, None, 2018],
    }
)


def test_item_texts_join_what_is_there():
    joined = text.item_texts(ITEMS, ["title", "genres", "year"])
    assert joined == ["Heat (1995). Crime, Drama. 1995", "Toy Story", "Solo. 2018"]


def test_item_texts_with_a_template():
    filled = text.item_texts(ITEMS, ["title", "genres"], "Film: {title} ({genres})")
    assert filled == ["Film: Heat (1995) (Crime, Drama)", "Film: Toy Story ()", "Film: Solo ()"]


@pytest.mark.parametrize(
    ("columns", "template", "message"),
    [
        (["titel"], None, "did you mean 'title'"),
        (["title"], "{titel}", "did you mean 'title'"),
        (["title"], "{title", "cannot be filled"),
        (["genres"], None, "item 'b' has no text in genres"),
        (
            ["title", "genres"],
            "{genres}",
            "item 'b' has no text in the columns of teacher.lm.template='{genres}'",
        ),
    ],
)
def test_item_texts_that_cannot_be(columns, template, message):
    with pytest.raises(InputError, match=message):
        text.item_texts(ITEMS, columns, template)


def test_history_text_keeps_the_newest_at_the_end():
    titles = ["Alien", "Heat", "Solo"]
    assert text.history_text(titles, 2) == "Heat; Solo"
    assert text.history_text(titles, 9) == "Alien; Heat; Solo"
    assert text.history_text(titles, 0) == text.history_text([], 5) == ""


class Letters:
    """A tokenizer of letters between two special tokens; counts its calls."""

    is_fast, pad_token_id, calls = False, 0, 0

    def __call__(
        self, texts: list[str], truncation: bool, max_length: int, padding: bool
    ) -> dict[str, Any]:
        assert truncation and not padding
        self.calls += 1
        return {
            "input_ids": [
                [1, *(3 + ord(c) % 40 for c in t)][: max_length - 1] + [2] if t else []
                for t in texts
            ]
        }

    def __repr__(self) -> str:
        return "Letters"


def table_of(*texts: str, max_length: int = 20) -> text.TokenTable:
    return text.tokenize(Letters(), texts, max_length)


def test_token_table_pads_on_the_right():
    table = table_of("b", "", "cde", max_length=4)
    assert table.lengths.tolist() == [3, 1, 4] and len(table) == 3 and table.ids.dtype == np.int32
    ids, mask = table.padded()
    b, c, d = (3 + ord(letter) % 40 for letter in "bcd")
    assert ids.tolist() == [[1, b, 2, 0], [0, 0, 0, 0], [1, c, d, 2]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    ids, mask = table.padded(np.array([2, 0]), length=5)
    assert ids.tolist() == [[1, c, d, 2, 0], [1, b, 2, 0, 0]] and mask.sum() == 7


def test_no_texts():
    encoder = NativeEncoder(small())
    assert table_of().padded()[0].shape == (0, 1)
    assert encoding.encode(encoder, table_of()).shape == (0, encoder.dim)


def test_tokens_are_kept_by_content(tmp_path):
    tokenizer = Letters()
    first = text.tokenize(tokenizer, ["ab", "c"], 20, tmp_path)
    again = text.tokenize(tokenizer, ["ab", "c"], 20, tmp_path)
    assert tokenizer.calls == 1 and again.pad_id == 0
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.indptr, again.indptr)
    for texts, length in ((["a", "bc"], 20), (["ab", "c"], 3)):
        text.tokenize(tokenizer, texts, length, tmp_path)
    assert tokenizer.calls == 3 and len(list(tmp_path.iterdir())) == 3


def random_texts(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(list("abcdefgh"), random.integers(1, 17))) for _ in range(count)]


@pytest.fixture
def encoder() -> NativeEncoder:
    return NativeEncoder(small())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each batch that is run through an encoder."""
    counts: list[int] = []
    forward = encoding._forward

    def spy(graphdef: Any, texts: int, state: Any, ids: Any, segment: Any, states: Any) -> Any:
        counts.append(int(np.asarray(segment).max(1).sum()))
        return forward(graphdef, texts, state, ids, segment, states)

    monkeypatch.setattr(encoding, "_forward", spy)
    return counts


@pytest.mark.slow
def test_batches_equal_one_text_at_a_time(encoder):
    texts = random_texts(40)
    vectors = encoding.encode(encoder, table_of(*texts), batch_tokens=64)
    assert vectors.dtype == np.float32
    for one, vector in list(zip(texts, vectors, strict=True))[::8]:
        ids, mask = table_of(one).padded()
        # Another order of the same f32 sums.
        np.testing.assert_allclose(encoder(ids, mask)[0], vector, rtol=0, atol=1e-5)


def test_the_devices_of_a_process_share_the_texts(encoder, monkeypatch):
    texts, placed = random_texts(40), []
    forward = encoding._forward
    monkeypatch.setattr(
        encoding, "_forward", lambda *given: placed.append(given[3].sharding) or forward(*given)
    )
    vectors = encoding.encode(encoder, table_of(*texts), batch_tokens=64)
    assert placed and all(
        len(where.device_set) == jax.device_count() and where.spec == jax.P("data")
        for where in placed
    )
    alone = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(sharding, "local_mesh", lambda: alone)
    np.testing.assert_allclose(
        encoding.encode(encoder, table_of(*texts), batch_tokens=64), vectors, rtol=0, atol=1e-5
    )


def test_each_distinct_text_is_computed_once(encoder, computed):
    texts = random_texts(20)
    twice = encoding.encode(encoder, table_of(*texts, *texts[::-1]), batch_tokens=64)
    np.testing.assert_array_equal(twice[:20], twice[20:][::-1])
    assert sum(computed) == len(set(texts)) <= 20


def test_vectors_are_kept_by_content_of_texts_and_weights(encoder, computed, tmp_path):
    table = table_of(*random_texts(5))
    first = encoding.encode(encoder, table, cache=tmp_path)
    runs = len(computed)
    np.testing.assert_array_equal(encoding.encode(encoder, table, cache=tmp_path), first)
    assert len(computed) == runs
    encoding.encode(encoder, table_of(*random_texts(4)), cache=tmp_path)
    assert len(computed) > runs
    layer = encoder.model.layers[2]
    layer.down.bias[...] = layer.down.bias[...].at[0].add(1e-3)
    assert abs(encoding.encode(encoder, table, cache=tmp_path) - first).max() > 1e-5
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.glob("*.npy"))) == 3


def test_texts_that_an_older_run_has_encoded_are_not_computed(encoder, computed, tmp_path):
    texts = random_texts(60)
    older, newer = texts[:57], [*texts[20:], texts[2]]
    earlier = tmp_path / encoding.EARLIER
    known = encoding.encode(encoder, table_of(*older), cache=earlier)
    (tmp_path / "plain").mkdir()
    want = encoding.encode(encoder, table_of(*newer), cache=tmp_path / "plain")
    computed.clear()
    seen = []
    found = encoding.encode(
        encoder, table_of(*newer), cache=tmp_path, progress=lambda done, _: seen.append(done)
    )
    assert sum(computed) == len({*newer} - {*older}) > 0 and seen[-1] == len(newer)
    np.testing.assert_array_equal(found[[*range(37), 40]], known[[*range(20, 57), 2]])
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
    # Vectors of other weights are of no use.
    encoder.model.words.embedding[...] = encoder.model.words.embedding[...] * 2
    other = encoding.encode(encoder, table_of(*newer), cache=tmp_path)
    np.testing.assert_allclose(other, encoding.encode(encoder, table_of(*newer)), rtol=0, atol=1e-6)
    assert abs(other - found).max() > 1e-3


def test_fingerprint_follows_everything_that_changes_a_vector(encoder):
    seen = {encoding.fingerprint(encoder)}
    assert seen == {encoding.fingerprint(NativeEncoder(small()))}
    for other in (
        NativeEncoder(small(), pooling="cls"),
        NativeEncoder(small(), normalize=True),
        NativeEncoder(small(hidden_act="relu")),
        NativeEncoder(small(num_attention_heads=2)),
    ):
        seen.add(encoding.fingerprint(other))
    encoder.model.words.embedding[...] = encoder.model.words.embedding[...] * 1.001
    assert len(seen | {encoding.fingerprint(encoder)}) == 6


def test_frozen_layers_give_the_same_vectors_and_share_the_cache(encoder):
    before = encoding.fingerprint(encoder)
    encoder.freeze_below(2)
    assert encoding.fingerprint(encoder) == before


def test_trained_weights_run_in_the_same_programs(encoder):
    table = table_of(*random_texts(30))
    encoding.encode(encoder, table)
    compiled = encoding._forward._cache_size()
    graphdef, state = nnx.split(encoder)
    encoding.encode(nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf * 1.1, state)), table)
    assert encoding._forward._cache_size() == compiled


def test_progress_ends_at_all_texts(encoder):
    seen: list[tuple[int, int]] = []
    texts = random_texts(90)
    encoding.encode(
        encoder,
        table_of(*texts, *texts[:5]),
        batch_tokens=5,
        progress=lambda *state: seen.append(state),
    )
    assert len(seen) > 3 and seen[-1] == (95, 95) and seen == sorted(seen)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_plan_covers_every_text_once_in_few_shapes(batch_tokens):
    lengths = np.sort(np.random.default_rng(0).poisson(8, 10_000) + 6)
    shapes = batching.batch_shapes(lengths, batch_tokens)
    assert [shape[0] for shape in shapes] == [0, *(shape[1] for shape in shapes[:-1])] and shapes[
        -1
    ][1] == len(lengths)
    computed = 0
    for start, stop, rows, width in shapes:
        assert lengths[stop - 1] == width and rows * width <= max(batch_tokens, width)
        computed += -(-(stop - start) // rows) * rows * width
    assert len(shapes) <= 8 and computed <= 1.1 * lengths.sum()


def test_plan_is_the_cheapest_cut():
    lengths = np.array([2, 2, 3, 7, 7, 9])

    def cost(ends: list[int], compile_tokens: int) -> int:
        starts = [0, *ends[:-1]]
        return sum(
            compile_tokens + (b - a) * lengths[b - 1] for a, b in zip(starts, ends, strict=True)
        )

    for compile_tokens in (0, 1, 5, 100):
        cuts = [[i for i in range(1, 6) if mask >> i & 1] + [6] for mask in range(0, 64, 2)]
        best = min(cost(ends, compile_tokens) for ends in cuts)
        assert (
            cost(
                [stop for _, stop, _, _ in batching.batch_shapes(lengths, 1000, compile_tokens)],
                compile_tokens,
            )
            == best
        )


def test_float32_out_of_a_bfloat16_encoder():
    from kd_jax.models.language.bert import Bert, BertConfig

    half = NativeEncoder(Bert(BertConfig(**SMALL), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    table = table_of(*random_texts(3))
    assert encoding.encode(half, table).dtype == np.float32
    assert encoding.fingerprint(half) != encoding.fingerprint(NativeEncoder(small()))


def test_nothing_is_unpickled(encoder, tmp_path):
    table = table_of("abc")
    encoding.encode(encoder, table, cache=tmp_path)
    path = next(tmp_path.glob("vectors-*"))
    np.save(path.with_suffix(""), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    Path(f"{path.with_suffix('')}.npy").replace(path)
    with pytest.raises(ValueError, match="pickle"):
        encoding.encode(encoder, table, cache=tmp_path)


class Words:
    """A tokenizer of words that are separated by spaces; ids from 4 on in order of appearance."""

    all_special_ids = (0, 1, 2)
    bos_token_id = eos_token_id = sep_token_id = None
    pad_token_id, unk_token_id, cls_token_id = 0, 1, 2

    def __init__(self, words: str):
        self.ids = {word: 4 + n for n, word in enumerate(words.split())}

    def __call__(self, texts, truncation=False, max_length=None, **_):
        rows = [[2, *(self.ids.get(word, 1) for word in text.split())] for text in texts]
        return {"input_ids": [row[:max_length] if truncation else row for row in rows]}


def problems(words: str, texts: list[str], most: int = 9, tokenizer=None) -> str:
    tokenizer = tokenizer or Words(words)
    return token_problems(texts, tokenize(tokenizer, texts, most), tokenizer, most)


def test_token_problems_are_silent_where_nothing_is_wrong():
    assert problems("a b", ["a", "b", "a b", "a"]) == ""  # an equal text is no other text
    assert problems("a b", ["a x", "b x"]) == ""  # half of the tokens
    assert problems("a b", ["a b a b"], most=5) == ""  # as long as it may be
    assert problems("a", []) == ""


def test_token_problems_count_distinct_texts():
    found = problems("a b", ["x", "y", "y", "a", "b x y", "a b"])
    assert found.startswith("of 5 distinct texts 2 have the same tokens as another")
    assert "3 are mostly unknown tokens" in found
    assert "choose teacher.lm.weights" in found and "text+id" in found and "cut" not in found


def test_token_problems_count_cut_texts_exactly():
    found = problems("a b", ["a b a b a", "a b a b", "b"], most=5)
    assert "1 are longer than 5 tokens and are cut" in found
    assert "of 3 distinct texts 2 have the same tokens as another" in found
    assert "teacher.lm.max_tokens" in found and "unknown" not in found


def test_the_words_of_a_prompt_do_not_hide_unknown_ones():
    tokenizer, texts = Words("a film called"), ["a film called x", "a film called a"]
    table = tokenize(tokenizer, texts, 9)
    assert token_problems(texts, table, tokenizer, 9) == ""
    found = token_problems(texts, table, tokenizer, 9, aside=3)
    assert found.startswith("of 2 distinct texts 1 are mostly unknown tokens")


def test_a_tokenizer_that_knows_every_text_has_no_unknown_ones():
    tokenizer = Words("a b")
    tokenizer.eos_token_id = tokenizer.unk_token_id  # as GPT-2's
    tokenizer.all_special_ids = (0, 1, 2)
    assert "unknown" not in problems("", ["x", "y"], tokenizer=tokenizer)
    tokenizer.unk_token_id = None
    assert "unknown" not in problems("", ["x", "y"], tokenizer=tokenizer)
