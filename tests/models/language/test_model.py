"""A language model with its tokenizer: what its checksum and its caches depend on."""

import numpy as np

from kd_jax.models.language.model import LanguageModel, LanguageModelSpec

TEXTS = ["film 1 drama", "film 2 2 western", "film 1 drama comedy"]


def model(world, cache):
    spec = LanguageModelSpec(
        weights=str(world / "bert"),
        backend="native",
        pooling=None,
        normalize=None,
        max_tokens=4,
        prompt=None,
        train="head",
        top_n=1,
        lora_rank=1,
        lora_targets=(),
        dtype="float32",
        remat=False,
    )
    return LanguageModel(spec, cache)


def test_the_checksum_does_not_depend_on_what_was_encoded_before(world, tmp_path):
    used, fresh = model(world, tmp_path / "a"), model(world, tmp_path / "b")
    used.texts("text", TEXTS)
    assert used.problems(TEXTS)
    assert used.checksum == fresh.checksum


def test_texts_are_tokenized_once(world, tmp_path):
    lm = model(world, tmp_path)
    for _ in range(2):
        lm.texts("text", TEXTS)
        lm.problems(TEXTS)
    assert len(list(tmp_path.glob("tokens-*"))) == 1


def test_a_model_with_another_cache_gives_the_same_vectors(world, tmp_path):
    lm = model(world, tmp_path / "a")
    other = lm.with_cache(tmp_path / "b")
    found, expected = (one.texts("text", TEXTS).vectors for one in (other, lm))
    np.testing.assert_array_equal(found, expected)
    assert other.checksum == lm.checksum
    assert len(list((tmp_path / "b").glob("vectors-*.npy"))) == 1
