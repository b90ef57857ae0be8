"""Losses of candidates: value and gradient by definition, limits, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.candidate_oracles import CANDIDATES, HYPER, Row
from helpers.toy import refused
from kd_jax.core.scores import Factors
from kd_jax.core.tiling import NEGATIVE
from kd_jax.distillation.term import Limits, check, of_section
from kd_jax.losses import LOSSES
from kd_jax.losses.base import CandidateLoss, Candidates, OnPolicyLoss
from kd_jax.losses.candidates import CandidateItems, compared, own_items

R, N = 5, 400
KEY = jax.random.key(3)
names = pytest.mark.parametrize(
    "name", [name for name, kind in LOSSES.items() if issubclass(kind, CandidateLoss)]
)


def candidates_of(loss, seed=0, share=0.8, agree=0.5):
    """Random scores: the teacher's columns are sorted, and so are the student's own."""
    rng = np.random.default_rng(seed)
    own = getattr(loss, "own", 0)
    count = loss.top + own + loss.drawn
    teacher = rng.normal(size=(R, count)) * 2
    teacher[:, : loss.top] = 2 - np.sort(-teacher[:, : loss.top]) * 0.3
    student = agree * teacher + rng.normal(size=(R, count))
    flag = np.zeros((R, count), bool)
    flag[:, loss.top : loss.top + own] = True
    flag[:, : loss.top] = own > 0 and rng.random((R, loss.top)) < 0.4
    valid = rng.random((R, count)) < share
    return Candidates(
        jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32), jnp.asarray(valid),
        loss.top, jnp.asarray(flag), N,
    )  # fmt: skip


def value_of(loss, given, student=None):
    """``loss.value`` as one program."""
    value = jax.jit(lambda scores: loss.value(given._replace(student=scores), KEY))
    return value(given.student if student is None else student)


def values_of(loss, given, student):
    """The loss of each row by definition; ``given`` decides on weights and draws."""
    one = CANDIDATES[next(n for n, kind in LOSSES.items() if type(loss) is kind)](loss, KEY, R)
    arrays = {
        "fixed": given.student, "teacher": given.teacher, "valid": given.valid, "own": given.own,
    }  # fmt: skip
    found = []
    for number in range(R):
        row = Row(
            **{name: np.asarray(values)[number] for name, values in arrays.items()},
            num_top=given.num_top,
            num_items=N,
        )
        found.append(one(number, student[number], row))
    return np.array(found)


@names
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_value_and_gradient_are_those_of_the_definition(name, share):
    loss = LOSSES[name](**HYPER.get(name, {}))
    given = candidates_of(loss, share=share)
    found = value_of(loss, given)
    scores = np.asarray(given.student, np.float64)
    np.testing.assert_allclose(found, values_of(loss, given, scores), rtol=2e-5, atol=1e-6)
    slope = jax.grad(lambda scores: value_of(loss, given, scores).sum())(given.student)
    wanted, step = np.zeros(scores.shape), 1e-5
    for column in range(scores.shape[1]):
        moved = np.zeros(scores.shape)
        moved[:, column] = step
        above, below = (values_of(loss, given, scores + sign * moved) for sign in (1, -1))
        wanted[:, column] = (above - below) / (2 * step)
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted).max() > 1e-3


@names
def test_rows_without_a_candidate_have_loss_and_gradient_zero(name):
    loss = LOSSES[name](**HYPER.get(name, {}))
    given = candidates_of(loss, share=0.0)
    value, slope = jax.value_and_grad(lambda scores: value_of(loss, given, scores).sum())(
        given.student
    )
    assert value == 0
    np.testing.assert_array_equal(slope, 0.0)


def test_a_list_alone_is_the_relaxed_one_without_anything_behind_it():
    one = LOSSES["listmle"](top=9)
    relaxed = LOSSES["rrd"](top=9, interesting=9, drawn=0)
    given = candidates_of(one)
    np.testing.assert_allclose(one.value(given, KEY), relaxed.value(given, KEY), rtol=1e-5)


def test_ranking_distillation_has_no_loss_once_the_student_ranks_as_the_teacher():
    loss = LOSSES["rd"](**HYPER["rd"])
    given = candidates_of(loss)
    above = given.student.at[:, : loss.top].add(100.0)
    assert not np.any(loss.value(given._replace(student=above), KEY))
    alike = given._replace(student=jnp.zeros(given.student.shape))
    assert np.all(loss.value(alike, KEY) > 0)
    always = dataclasses.replace(loss, mu=0.0)
    assert np.all(always.value(given, KEY) > 0)


def test_correction_has_no_loss_where_both_models_have_one_order():
    loss = LOSSES["dcd"](**HYPER["dcd"])
    given = candidates_of(loss)
    assert np.all(loss.value(given, KEY) > 0)
    same = given._replace(student=3 * given.teacher + 1)
    np.testing.assert_array_equal(loss.value(same, KEY), 0.0)


def test_the_weight_moves_to_the_shared_items_as_they_become_more():
    loss = LOSSES["rce"](top=6, own=6, drawn=4, beta=2.0)
    given = candidates_of(loss, share=1.0)
    nothing = given._replace(own=given.own.at[:, :6].set(False))
    everything = given._replace(own=given.own.at[:, :6].set(True))
    log_q = jax.nn.log_softmax(given.student, 1)
    p = jax.nn.softmax(given.teacher, 1)
    np.testing.assert_allclose(loss.value(nothing, KEY), -jnp.sum((p * log_q)[:, :6], 1), rtol=1e-5)
    # Own are the six columns behind the teacher's, and the teacher's.
    log_q, log_p = (jax.nn.log_softmax(x[:, :12], 1) for x in (given.student, given.teacher))
    wanted = -(1 - np.exp(-2.0)) * jnp.sum((jnp.exp(log_p) * log_q)[:, :6], 1)
    np.testing.assert_allclose(loss.value(everything, KEY), wanted, rtol=1e-5)


def test_shares_of_importance_are_of_position_confidence_and_consistency():
    kind = LOSSES["dllm2rec"]
    given = candidates_of(kind(top=4, own=3), share=1.0)
    given = given._replace(own=given.own.at[:, :4].set(jnp.asarray([1, 0, 1, 0], bool)))
    cost = jax.nn.softplus(-given.student[:, :4])
    only = {"position": 0.0, "confidence": 0.0, "consistency": 0.0}
    both = kind(top=4, own=3, **(only | {"consistency": 0.7})).value(given, KEY)
    np.testing.assert_allclose(both, (cost[:, 0] + cost[:, 2]) / 2, rtol=1e-5)
    sure = kind(top=4, own=3, **(only | {"confidence": 2.0})).value(given, KEY)
    np.testing.assert_allclose(
        sure, jnp.sum(jax.nn.softmax(given.teacher[:, :4], 1) * cost, 1), rtol=1e-5
    )
    place = kind(top=4, own=3, rank_scale=1e6, **(only | {"position": 1.0})).value(given, KEY)
    np.testing.assert_allclose(place, cost.mean(1), rtol=1e-4)


def test_a_list_that_has_none_of_the_students_items_teaches_nothing():
    loss = LOSSES["on_policy_kl"](own=5, drawn=3)
    given = candidates_of(loss, share=1.0)
    unlisted = given._replace(teacher=jnp.full_like(given.teacher, NEGATIVE))
    np.testing.assert_array_equal(loss.value(unlisted, KEY), 0.0)
    some = given._replace(teacher=given.teacher.at[:, 2:].set(NEGATIVE))
    log_q = jax.nn.log_softmax(given.student, 1)[:, :2]
    log_p = jax.nn.log_softmax(given.teacher[:, :2], 1)
    wanted = jnp.sum(jnp.exp(log_p) * (log_p - log_q), 1)
    np.testing.assert_allclose(loss.value(some, KEY), wanted, rtol=1e-5)


def test_the_students_own_items_are_those_of_a_sort_and_stand_once():
    rng = np.random.default_rng(0)
    student, teacher = (
        Factors(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((R, 1, 4), (30, 4), 30)))
        for _ in range(2)
    )
    loss = LOSSES["rce"](top=5, own=7, drawn=0)
    own = own_items(loss, student)
    scores = np.asarray(student.dense())[:, 0]
    np.testing.assert_array_equal(own, np.argsort(-scores, axis=1)[:, :7])
    np.testing.assert_array_equal(own_items(loss, student.dense()), own)
    assert own_items(LOSSES["rrd"](), student) is None
    top = jnp.asarray(np.argsort(-np.asarray(teacher.dense()), axis=-1)[..., :5])
    drawn = jnp.asarray([0, 0, 1, 2, 3, 4, 5, 6], jnp.int32)
    found = compared(CandidateItems(top, drawn, 30), student, teacher, None, own)
    assert (found.num_top, found.num_items) == (5, 30)
    items = np.concatenate([top[:, 0], own, np.broadcast_to(drawn, (R, 8))], 1)
    for row in range(R):
        kept = items[row][np.asarray(found.valid)[row]]
        assert len(set(kept)) == len(kept) and set(kept) == set(items[row])
        np.testing.assert_array_equal(found.own[row], np.isin(items[row], own[row]))
    picked = np.take_along_axis(scores, items, 1)
    np.testing.assert_allclose(found.student, picked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "fragment"),
    [
        ("rd", {"top": 0}, "rd: top=0"),
        ("rd", {"mu": -1.0}, "mu=-1.0"),
        ("rd", {"drawn": 0}, "drawn=0"),
        ("rd", {"rank_scale": 0.0}, "rank_scale=0.0"),
        ("listmle", {"top": 1}, "listmle: top=1"),
        ("listmle", {"drawn": 3}, "drawn=3 is not read"),
        ("dcd", {"picked": 0}, "picked=0"),
        ("dcd", {"mu": 0.0}, "mu=0.0"),
        ("rce", {"own": 0}, "own=0"),
        ("rce", {"beta": -0.1}, "beta=-0.1"),
        ("dllm2rec", {"position": -1.0}, "position=-1.0"),
        ("dllm2rec", {"position": 0.0, "confidence": 0.0, "consistency": 0.0}, "more than 0"),
        ("dllm2rec", {"own": 0}, "own=0"),
        ("dllm2rec", {"drawn": 5}, "drawn=5 is not read"),
        ("on_policy_kl", {"own": 0}, "own=0"),
    ],
)
def test_bad_hyper_parameters_are_refused(name, fields, fragment):
    refused(lambda: of_section("distill.terms.soft", {"loss": name, **fields}), fragment)


def test_candidates_that_cannot_be_are_refused_before_training():
    def checked(name, items=N, **fields):
        one = of_section("distill.terms.soft", {"loss": name, **fields})
        return lambda: check((one,), Limits(True, True, items), "distill.terms.soft")

    checked("rce")()
    refused(checked("rce", items=50), "own=100 is more than the 50 items")
    refused(checked("rrd", items=50), "top=100 is more than the 50 items")
    nothing = {"top": 0, "own": 0, "drawn": 0}
    blank = dataclasses.replace(of_section("t", {"loss": "rrd"}), loss=OnPolicyLoss(**nothing))
    limits = Limits(True, True, N)
    refused(lambda: check((blank,), limits, "t"), "top=0 and drawn=0 and own=0 leave no candidate")
