"""Teachers as the train step takes them: what is taken from their logits, and how they share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from helpers.terms import loss_of, term
from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.teachers import (
    cached_teacher,
    debiased,
    online_teacher,
    precomputed,
    shared_by_target,
    with_top_items,
)
from kd_jax.models.scorer import split
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.spec import TeacherSpec

B, P, N, D = 3, 2, 30, 4
RNG = np.random.default_rng(0)
BIAS = RNG.normal(size=N).astype(np.float32) * 2
CONTEXTS = RNG.normal(size=(B, P, D)).astype(np.float32)
ITEMS = RNG.normal(size=(N, D)).astype(np.float32)


def cached(folder):
    """Labels of B examples as they are on disk."""
    batch = {"row": np.arange(B)}

    class Rows:
        size = B

        def gather(self, rows):
            return {"row": np.asarray(rows), "history": np.zeros((len(rows), P), np.int32)}

    labeller = label_cache.Labeller(
        {"items": ITEMS, "bias": BIAS}, lambda batch: {"contexts": CONTEXTS[batch["row"]]}
    )
    label_cache.write(folder, labeller, Rows(), batch_size=B)
    place = np.broadcast_to(np.arange(P), (B, P))
    return cached_teacher(folder), {"row": batch["row"][:, None] + 0 * place, "place": place}


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_kl_of_a_debiased_teacher_is_that_of_its_logits_less_the_bias(share, tmp_path):
    teacher, rows = cached(tmp_path)
    student = Factors(
        *(jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((B, P, D), (N, D), (N,)))
    )
    batch = {
        "targets": jnp.zeros((B, P, 1), jnp.int32),
        "target_weights": jnp.ones((B, P, 1)),
        "weights": jnp.ones((B, P)),
    }
    found = debiased(teacher, share)
    soft = {"": found.scores(found.arrays, rows)}
    total, _ = loss_of((term("kl", 1.0, 2.0),), student, batch, soft, None, jnp.zeros(()))
    logits = CONTEXTS @ ITEMS.T + (1 - share) * BIAS
    p, q = (log_softmax(np.asarray(x, np.float64) / 2, -1) for x in (logits, student.dense()))
    assert float(total) == pytest.approx(4 * np.mean(np.sum(np.exp(p) * (p - q), -1)), rel=1e-5)
    np.testing.assert_array_equal(found.bias(), BIAS)  # where students may start
    best = with_top_items(found, 5).scores(with_top_items(found, 5).arrays, rows).scores.top
    np.testing.assert_array_equal(best, np.argsort(-logits, -1)[..., :5])


def labels_of_one_context(folder, width):
    """Cached labels of B examples of one context each, with weights."""
    arrays = {
        "contexts": RNG.normal(size=(B, 1, width)).astype(np.float32),
        "weights": np.float32([[1], [0.5], [2]]),
    }

    class Rows:
        size = B

        def gather(self, rows):
            return {"row": np.asarray(rows)}

    labeller = label_cache.Labeller(
        {"items": RNG.normal(size=(N, width)).astype(np.float32), "bias": BIAS},
        lambda batch: {name: values[batch["row"]] for name, values in arrays.items()},
    )
    label_cache.write(folder, labeller, Rows(), batch_size=B)
    return cached_teacher(folder)


FITS = 4 * B * N


@pytest.mark.parametrize(
    ("losses", "width", "budget", "wanted"),
    [
        ((term("kl"), term("dkd", hyper={"alpha": 0.0})), 256, FITS, True),
        ((term("kl"),), 255, FITS, False),  # little would be gained
        ((term("kl"),), 256, FITS - 1, False),
        ((term("kl"), term("topk_kl", hyper={"k": 2})), 256, FITS, False),  # reads its best items
        ((term("standardised_kl"),), 256, FITS, False),
        ((term("item_matching"),), 256, FITS, False),
        ((term("kl", items="sampled", negatives=4),), 256, FITS, False),
    ],
)
def test_logits_are_computed_once_where_they_fit_and_nothing_else_is_read(
    losses, width, budget, wanted, tmp_path
):
    teacher = labels_of_one_context(tmp_path, width)
    found = precomputed({"": teacher}, losses, budget)[""]
    assert ("logits" in found.arrays) == wanted
    if not wanted:
        assert found is teacher
        return
    rows = {"row": np.asarray([2, 0, 1])}
    want, have = (x.scores(x.arrays, rows) for x in (teacher, found))
    np.testing.assert_allclose(have.scores, want.scores.dense(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(have.weights, want.weights)
    np.testing.assert_array_equal(found.bias(), BIAS)
    student = Factors(
        *(jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((B, 1, D), (N, D), (N,)))
    )
    batch = {
        "targets": jnp.asarray(RNG.integers(0, N, (B, 1, 2)), jnp.int32),
        "target_weights": jnp.ones((B, 1, 2)),
        "weights": jnp.ones((B, 1)),
    }
    totals = [float(loss_of(losses, student, batch, {"": soft})[0]) for soft in (want, have)]
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


def test_an_online_teacher_is_debiased_as_a_cached_one():
    spec = TeacherSpec(N, BIAS, None, item_features="id", dim=D, heads=2, history=P)
    teacher = online_teacher(*split(BiEncoder(spec, rngs=nnx.Rngs(0))), example_kind="all")
    batch = {"history": jnp.asarray(RNG.integers(0, N, (B, P)), jnp.int32)}
    found = debiased(teacher, 0.4)
    want, have = (x.scores(x.arrays, batch).scores for x in (teacher, found))
    np.testing.assert_array_equal(have.contexts, want.contexts)
    np.testing.assert_allclose(have.bias, 0.6 * BIAS, rtol=1e-6)
    np.testing.assert_array_equal(found.bias(), BIAS)


def test_weights_by_target_are_the_geometric_mean_of_its_probabilities():
    spec = TeacherSpec(N, BIAS, None, item_features="id", dim=D, heads=2, history=P)
    model = split(BiEncoder(spec, rngs=nnx.Rngs(0)))
    targets = RNG.integers(0, N, (B, P, 2)).astype(np.int32)
    targets[0, 0] = (4, PAD)
    batch = {
        "history": RNG.integers(0, N, (B, P)).astype(np.int32),
        "targets": targets,
        "target_weights": np.broadcast_to(np.float32([1, 3]), targets.shape),
    }
    labeller = labellers.of_model(*model, example_kind="all", confidence="target")
    found = labeller.label(batch)
    logits = np.asarray(found["contexts"], np.float64) @ labeller.shared["items"].T
    log_p = log_softmax(logits + labeller.shared["bias"], -1)
    for place in np.ndindex(B, P):
        one, other = log_p[place][targets[place]]
        mean = one if place == (0, 0) else (one + 3 * other) / 4
        assert found["weights"][place] == pytest.approx(np.exp(mean), rel=1e-4)


def test_teachers_share_a_position_by_the_probability_of_its_target(tmp_path):
    teacher, rows = cached(tmp_path)
    weights = [np.float32([[0.2, 0.1], [0.3, 1e-30], [0.5, 1.0]]), np.full((B, P), 0.1, np.float32)]
    named = {
        name: dataclasses.replace(teacher, arrays=teacher.arrays | {"weights": each.ravel()})
        for name, each in zip("ab", weights, strict=True)
    }
    found = shared_by_target(named)
    shares = [np.asarray(x.scores(x.arrays, rows).weights) for x in found.values()]
    np.testing.assert_allclose(shares[0], weights[0] / (weights[0] + 0.1), rtol=1e-6)
    np.testing.assert_allclose(shares[0] + shares[1], 1.0, rtol=1e-6)
    alone = shared_by_target({"a": named["a"]})["a"]
    np.testing.assert_array_equal(alone.scores(alone.arrays, rows).weights, np.ones((B, P)))
