"""The objective: weights, schedules, names, heads, and what is refused before training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.terms import loss_of, term
from helpers.toy import refused
from kd_jax.core.scores import Factors, TeacherScores
from kd_jax.distillation.objective import auxiliary_params
from kd_jax.distillation.schedule import Schedule
from kd_jax.distillation.term import Limits, check, of_section
from kd_jax.losses import LOSSES
from kd_jax.losses.dense import per_row

RNG = np.random.default_rng(0)
B, P, N, D = 4, 2, 11, 3


def factors(width=D):
    parts = RNG.normal(size=(B, P, width)), RNG.normal(size=(N, width)), RNG.normal(size=N)
    return Factors(*(jnp.asarray(part, jnp.float32) for part in parts))


STUDENT, TEACHER = factors(), factors()
BATCH = {
    "targets": jnp.asarray(RNG.integers(0, N, (B, P, 1)), jnp.int32),
    "target_weights": jnp.ones((B, P, 1)),
    "weights": jnp.asarray(RNG.random((B, P)), jnp.float32),
}
TEACHERS = {"": TeacherScores(TEACHER)}


def test_the_mean_weighs_positions_and_ignores_padding():
    logits = jnp.asarray(RNG.normal(size=(2, 2, 4)), jnp.float32)
    targets = jnp.array([[[0], [1]], [[2], [-1]]])
    weights = jnp.array([[1.0, 3.0], [2.0, 0.0]])
    batch = {"targets": targets, "target_weights": jnp.ones((2, 2, 1)), "weights": weights}
    each = np.asarray(per_row(LOSSES["ce"](), logits, (targets, batch["target_weights"])))
    total, means = loss_of((term("ce", 2.0),), logits, batch)
    expected = (each[0, 0] + 3 * each[0, 1] + 2 * each[1, 0]) / 6
    assert means["ce"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(2 * expected, rel=1e-5)


def test_terms_of_one_loss_and_teacher_are_logged_each_by_its_name():
    objective = (term("kl", name="soft"), term("kl", 0.5, 4.0, name="softer"))
    for scores in (STUDENT, STUDENT.dense()):
        total, means = loss_of(objective, scores, BATCH, TEACHERS)
        assert list(means) == ["soft", "softer"]
        assert float(total) == pytest.approx(float(means["soft"] + 0.5 * means["softer"]), rel=1e-6)
        assert float(means["softer"]) != pytest.approx(float(means["soft"]), rel=0.1)


@pytest.mark.parametrize("field", ["weight", "temperature"])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedules_of_weight_and_temperature(field, shape):
    value = {"start": 3.0, "end": 1.0, "schedule": shape}
    one = (term("kl", **{field: value}),)
    for progress, expected in ((0.0, 3.0), (0.5, 2.0), (1.0, 1.0)):
        fixed = (term("kl", **{field: expected}),)
        for scores in (STUDENT, STUDENT.dense()):
            found = loss_of(one, scores, BATCH, TEACHERS, None, progress)[0]
            wanted = loss_of(fixed, scores, BATCH, TEACHERS)[0]
            assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_a_schedule_is_a_number_or_a_section():
    assert Schedule.of(2, "w") == Schedule(2.0)
    assert Schedule.of({"start": 3.0, "end": 1.0}, "w") == Schedule(3.0, 1.0, "linear")
    refused(lambda: Schedule.of("x", "w.weight"), "w.weight='x'", "must be a number, 0 or more")
    refused(lambda: Schedule.of(-1, "w"), "w=-1")
    refused(lambda: Schedule.of(float("nan"), "w"), "w=nan")
    refused(lambda: Schedule.of(0, "t", positive=True), "t=0", "more than 0")
    refused(lambda: Schedule.of({"start": 1, "ends": 0}, "w"), "w.ends is unknown", "end")
    refused(lambda: Schedule.of({"end": 0}, "w"), "w.start=None")
    refused(lambda: Schedule.of({"start": 1, "schedule": "cos"}, "w"), "w.schedule='cos'", "cosine")
    assert Schedule.of({"start": 2, "schedule": "constant"}, "w").constant
    ignored = {"start": 2, "end": 0, "schedule": "constant"}
    refused(lambda: Schedule.of(ignored, "w"), "w.end=0", "stays at start=2", "leave end out")


def test_a_head_starts_as_the_student_and_learns_apart_from_it():
    one = term("kl", head=True)
    auxiliary = auxiliary_params((one,), STUDENT, TEACHERS, jax.random.key(0))

    def loss(auxiliary, contexts):
        student = STUDENT._replace(contexts=contexts)
        return loss_of((one,), student, BATCH, TEACHERS, auxiliary=auxiliary)[0]

    plain = loss_of((term("kl"),), STUDENT, BATCH, TEACHERS)[0]
    assert float(loss(auxiliary, STUDENT.contexts)) == pytest.approx(float(plain), rel=1e-6)
    by_head, by_contexts = jax.grad(loss, argnums=(0, 1))(auxiliary, STUDENT.contexts)
    assert np.abs(by_head["kl"]["head"]).max() > 0 and np.abs(by_contexts).max() > 0


def section(field="distill.terms.soft", **fields):
    return of_section(field, fields)


def test_a_term_of_its_section():
    one = section(loss="kl", weight=2.0, items="warm", teacher="big")
    assert (one.name, one.weight, one.warm, one.teacher) == ("soft", Schedule(2.0), True, "big")
    assert one.identity()["loss"] == {"name": "kl"}
    known = "distill.terms.soft"
    refused(lambda: section(loss="kll"), f"{known}.loss='kll' is unknown; did you mean 'kl'")
    refused(lambda: section(loss="kl", wieght=1), f"{known}.wieght is unknown", "weight")
    refused(lambda: section(loss="kl", items="cold"), f"{known}.items='cold'", "warm")
    refused(lambda: section(loss="kl", temperature=0), f"{known}.temperature=0", "more than 0")
    refused(lambda: section(loss="ce", teacher="big"), "reads no teacher", "leave it out")
    refused(lambda: section(loss="ce", temperature=2.0), f"{known}.temperature")
    refused(lambda: section(loss="kl", items="sampled"), "distill.negatives=0", "at least 1")
    refused(lambda: section(loss="squared_distance", head=True), f"{known}.head=True")


def test_the_identity_of_a_loss_is_its_own_not_its_parents(monkeypatch):
    class Steeper(LOSSES["kl"]):
        pass

    monkeypatch.setitem(LOSSES, "steeper", Steeper)
    assert section(loss="steeper").identity()["loss"] == {"name": "steeper"}
    assert section(loss="kl").identity()["loss"] == {"name": "kl"}


def test_what_no_engine_can_compute_is_refused_before_training():
    sampled = term("kl", items="sampled", negatives=3)
    factorised = Limits(True, True, 20)
    check((sampled,), factorised, "distill.terms")
    where = "distill.terms"
    refused(lambda: check((sampled,), Limits(False, True, 20), where), "whose scores factorise")
    refused(lambda: check((sampled,), Limits(True, False, 20), where), "owns none", "tables")
    head = dataclasses.replace(sampled, items="all", head=True)
    for limits in (Limits(False, True, 20), Limits(True, True, 20, ranks=False)):
        refused(lambda limits=limits: check((head,), limits, where), "head=True", "head=False")
    mixed = (sampled, term("ce"))
    refused(lambda: check(mixed, factorised, where), "give all of them items='sampled'")
