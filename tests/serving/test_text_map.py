"""The fit of the map from texts to item rows, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from kd_jax.serving import text_map
from kd_jax.serving.text_map import Settings, TextMaps, fit

ITEMS, DIM = 120, 3
WORDS = [f"word{n}" for n in range(12)]
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, 6)) for n in range(ITEMS)]


@pytest.fixture
def rows():
    """Rows that depend on the words alone, and a bias of a mean that is not 0."""
    rng = np.random.default_rng(1)
    of_word = rng.normal(size=(len(WORDS), DIM + 1))
    counts = np.array([[text.split().count(word) for word in WORDS] for text in TEXTS])
    found = (counts @ of_word + [0, 0, 0, 5]).astype(np.float32)
    return found[:, :-1], found[:, -1]


def oracle(texts, vectors, biases, ridge, new):
    reader = TfidfVectorizer(
        token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True, min_df=text_map.LEAST
    )
    values = reader.fit_transform(texts)
    model = Ridge(ridge, solver="cholesky").fit(values.toarray(), np.c_[vectors, biases])
    return model.predict(reader.transform(new).toarray())


@pytest.mark.parametrize("ridge", [0.3, 10.0])
def test_the_map_equals_scikit_learn(rows, ridge):
    new = ["word1 word2 word3", "word4 other word5 word5", "nothing known"]
    vectors, biases = fit(TEXTS, *rows, ridge)(new)
    want = oracle(TEXTS, *rows, ridge, new)
    np.testing.assert_allclose(np.c_[vectors, biases], want, rtol=1e-4, atol=1e-5)


def test_predicted_rows_are_those_of_the_fitted_map_and_untrained_rows_do_not_count(rows):
    trained = np.arange(ITEMS) % 4 > 0
    one = TextMaps(TEXTS, rows, trained)
    vectors, biases = one.predicted(Settings(1.0))
    again = one.fit(Settings(1.0))(TEXTS)
    np.testing.assert_allclose(vectors, again[0], atol=1e-4)
    np.testing.assert_allclose(biases, again[1], atol=1e-4)
    changed = rows[0].copy()
    changed[~trained] = 1e6
    other = TextMaps(TEXTS, (changed, rows[1]), trained).predicted(Settings(1.0))
    assert (other[0] == vectors).all()
    kept = [text for text, known in zip(TEXTS, trained, strict=True) if known]
    alone = fit(kept, rows[0][trained], rows[1][trained], 1.0)(TEXTS)
    np.testing.assert_allclose(vectors, alone[0], atol=1e-4)


def test_the_best_settings_are_selected(rows):
    maps = TextMaps(TEXTS, rows)
    want = Settings(text_map.RIDGES[2])
    best = maps.predicted(want)[0]
    assert maps.select(lambda found: -float(np.abs(found[0] - best).max())) == want
    shares = {ridge: maps.explained(Settings(ridge)) for ridge in text_map.RIDGES}
    assert maps.select().ridge == max(shares, key=shares.get)
    assert 0.5 < max(shares.values()) < 1


def test_an_items_own_row_does_not_explain_it(rows):
    """Rows that are noise cannot be explained, however small the penalty is."""
    noise = np.random.default_rng(2).normal(size=rows[0].shape).astype(np.float32)
    assert TextMaps(TEXTS, (noise, rows[1])).explained(Settings(0.3)) < 0


@pytest.mark.parametrize("texts", [["a", "b"], ["same"] * 2, ["", ""]])
def test_small_and_degenerate_tables(texts):
    vectors, biases = np.eye(2, dtype=np.float32), np.ones(2, np.float32)
    for trained in (None, np.zeros(2, bool), np.array([True, False])):
        maps = TextMaps(texts, (vectors, biases), trained)
        found = maps.fit(maps.select())(["same"])
        assert np.isfinite(np.append(*found)).all()
    assert np.allclose(fit(texts, vectors, biases, 1.0)(["?"])[1], 1)


def test_the_vocabulary_has_the_most_frequent_features(monkeypatch):
    monkeypatch.setattr(text_map, "FEATURES", 2)
    texts = ["x y", "x z", "x y", "y q", "once"]
    rows = np.zeros((5, 1), np.float32), np.zeros(5, np.float32)
    keys = TextMaps(texts, rows).keys
    want = {key for name in "xy" for key in text_map.keys_of(name)}
    assert set(keys.tolist()) == want and (np.diff(keys.astype(object)) > 0).all()
