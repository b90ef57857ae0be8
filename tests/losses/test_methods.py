"""Relations between losses, invariances, and hyper-parameters that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.terms import term
from helpers.toy import refused
from kd_jax.core.scores import Factors
from kd_jax.distillation.term import Limits, check, of_section
from kd_jax.losses import LOSSES
from kd_jax.losses.dense import per_row
from kd_jax.losses.standardised_kl import of_factors, of_logits

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(RNG.normal(size=(4, 12)) * 2, jnp.float32) for _ in range(2))
TARGET = jnp.asarray([[0], [3], [5], [11]])


def row(name, apart=None, student=STUDENT, teacher=TEACHER, temperature=1.0, **hyper):
    def loss(student, teacher, apart):
        return per_row(LOSSES[name](**hyper), student, teacher, temperature, apart=apart)

    return jax.jit(loss)(student, teacher, apart)


def of_vectors(name, student, teacher, share, auxiliary=None, key=None, **hyper):
    return jax.jit(LOSSES[name](**hyper).value)(student, teacher, auxiliary or {}, share, key)


def best(k):
    return jnp.argsort(-TEACHER, axis=1)[:, :k]


def test_the_generalised_divergence_has_its_limits():
    half = row("generalised_js", beta=0.5)
    np.testing.assert_allclose(half, row("js"), rtol=1e-5)
    mild = {"student": 0.2 * STUDENT, "teacher": 0.2 * TEACHER}
    for beta, limit in ((1e-3, "kl"), (1 - 1e-3, "reverse_kl")):
        near = row("generalised_js", beta=beta, **mild) / min(beta, 1 - beta)
        np.testing.assert_allclose(near, row(limit, **mild), rtol=0.02)
    far = row("generalised_js", student=STUDENT.at[:, 0].add(80), beta=0.3)
    assert np.all(far <= -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) + 1e-5)


def test_the_decoupled_parts_sum_to_the_divergence():
    share = jnp.take_along_axis(jax.nn.softmax(TEACHER), TARGET, 1)[:, 0]
    parts = [row("dkd", TARGET, alpha=alpha, beta=1 - alpha) for alpha in (1.0, 0.0)]
    np.testing.assert_allclose(parts[0] + (1 - share) * parts[1], row("kl"), rtol=1e-5)
    # Without a clicked item all items are others.
    nothing = row("dkd", jnp.full((4, 2), -1))
    np.testing.assert_allclose(nothing, row("kl"), rtol=1e-5)


def test_one_class_for_the_rest_never_adds_to_the_divergence():
    found = [row("topk_kl", best(k), k=k) for k in (1, 4, 8, 11)]
    for less, more in zip(found, found[1:], strict=False):
        assert np.all(less <= more + 1e-6)
    np.testing.assert_allclose(found[-1], row("kl"), rtol=1e-5)
    moved = STUDENT.at[0, best(4)[0]].add(1.0)  # the others' own shares do not matter
    others = jnp.asarray([i for i in range(12) if i not in np.asarray(best(4))[0]])
    again = moved.at[0, others].set(jax.nn.logsumexp(moved[0, others]) - jnp.log(8.0))
    both = [row("topk_kl", best(4), student=x, k=4)[0] for x in (moved, again)]
    assert float(both[0]) == pytest.approx(float(both[1]), rel=1e-5)


def test_large_differences_keep_the_losses_of_items_apart_finite():
    sure = TEACHER.at[jnp.arange(4), TARGET[:, 0]].add(200.0)
    for name, apart, hyper in (("dkd", TARGET, {}), ("topk_kl", best(3), {"k": 3})):
        for student, teacher in ((STUDENT, sure), (sure, TEACHER), (-sure, sure)):
            value, slope = jax.value_and_grad(
                lambda x, t=teacher, n=name, a=apart, h=hyper: row(n, a, x, t, **h).sum()
            )(student)
            assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_standardised_logits_have_no_scale_and_no_mean():
    found = row_of_standardised(STUDENT, TEACHER)
    moved = row_of_standardised(3 * STUDENT - 5, 0.2 * TEACHER + 7)
    np.testing.assert_allclose(moved, found, rtol=1e-4)
    assert np.all(found > 0.01)
    same = row_of_standardised(2 * TEACHER + 1, TEACHER)
    np.testing.assert_allclose(same, 0.0, atol=1e-5)


def row_of_standardised(student, teacher):
    return row("standardised_kl", None, of_logits(student, None), of_logits(teacher, None))


@pytest.mark.parametrize("warm", [False, True])
def test_standardised_factors_give_the_logits_over_their_deviation(warm):
    parts = RNG.normal(size=(5, 3)), RNG.normal(size=(20, 3)), RNG.normal(size=20)
    factors = Factors(*(jnp.asarray(x, jnp.float32) for x in parts))
    logits = np.asarray(factors.dense(), np.float64)
    where = np.arange(20) % 3 > 0 if warm else np.ones(20, bool)
    wanted = logits / logits[:, where].std(1, keepdims=True)
    # Rows at the end of a table that is split over a mesh are no items.
    split = factors._replace(
        vectors=jnp.pad(factors.vectors, ((0, 4), (0, 0))),
        bias=jnp.pad(factors.bias, (0, 4), constant_values=-1e30),
    )
    for given in (factors, split):
        found = of_factors(given, 20, jnp.asarray(where) if warm else None).dense()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    dense = of_logits(factors.dense(), jnp.asarray(where))
    centred = wanted - wanted[:, where].mean(1, keepdims=True)
    np.testing.assert_allclose(dense, centred, rtol=1e-4, atol=1e-5)


def test_relations_do_not_change_with_what_they_do_not_read():
    student, teacher = (jnp.asarray(RNG.normal(size=(7, d)), jnp.float32) for d in (4, 6))
    share = jnp.full(7, 1 / 7)
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    moved = 2.5 * student @ jnp.asarray(turn, jnp.float32)

    def value(name, vectors, share=share):
        return float(jnp.sum(share * of_vectors(name, vectors, teacher, share)))

    for name in ("rkd", "ftd"):
        assert value(name, moved) == pytest.approx(value(name, student), rel=1e-4)
        np.testing.assert_allclose(of_vectors(name, 3 * teacher, teacher, share), 0.0, atol=1e-6)
        # A vector of share 0 is as if it were not there.
        few = jnp.asarray([1, 1, 1, 1, 1, 0, 0]) / 5
        fifth = jnp.full(5, 0.2)
        less = jnp.sum(of_vectors(name, student[:5], teacher[:5], fifth) * fifth)
        assert value(name, student, few) == pytest.approx(float(less), rel=1e-4)
    shifted = student + 3.0
    assert value("rkd", shifted) == pytest.approx(value("rkd", student), rel=1e-4)


def test_the_topology_of_one_group_is_all_pairs_and_the_mean():
    student, teacher = (jnp.asarray(RNG.normal(size=(7, d)), jnp.float32) for d in (4, 6))
    one, key, share = {"groups": 1, "alpha": 1.0}, jax.random.key(0), jnp.full(7, 1 / 7)
    auxiliary = LOSSES["htd"](**one).auxiliary(4, 6, key)
    found = jnp.mean(of_vectors("htd", student, teacher, share, auxiliary, key, **one))
    units = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher)]
    means = [x.mean(0) / jnp.linalg.norm(x.mean(0)) for x in (student, teacher)]
    gap = units[0] @ means[0] - units[1] @ means[1]
    pairs = jnp.mean(of_vectors("ftd", student, teacher, share))
    assert float(found) == pytest.approx(float(pairs + jnp.mean(gap**2)), rel=1e-5)
    # A vector of share 0 is as if it were not there.
    few = jnp.asarray([1, 1, 1, 1, 1, 0, 0]) / 5
    three = {"groups": 3, "alpha": 1.0}
    auxiliary = LOSSES["htd"](**three).auxiliary(4, 6, key)
    some, less = (
        float(jnp.sum(w * of_vectors("htd", student[:n], teacher[:n], w, auxiliary, key, **three)))
        for n, w in ((7, few), (5, jnp.full(5, 0.2)))
    )
    assert some == pytest.approx(less, rel=1e-4)


def test_equal_vectors_have_finite_gradients():
    vectors = jnp.zeros((5, 3)).at[3:].set(1.0)
    teacher = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    share, key = jnp.full(5, 0.2), jax.random.key(0)
    auxiliary = LOSSES["htd"]().auxiliary(3, 4, key)
    for name, *more in (("rkd",), ("ftd",), ("htd", auxiliary, key)):
        slope = jax.grad(
            lambda x, name=name, more=more: of_vectors(name, x, teacher, share, *more).sum()
        )(vectors)
        assert np.all(np.isfinite(slope)) and np.abs(slope).max() < 100


@pytest.mark.parametrize(
    ("name", "fields", "fragment"),
    [
        ("generalised_js", {"beta": 0.0}, "beta=0.0 must be between 0 and 1"),
        ("generalised_js", {"beta": float("nan")}, "beta=nan"),
        ("dkd", {"alpha": -1.0}, "alpha=-1.0"),
        ("dkd", {"alpha": 0.0, "beta": 0.0}, "more than 0"),
        ("topk_kl", {"k": 0}, "k=0"),
        ("rkd", {"drawn": 2}, "drawn=2"),
        ("rkd", {"angle": -1.0}, "angle=-1.0"),
        ("rkd", {"angle": 0.0, "distance": 0.0}, "nothing to compare"),
        ("ftd", {"drawn": 1}, "drawn=1"),
        ("htd", {"groups": 0}, "groups=0"),
        ("htd", {"alpha": 1.5}, "alpha=1.5"),
        ("htd", {"gumbel": 0.0}, "gumbel=0.0"),
    ],
)
def test_bad_hyper_parameters_are_refused(name, fields, fragment):
    refused(lambda: of_section("distill.terms.soft", {"loss": name, **fields}), fragment)


def test_what_a_catalogue_or_a_sample_cannot_give_is_refused():
    where = "distill.terms"
    some = term("topk_kl", hyper={"k": 20})
    refused(lambda: check((some,), Limits(True, True, 20), where), "k=20 leaves none of the 20")
    few = term("topk_kl", hyper={"k": 5}, items="sampled", negatives=6, top=4)
    refused(lambda: check((few,), Limits(True, True, 50), where), "distill.top=4")
    enough = term("topk_kl", hyper={"k": 5}, items="sampled", negatives=6, top=5)
    check((enough,), Limits(True, True, 50), where)
    assert (some.num_top, enough.num_top, term("dkd").num_top) == (20, 5, 0)
