"""New items in an export, from their texts or their vectors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kd_jax.core.errors import InputError
from kd_jax.runtime import Runtime, store
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.runtime.text_map import TextMap, keys_of

ITEMS, D = 5, 3
TEXTS = ["a red film", "a film nobody knows"]


@pytest.fixture
def runtime():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    keys = np.array(sorted(keys_of("a red film")), np.uint64)
    text_map = TextMap(keys, 1 + draw(len(keys)) ** 2, draw(len(keys), D + 1), draw(D + 1))
    export = store.Export(
        description={"student": "mf", "dataset": {"name": "toy", "checksum": "x"}},
        user_ids=["ann"],
        item_ids=list(range(ITEMS)),
        titles=[f"Film {n}" for n in range(ITEMS)],
        item_vectors=draw(ITEMS, D),
        item_bias=draw(ITEMS),
        user_vectors=draw(1, D),
        indptr=np.array([0, 1]),
        items=np.zeros(1, np.int32),
        context=HistoryMap(draw(D, D), draw(D), 3.0, 0.5),
        text_map=text_map,
    )
    return Runtime(export)


def test_items_get_the_rows_of_their_texts_and_are_recommended(runtime):
    grown = runtime.add_items([70, 80], ["Seventy", "Eighty"], texts=TEXTS)
    vectors, biases = runtime.export.text_map(TEXTS)
    assert (grown.export.item_vectors[ITEMS:] == vectors).all()
    assert (grown.export.item_bias[ITEMS:] == biases).all()
    assert (grown.export.item_vectors[:ITEMS] == runtime.export.item_vectors).all()
    scores = {row.item: row.score for row in grown.recommend("ann", k=9)}
    want = runtime.export.user_vectors[0] @ vectors.T + biases
    assert [scores[70], scores[80]] == pytest.approx(want.tolist(), rel=1e-5)
    again = grown.add_items([90], ["Ninety"], texts=TEXTS[:1])
    assert (again.export.item_vectors[-1] == vectors[0]).all()
    assert runtime.num_items == ITEMS


def test_the_file_holds_the_map_and_files_without_one_are_read(runtime, tmp_path):
    store.write(tmp_path / "new", runtime.export)
    read = store.read(tmp_path / "new").text_map
    for field in dataclasses.fields(TextMap):
        want = getattr(runtime.export.text_map, field.name)
        found = getattr(read, field.name)
        assert found.dtype == want.dtype and (found == want).all()
    old = dataclasses.replace(runtime.export, text_map=None)
    store.write(tmp_path / "old", old)
    found = Runtime(store.read(tmp_path / "old"))
    assert found.export.text_map is None
    assert found.add_items([9], ["New"], np.ones((1, D)), np.ones(1)).num_items == ITEMS + 1
    with pytest.raises(InputError, match="no text map; run the stage 'export' again"):
        found.add_items([9], ["New"], texts=["a film"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give texts, or both"),
        ({"vectors": np.ones((1, D))}, "give texts, or both"),
        ({"texts": ["a"], "biases": np.ones(1)}, "not both"),
        ({"texts": "a film"}, r"must be a list; use \['a film'\]"),
        ({"texts": [" \n"]}, "text 0 is"),
        ({"texts": [None]}, "text 0 is 'None'"),
        ({"texts": ["a", "b"]}, "1 items need as many"),
    ],
)
def test_bad_input_is_refused(runtime, given, message):
    with pytest.raises(InputError, match=message):
        runtime.add_items([9], ["New"], **given)
