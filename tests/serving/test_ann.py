"""The format 'ann': a faiss index whose lists are those of brute force."""

from __future__ import annotations

import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from helpers.exports import WITHOUT_KD_JAX, given, program_in_docs
from helpers.students import bundle_of
from helpers.toy import refused
from kd_jax.serving import exporters
from kd_jax.serving.exporters import ann

ITEMS = 3000


def clustered(seed=0, items=ITEMS, width=16):
    """A bundle of items in 40 groups, with biases as different as the products of the vectors."""
    bundle, rng = given(width, items), np.random.default_rng(seed)
    centres = rng.normal(size=(40, width))
    vectors = bundle.vectors
    vectors.items[:] = centres[rng.integers(40, size=items)] + 0.3 * rng.normal(
        size=vectors.items.shape
    )
    vectors.bias[:] = 2 * rng.normal(size=items)
    return bundle


def brute_force(vectors, k):
    """The k best items of each user, best first."""
    scores = np.float64(vectors.contexts) @ np.float64(vectors.items).T + vectors.bias
    return np.argsort(-scores, axis=1)[:, :k], -np.sort(-scores, axis=1)[:, :k]


def test_the_loader_in_the_docs_finds_the_items_of_brute_force(tmp_path, monkeypatch):
    """It runs in a process that cannot import kd_jax."""
    bundle = clustered()
    # The data set has 24 items; the ids of the others are not needed here.
    (tmp_path / "export").mkdir()
    ann.write(bundle, tmp_path / "export")
    description = json.loads((tmp_path / "export/items.json").read_text())
    assert description["items"] == bundle.dataset.item_ids.to_list()
    description["items"] = [f"item {place}" for place in range(ITEMS)]
    (tmp_path / "export/items.json").write_text(json.dumps(description))
    np.save(tmp_path / "users.npy", bundle.vectors.contexts)
    before = "import numpy as np\nusers = np.load('users.npy')\n"
    after = "\njson.dump([lists, scores.tolist()], open('found.json', 'w'))\n"
    program = WITHOUT_KD_JAX + before + program_in_docs(ann.INDEX) + after
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    lists, scores = json.loads((tmp_path / "found.json").read_text())
    best, values = brute_force(bundle.vectors, 10)
    places = np.array([[int(name.split()[1]) for name in row] for row in lists])
    recall = np.mean([len({*row} & {*true}) / 10 for row, true in zip(places, best, strict=True)])
    assert recall == pytest.approx(description["recall@10"])
    assert recall >= 0.99
    assert 1 <= description["probes"] < description["lists"] == round(np.sqrt(ITEMS))
    np.testing.assert_allclose(np.array(scores)[places == best], values[places == best], rtol=1e-4)


def test_all_lists_are_exact_and_more_recall_needs_more_probes(tmp_path):
    vectors = clustered().vectors
    items = ann.with_bias(vectors.items, vectors.bias)
    queries = ann.as_queries(vectors.contexts)
    index = ann.build(items, 30)
    probes, recalls = [], []
    for recall in (0.3, 0.9, 1.0):
        recalls.append(ann.tune(index, items, queries, recall))
        probes.append(index.nprobe)
        assert recalls[-1] >= recall
    assert probes == sorted(probes) and probes[0] < probes[-1]
    index.nprobe = 30
    best, values = brute_force(vectors, 10)
    scores, places = index.search(queries, 10)
    np.testing.assert_array_equal(places, best)
    np.testing.assert_allclose(scores, values, rtol=1e-4, atol=1e-5)


def test_a_recall_is_the_share_of_the_best_that_was_found():
    best = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 9, 1], [-1, 10, 5, 11]])
    assert ann.recall_of(found, best) == 4 / 8


@pytest.mark.parametrize("items", [1, 5, 24])
def test_few_items_are_in_one_list_without_a_warning(items, tmp_path, capfd):
    bundle = given(5, items)
    ann.write(bundle, tmp_path)
    index = faiss.read_index(str(tmp_path / ann.INDEX))
    assert (index.nlist, index.nprobe, index.ntotal) == (1, 1, items)
    scores, places = index.search(ann.as_queries(bundle.vectors.contexts), items)
    best, values = brute_force(bundle.vectors, items)
    np.testing.assert_array_equal(places, best)
    np.testing.assert_allclose(scores, values, rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_the_same_vectors_make_the_same_lists():
    vectors = clustered().vectors
    items = ann.with_bias(vectors.items, vectors.bias)
    first, second = (ann.build(items) for _ in range(2))
    for queries in (ann.as_queries(vectors.contexts),):
        np.testing.assert_array_equal(first.search(queries, 10)[1], second.search(queries, 10)[1])


@pytest.mark.parametrize("part", ["contexts", "items", "bias"])
def test_vectors_that_are_not_finite_are_refused(part, tmp_path):
    bundle = given(5)
    getattr(bundle.vectors, part)[2] = np.inf
    refused(lambda: ann.write(bundle, tmp_path), str(tmp_path / ann.INDEX), "not finite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "fragment"),
    [
        ({"recall": 0.0}, "export.ann.recall=0.0"),
        ({"recall": 1.1}, "export.ann.recall=1.1"),
        ({"lists": -1}, "export.ann.lists=-1"),
        ({"lists": 2.5}, "export.ann.lists=2.5"),
    ],
)
def test_values_out_of_range_are_refused(section, fragment):
    refused(lambda: exporters.exporter_section("ann", section), fragment)


def test_a_missing_package_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused(
        lambda: exporters.write(bundle_of("mf"), tmp_path / "export", ("runtime", "ann")),
        "export.formats: 'ann' needs the package faiss-cpu",
        "pip install 'kd_jax[ann]'",
    )
    assert not (tmp_path / "export").exists()
