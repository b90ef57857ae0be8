"""The map from texts to item rows, against its formula written with plain Python."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from kd_jax.runtime.text_map import TextMap, keys_of

WORDS = ("red", "film", "red film", "2013")


def key(name):
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@pytest.fixture
def text_map():
    rng = np.random.default_rng(0)
    keys = np.array(sorted(map(key, WORDS)), np.uint64)
    idf = rng.uniform(1, 3, len(keys)).astype(np.float32)
    weight = rng.normal(size=(len(keys), 4)).astype(np.float32)
    return TextMap(keys, idf, weight, np.arange(4, dtype=np.float32))


def test_a_row_is_its_formula(text_map):
    vectors, biases = text_map(["Red, RED film (unknown)"])
    place = {int(value): n for n, value in enumerate(text_map.keys)}
    places = [place[key(name)] for name in ("red", "film", "red film")]
    values = [
        (1 + math.log(count)) * float(text_map.idf[n])
        for n, count in zip(places, (2, 1, 1), strict=True)
    ]
    norm = math.sqrt(sum(value**2 for value in values))
    want = sum(v / norm * text_map.weight[n] for n, v in zip(places, values, strict=True))
    want = want + text_map.intercept
    np.testing.assert_allclose(vectors, want[None, :3], rtol=1e-6)
    np.testing.assert_allclose(biases, want[None, 3], rtol=1e-6)
    assert vectors.dtype == biases.dtype == np.float32


@pytest.mark.parametrize("text", ["", "?!", "nothing known here", "\ud800", "a" * 100_000])
def test_a_text_without_a_known_word_has_the_intercept(text_map, text):
    vectors, biases = text_map([text])
    assert np.append(vectors, biases).tolist() == [0, 1, 2, 3]


def test_a_map_without_words_and_a_list_without_texts(text_map):
    empty = TextMap(text_map.keys[:0], text_map.idf[:0], text_map.weight[:0], text_map.intercept)
    assert empty(["red film"])[0].tolist() == [[0, 1, 2]]
    vectors, biases = text_map([])
    assert vectors.shape == (0, 3) and biases.shape == (0,)


def test_texts_do_not_influence_each_other(text_map):
    texts = ["red film", "2013", "unknown", "film 2013 film"]
    together = text_map(texts)[0]
    alone = np.concatenate([text_map([text])[0] for text in texts])
    assert (together == alone).all()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Star WARS", ["star", "wars", "star wars"]),
        ("no, no!", ["no", "no", "no no"]),
        ("Ｆｉｌｍ", ["film"]),  # full-width letters
        ("e\u0301te\u0301", ["\u00e9t\u00e9"]),  # composed
        ("東京 a", ["東", "京", "a", "東 京", "京 a"]),
    ],
)
def test_words_and_pairs(text, names):
    assert keys_of(text) == {key(name): names.count(name) for name in names}
