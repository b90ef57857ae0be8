"""Training examples and popularity against brute force; no leak of a target or of the future."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import toy
from kd_jax.core.types import PAD
from kd_jax.data import dataset as datasets
from kd_jax.data.examples import base
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.snapshot import snapshot_examples
from kd_jax.data.examples.user import user_examples
from kd_jax.data.popularity import SCALES, trends
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.data.time_units import DAY
from kd_jax.evaluation import scoring


def data(split="temporal", **options):
    """The toy world over 60 days."""
    world = toy.raw(**options)
    days = world.interactions.with_columns(timestamp=world.interactions["timestamp"] * (DAY // 8))
    return datasets.build(dataclasses.replace(world, interactions=days), split=split)


def events(d, user, splits):
    """(time, item) of a user's interactions in these splits, oldest first."""
    mine = (d.user == user) & np.isin(d.split, splits)
    return sorted(zip(d.timestamp[mine], d.item[mine], strict=True))


def real(row):
    return [int(x) for x in np.ravel(row) if x != PAD]


@pytest.mark.parametrize("unit", ["interactions", "days"])
def test_user_examples_weigh_by_age_and_a_row_sums_to_one(unit):
    d = data()
    got = user_examples(
        d, history=5, decay=0.01 if unit == "days" else 2.0, decay_unit=unit, user_power=0.0
    )
    batch = got.gather(np.arange(got.size))
    # Also for users who were last active long ago.
    np.testing.assert_allclose(batch["target_weights"].sum((1, 2)), 1, rtol=1e-5)
    got = user_examples(d, history=5, decay=3.0, decay_unit=unit)
    batch = got.gather(np.arange(got.size))
    end = d.timestamp[d.split == TRAIN].max()
    for row, user in enumerate(batch["user"]):
        mine = events(d, user, [TRAIN])
        ages = (
            np.array([(end - t) / DAY for t, _ in mine])
            if unit == "days"
            else np.arange(len(mine))[::-1]
        )
        share = np.exp(-ages / 3.0) / np.exp(-ages / 3.0).sum()
        order = np.argsort([i for _, i in mine])
        kept = batch["targets"][row, 0] != PAD
        place = np.argsort(batch["targets"][row, 0][kept])
        np.testing.assert_allclose(
            batch["target_weights"][row, 0][kept][place], share[order], rtol=1e-4
        )
        assert real(batch["history"][row]) == [i for _, i in mine[-5:]]


def test_sequence_examples_predict_the_next_item():
    d = data()
    got = sequence_examples(d, history=6, example_kind="all")
    batch = got.gather(np.arange(got.size))
    for row, user in enumerate(batch["user"]):
        mine = [i for _, i in events(d, user, [TRAIN])]
        assert real(batch["history"][row]) == mine[:-1][-6:]
        assert real(batch["targets"][row]) == mine[1:][-6:]


def test_snapshots_have_the_history_before_a_time_and_targets_within_the_horizon():
    d = data()
    found = trends(d, snapshots=20, days=2.0)
    got = snapshot_examples(d, found.times, history=4, horizon_days=10.0, max_targets=3)
    batch = got.gather(np.arange(got.size))
    expected = set()
    for snapshot, moment in enumerate(found.times[:-1]):
        for user in range(d.num_users):
            mine = events(d, user, [TRAIN])
            past = [i for t, i in mine if t < moment]
            soon = [i for t, i in mine if moment <= t < moment + 10 * DAY]
            if past and soon:
                expected.add((snapshot, user, tuple(past[-4:]), tuple(soon[:3])))
    rows = zip(batch["snapshot"], batch["user"], batch["history"], batch["targets"], strict=True)
    assert {(int(s), int(u), tuple(real(h)), tuple(real(t))) for s, u, h, t in rows} == expected
    assert len(expected) > 50


def test_popularity_counts_interactions_strictly_before_each_time():
    d = data()
    found = trends(d, snapshots=12, days=3.0)
    train = d.split == TRAIN
    assert found.times[-1] == d.timestamp[train].max() + 1
    for row in (0, 5, len(found.times) - 1):
        before = train & (d.timestamp < found.times[row])
        for scale, days in enumerate(SCALES):
            age = (found.times[row] - d.timestamp[before]) / (days * DAY)
            counts = np.bincount(d.item[before], np.exp(-age), d.num_items)
            np.testing.assert_allclose(
                found.features[row, :, scale], 0.3 * np.log1p(counts / 0.03), atol=2e-4
            )
        np.testing.assert_array_equal(
            found.features[row, :, -2], np.bincount(d.item[before], minlength=d.num_items) == 0
        )


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_rated_pairs_see_neither_their_own_class_nor_anything_later(split):
    d = data(ratings=True)
    classes = (d.rating > 3).astype(np.int32)
    got = rate_examples(d, classes, split, history=30)
    batch = got.gather(np.arange(got.size))
    assert got.size > 20
    label = {(u, i): c for u, i, c in zip(d.user, d.item, classes, strict=True)}
    when = {(u, i): t for u, i, t in zip(d.user, d.item, d.timestamp, strict=True)}
    earlier = [s for s in (TRAIN, VALID, TEST) if s < max(split, 1)]
    for row in range(got.size):
        user, item = int(batch["user"][row]), int(batch["item"][row])
        assert batch["targets"][row, 0, 0] == label[user, item]
        past = [i for t, i in events(d, user, earlier) if t < when[user, item]]
        assert real(batch["history"][row]) == past
        assert real(batch["history_class"][row]) == [label[user, i] for i in past]


def test_indices_beyond_32_bits_stay_on_the_host():
    got = sequence_examples(data(), history=3, example_kind="last")
    assert got.on_device
    far = 2**31 + 5  # interactions, of which the second user has the last seven
    items = np.broadcast_to(np.int32(9), far)
    indptr = base.compact(np.array([0, far - 7, far]))
    tables = {"users": np.arange(2, dtype=np.int32), "indptr": indptr, "items": items}
    got = dataclasses.replace(got, size=2, tables=tables)
    assert indptr.dtype == np.int64 and not got.on_device
    batch = got.gather(np.array([1]))
    assert batch["history"].tolist() == [[9, 9, 9]] and batch["targets"].tolist() == [[[9]]]
    assert (
        base.compact(np.array([2**31, 4])).dtype == np.int64
        and base.compact(indptr - 7).dtype == np.int32
    )


class Echo:
    """A stand-in for a model that returns the history of the batch as its scores."""

    @classmethod
    def merge(cls, *_):
        return cls

    catalogue = staticmethod(lambda: jnp.zeros(()))
    scores = staticmethod(lambda batch, items: batch["history"])


@pytest.mark.parametrize("split", [VALID, TEST])
def test_ranking_reads_the_history_before_the_split(split, monkeypatch):
    d = data()
    monkeypatch.setattr(scoring, "nnx", Echo)
    monkeypatch.setattr(scoring, "factorises", lambda _: False)
    monkeypatch.setattr(scoring, "catalogue", lambda *_: Echo().catalogue())
    shown = np.asarray(
        scoring.score_function.__wrapped__(d, None, split, 50)({}, {})(np.arange(d.num_users))
    )
    for user in range(d.num_users):
        assert real(shown[user]) == [i for _, i in events(d, user, list(range(split)))]
