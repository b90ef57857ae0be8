"""Vectors in fewer bits and with fewer dimensions: their quality and their bytes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.training import HISTORY, student_of, task_of
from kd_jax.data.splits import TEST
from kd_jax.devices import sharding
from kd_jax.evaluation.evaluator import chosen_users, evaluate_rank
from kd_jax.experiment import roles, smaller
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.trained import TrainedModel
from kd_jax.models.scorer import split
from kd_jax.runtime import quantized

SCALE = 3.0 ** -np.arange(6)[None]


def vectors(seed=2):
    rng = np.random.default_rng(seed)
    contexts, items = (
        (rng.normal(size=(rows, 6)) * SCALE + 1).astype(np.float32) for rows in (30, 20)
    )
    return smaller.Vectors(contexts, items, rng.normal(size=20).astype(np.float32))


def scores(found):
    return found.contexts @ found.items.T + found.bias


def student_with_notes(name):
    """A student with random parameters in an experiment that is its task alone; what is logged."""
    task, notes = task_of(False), []
    graphdef, params, constants = split(student_of(task, name))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(4)
    leaves = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    best = jax.tree.unflatten(tree, leaves), constants
    log = SimpleNamespace(note=notes.append)
    mesh = sharding.make_mesh(1, 1)
    found: Any = SimpleNamespace(task=task, dataset=task.dataset, log=log, mesh=mesh)
    parts = ModelParts(graphdef, best[0], constants, "user", HISTORY)
    return TrainedModel(found, roles.plain_student(), 0, parts, best, 0), notes


def test_the_cut_is_the_best_of_its_rank_and_exact_at_full_rank():
    rng = np.random.default_rng(2)
    contexts, items = (rng.normal(size=(rows, 6)) * SCALE for rows in (30, 20))
    full = contexts @ items.T
    values = np.linalg.svd(full, compute_uv=False)
    errors = []
    for dim in range(1, 7):
        users, rows = smaller.cut(contexts, items, dim)
        assert users.shape == (30, dim) and rows.shape == (20, dim)
        errors.append(np.linalg.norm(users @ rows.T - full))
        assert errors[-1] == pytest.approx(np.sqrt(np.sum(values[dim:] ** 2)), rel=1e-3, abs=1e-5)
    assert all(more > less for more, less in zip(errors, errors[1:], strict=False))
    users, rows = smaller.cut(contexts, items, 99)
    assert users.shape == (30, 6)
    few = smaller.cut(contexts[:4], items, 5)  # fewer users than dimensions
    assert few[0].shape == (4, 4)
    np.testing.assert_allclose(few[0] @ few[1].T, full[:4], atol=1e-4)
    np.testing.assert_allclose(users @ rows.T, full, atol=1e-4)


def test_cut_vectors_keep_the_mean_context_in_the_biases():
    found = vectors()
    whole = smaller.cut_vectors(found, 6)
    np.testing.assert_allclose(scores(whole), scores(found), atol=1e-4)
    half = smaller.cut_vectors(found, 3)
    assert half.items.shape == (20, 6) and not half.items[:, 3:].any()
    average = np.broadcast_to(found.contexts.mean(0), found.contexts.shape)
    same = scores(found._replace(contexts=average))  # what no dimension can explain
    error, spread = np.abs(scores(half) - scores(found)).max(), np.abs(same - scores(found)).max()
    assert 0 < error < 0.1 * spread


def test_packed_vectors_are_what_a_reader_decodes():
    found = vectors()
    small = smaller.packed(found, 4)
    four = quantized.unpack(quantized.pack(found.items, 4))
    eight = quantized.unpack(quantized.pack(found.contexts, 8))  # users have at least 8 bits
    np.testing.assert_array_equal(small.items, four)
    np.testing.assert_array_equal(small.contexts, eight)
    np.testing.assert_array_equal(small.bias, found.bias.astype(np.float16))


@pytest.mark.parametrize("name", ["mf", "sasrec"])
def test_every_size_is_judged_on_the_test_users(name):
    student, _ = student_with_notes(name)
    data = student.experiment.dataset
    found = smaller.sizes(student, 0.4321)
    users, items = data.num_users if name == "mf" else 0, data.num_items
    rows = {(row["bits"], row["dim"]): row for row in found["sizes"]}
    dim = found["sizes"][0]["dim"]
    assert list(rows) == [
        (32, dim),
        *((b, dim) for b in (16, 8, 4)),
        (32, dim // 2),
        (32, dim // 4),
    ]
    assert rows[32, dim]["ndcg@10"] == 0.4321  # all users are judged: the model's own
    assert rows[32, dim]["bytes"] == 4 * (dim * (users + items) + items)
    assert rows[16, dim]["bytes"] == 2 * (dim * (users + items) + items)
    assert rows[8, dim]["bytes"] == (dim + 2) * (users + items) + 2 * items
    assert rows[4, dim]["bytes"] == (dim + 2) * users + (dim // 2 + 4) * items
    assert rows[32, dim // 4]["bytes"] == 4 * (dim // 4 * (users + items) + items)
    judged = np.flatnonzero(np.diff(data.targets(TEST)[0]) > 0)
    assert found["users"] == len(judged)
    kept = smaller._vectors(student, judged)
    for size, small in (
        ((4, dim), smaller.packed(kept, 4)),
        ((32, dim // 4), smaller.cut_vectors(kept, dim // 4)),
    ):
        table = np.zeros((data.num_users, items), np.float32)
        table[judged] = scores(small)
        options = {"metrics": ("ndcg",), "ks": (10,)}
        want = evaluate_rank(lambda rows, of=table: jnp.asarray(of[rows]), data, TEST, **options)
        assert rows[size]["ndcg@10"] == pytest.approx(want.metrics["ndcg@10"], abs=1e-6)


def test_of_many_users_a_part_is_judged(monkeypatch):
    monkeypatch.setattr(smaller, "PAIRS", 1)
    monkeypatch.setattr(smaller, "FEWEST", 7)
    student, _ = student_with_notes("mf")
    found = smaller.sizes(student, 2.0)
    assert found["users"] == 7
    assert 0 <= found["sizes"][0]["ndcg@10"] <= 1  # that of these users, not of all
    users = np.arange(50)
    chosen = chosen_users(users, 7)
    assert len(set(chosen.tolist())) == 7 and chosen.tolist() == sorted(chosen.tolist())
    np.testing.assert_array_equal(chosen, chosen_users(users, 7))
    assert chosen_users(users, 0) is users and chosen_users(users, 50) is users


def test_vectors_beyond_float16_have_no_fewer_bits():
    student, notes = student_with_notes("mf")
    params, constants = student.best
    best = params | {"bias": params["bias"].at[0].set(1e6)}, constants
    found = smaller.sizes(dataclasses.replace(student, best=best), 0.1)
    assert {row["bits"] for row in found["sizes"]} == {32}
    assert len(notes) == 3 and all("65504" in note for note in notes)


def test_scores_of_a_hidden_layer_have_no_vectors():
    student, _ = student_with_notes("mlp")
    assert smaller.sizes(student, 0.1) == {}
