"""Bins hold every window once and little else; a position of a bin is one of the padded form."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from helpers import toy
from kd_jax.core.errors import InputError
from kd_jax.data import dataset as datasets
from kd_jax.data.examples import base
from kd_jax.data.examples.packed import bins_of, packed_examples
from kd_jax.data.examples.sequence import sequence_examples

LENGTH = 6


def best_fit_decreasing(lengths, size):
    """The number of bins, one window after the other."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else size) - length)
    return len(rooms)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_bins_hold_every_window_once(size):
    rng = np.random.default_rng(size)
    for _ in range(30):
        counts = rng.integers(0, 9, size + 1) * (rng.random(size + 1) < 0.5)
        counts[0] = 0
        bins = bins_of(counts)
        assert bins.sum(1).max(initial=0) <= size and (bins.sum(1) > 0).all()
        found = np.bincount(bins.ravel(), minlength=size + 1)
        np.testing.assert_array_equal(found[1:], counts[1:])
        assert len(bins) == best_fit_decreasing(np.repeat(np.arange(size + 1), counts), size)
    assert bins_of(np.array([5])).shape == (0, 1)


def test_long_windows_alone_open_bins_of_the_larger_size():
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = np.concatenate([rng.integers(1, 7, 40), rng.integers(11, 21, 5)])
        bins = bins_of(np.bincount(lengths), (8, 20))
        sizes = np.where(bins[:, 0] > 8, 20, 8)
        assert (bins.sum(1) <= sizes).all() and (sizes == 20).sum() == 5
        np.testing.assert_array_equal(np.sort(bins[bins > 0]), np.sort(lengths))
        alone = bins_of(np.bincount(lengths[:40]), (8,))
        assert (sizes == 8).sum() < len(alone), "short ones fill the larger bins first"


def test_short_histories_leave_hardly_a_position_empty():
    lengths = np.minimum(2 + np.random.default_rng(0).geometric(0.25, 20_000), 50)
    bins = bins_of(np.bincount(lengths, minlength=51))
    assert bins.sum() == lengths.sum() and 50 * len(bins) <= 1.03 * lengths.sum()


def data(weights=False):
    """Users with 1 to 10 train items."""
    world = toy.raw(users=60)
    found = world.interactions.filter(pl.col("timestamp") // 40 < 3 + pl.col("user") % 10)
    built = datasets.build(
        dataclasses.replace(world, interactions=found), split="leave_one_out",
        min_user_interactions=3,
    )  # fmt: skip
    if weights:
        drawn = np.random.default_rng(1).random(len(built.user)).astype(np.float32)
        built = dataclasses.replace(built, weight=drawn)
    return built


@pytest.mark.parametrize("weights", [False, True])
def test_every_position_of_the_padded_form_is_in_one_bin(weights):
    d = data(weights)
    padded = sequence_examples(d, history=LENGTH, example_kind="all")
    whole = padded.gather(np.arange(padded.size))
    place_of = {int(user): row for row, user in enumerate(whole["row"])}
    got = packed_examples(d, history=LENGTH)
    assert got.windows == padded.size
    seen = []
    for epoch in range(2):
        rows = got.epoch(np.random.default_rng(epoch))
        batch = got.gather(rows)
        there = batch["history"] >= 0
        row = np.array([place_of[int(user)] for user in batch["row"][there]])
        place = batch["place"][there]
        assert len(np.unique(row * LENGTH + place)) == len(row) == (whole["history"] >= 0).sum()
        for name in ("history", "targets", "target_weights", "weights"):
            np.testing.assert_array_equal(batch[name][there], whole[name][row, place])
        assert not batch["weights"][~there].any() and (batch["targets"][~there] == -1).all()
        # A segment is one user's window, and its places follow each other.
        key = np.where(there, np.arange(len(there))[:, None] * LENGTH + batch["segment"], -1)[there]
        assert len(np.unique(key)) == len(np.unique(row)) == len(np.unique(row + 1000 * key))
        same = key[1:] == key[:-1]
        np.testing.assert_array_equal(np.diff(place)[same], 1)
        assert (batch["segment"][~there] == rows.shape[1]).all()
        seen.append({frozenset(bin[bin < got.windows].tolist()) for bin in rows})
        for name, values in got.look_up(jnp, got.tables, rows).items():
            np.testing.assert_array_equal(values, batch[name])
            assert values.dtype == batch[name].dtype or name == "row"
    together = [{bin for bin in bins if len(bin) > 1} for bins in seen]
    assert together[0] != together[1]  # other users share a bin


def test_batches_are_a_function_of_seed_and_number():
    got = packed_examples(data(), history=LENGTH)
    how = {"batch_size": 5, "num_batches": 20, "seed": 3}
    stream = base.batches(got, **how)
    first = [next(stream) for _ in range(4)]
    state = stream.get_state()
    rest = [next(stream) for _ in range(16)]
    again = base.batches(got, **how)
    again.set_state(state)
    for one, other in zip(rest, [next(again) for _ in range(16)], strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # Over whole epochs every window comes equally often.
    rows = base.BatchRows(got, got.size, 3, seed=3)
    counts = np.bincount(np.concatenate([rows[n].ravel() for n in range(3)]))
    assert (counts[: got.windows] == 3).all()
    assert first[0]["history"].shape == (1, 5, LENGTH)


def test_a_batch_has_the_wanted_users_on_average_and_divides_over_devices():
    got = packed_examples(data(), history=LENGTH)
    assert got.per_row == pytest.approx(got.windows / got.size) and got.per_row > 1.2
    assert got.rows_of(32) == round(32 / got.per_row)
    assert got.rows_of(32, 4) % 4 == 0 and got.rows_of(1, 8) == 8
    padded = sequence_examples(data(), history=LENGTH, example_kind="all")
    assert padded.rows_of(33, 4) == 33 and padded.per_row == 1


def test_without_a_user_of_two_items_there_is_no_batch():
    d = data()
    none = dataclasses.replace(d, split=np.full_like(d.split, 1))
    with pytest.raises(InputError, match="no training example is left"):
        base.batches(packed_examples(none, history=4), batch_size=4, num_batches=1, seed=0)
