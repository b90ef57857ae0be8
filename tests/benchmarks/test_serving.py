"""The measures of benchmarks/diversity.py, and the requests of benchmarks/serving_http.py."""

import json

import numpy as np
import pytest

from benchmarks import diversity, serving_http


def test_the_distance_within_a_list_is_the_mean_over_its_pairs():
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[a] @ unit[b] for a in range(6) for b in range(a)]
    assert diversity.distance(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert diversity.distance(np.ones((3, 2), np.float32)) == pytest.approx(0, abs=1e-6)


def test_ndcg_by_hand():
    found = np.array([5, 3, 8])
    assert diversity.ndcg(found, {5}) == 1
    assert diversity.ndcg(found, {3, 9}) == pytest.approx(1 / np.log2(3) / (1 + 1 / np.log2(3)))
    assert diversity.ndcg(found, {1}) == 0


def test_requests_are_whole_and_name_known_items():
    items = list(range(100, 130))
    for request in serving_http.requests_of(items, length=10, k=5)[:20]:
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        asked = json.loads(body)
        assert asked["k"] == 5 and len(set(asked["history"]) & set(items)) == 10
