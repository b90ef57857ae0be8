"""Students that learn after every item of a history: what a position reads, padded and packed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from helpers import toy
from helpers.training import HISTORY, student_of
from kd_jax.core.types import PAD
from kd_jax.data import dataset as datasets
from kd_jax.evaluation.tasks import Rank
from kd_jax.models.layers import GatedBlock
from kd_jax.models.scorer import split
from kd_jax.models.students import STUDENTS

STUDENTS_OF_SEQUENCES = [("sasrec", {}), ("sasrec", {"block": "ligr"}), ("gru4rec", {})]
READ = ("history", "segment", "place")  # of a batch
each = pytest.mark.parametrize(("name", "section"), STUDENTS_OF_SEQUENCES)


@pytest.fixture(scope="module")
def task():
    """Users with 1 to 10 train items."""
    world = toy.raw(users=40)
    found = world.interactions.filter(pl.col("timestamp") // 40 < 3 + pl.col("user") % 10)
    world = dataclasses.replace(world, interactions=found)
    data = datasets.build(world, split="leave_one_out", min_user_interactions=3)
    return Rank(data, "ndcg@10", ("ndcg",), (10,), 16)


def batch_of(task, packed):
    """All users, in order; packed, all bins."""
    examples = task.examples("all", history=HISTORY, packed=packed)
    rows = examples.epoch(np.random.default_rng(4)) if packed else np.arange(examples.size)
    return examples.gather(rows)


def contexts_of(student, batch, history=None):
    given = batch if history is None else batch | {"history": history}
    return np.asarray(read(student, {name: given[name] for name in READ if name in given}))


@nnx.jit
def read(student, batch):
    return student.contexts(batch, student.item[...])


def test_every_student_of_sequences_is_tested_here():
    known = {name for name, cls in STUDENTS.items() if cls.example_kind == "all"}
    assert known == {name for name, _ in STUDENTS_OF_SEQUENCES}


@each
def test_a_context_depends_on_the_items_before_it_alone(name, section, task):
    student, batch = student_of(task, name, dropout=0.0, **section), batch_of(task, False)
    history = batch["history"].copy()
    full = (history != PAD).all(1)
    history[:, 4:] = np.where(history[:, 4:] == PAD, PAD, 0)
    before, after = contexts_of(student, batch)[full], contexts_of(student, batch, history)[full]
    np.testing.assert_allclose(after[:, :4], before[:, :4], rtol=1e-6)
    assert np.abs(after[:, 4:] - before[:, 4:]).max((1, 2)).min() > 1e-3
    history = batch["history"].copy()
    history[:, 0] = np.where(history[:, 0] == PAD, PAD, 0)
    assert np.abs(contexts_of(student, batch, history)[full][:, -1] - before[:, -1]).max() > 1e-4


@each
def test_contexts_of_packed_windows_are_those_of_the_padded_form(name, section, task):
    student = student_of(task, name, dropout=0.0, **section)
    padded, packed = (batch_of(task, form) for form in (False, True))
    there = packed["history"] != PAD
    assert (packed["segment"] > 0).any()
    rows = np.searchsorted(padded["row"], packed["row"])  # users, in order
    want = contexts_of(student, padded)[rows, packed["place"]]
    found = contexts_of(student, packed)
    np.testing.assert_allclose(found[there], want[there], rtol=2e-5, atol=2e-6)


@each
def test_a_window_reads_nothing_of_the_others_in_its_bin(name, section, task):
    student, batch = student_of(task, name, dropout=0.0, **section), batch_of(task, True)
    bin = int(np.argmax((batch["segment"] == 1).any(1)))
    first = batch["segment"][bin] == 0
    history = batch["history"].copy()
    history[bin] = np.where(first, 0, history[bin])
    before, after = contexts_of(student, batch)[bin], contexts_of(student, batch, history)[bin]
    np.testing.assert_array_equal(after[~first], before[~first])
    assert np.abs(after[first] - before[first]).max() > 1e-3


def test_the_states_of_gru4rec_are_those_of_flax(task):
    student, batch = student_of(task, "gru4rec", dropout=0.0), batch_of(task, False)
    full = (batch["history"] != PAD).all(1)
    vectors = student.item[...]
    x = vectors[batch["history"][full]] * vectors.shape[1] ** 0.5
    start = jnp.zeros((full.sum(), student.cell.hidden_features))
    states = nnx.RNN(student.cell)(x, initial_carry=start)
    found = contexts_of(student, batch)[full]
    np.testing.assert_allclose(found, student.out(states), rtol=1e-5, atol=1e-6)


def test_sasrec_in_numpy_one_position_and_one_head_at_a_time(task):
    graphdef, params, constants = split(student_of(task, "sasrec", dropout=0.0))
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params)
    student = nnx.merge(graphdef, params, constants)
    table, transformer = np.asarray(student.item[...], float), student.transformer
    dim = table.shape[1]

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...], float) + np.asarray(layer.bias[...])

    def norm(layer, x):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    def contexts(history):
        x = table[history] * dim**0.5 + np.asarray(transformer.position[...])
        x[history == PAD] = 0
        for block in transformer.blocks:
            q, k, v = np.split(linear(block.qkv, norm(block.norm1, x)), 3, axis=1)
            attended = np.zeros_like(x)
            for at in range(len(x)):
                seen = [past for past in range(at + 1) if history[past] != PAD or past == at]
                for head in np.split(np.arange(dim), block.heads):
                    weights = np.exp(k[np.ix_(seen, head)] @ q[at, head] / len(head) ** 0.5)
                    attended[at, head] = weights / weights.sum() @ v[np.ix_(seen, head)]
            x = x + linear(block.out, attended)
            hidden = np.maximum(linear(block.up, norm(block.norm2, x)), 0)
            x = x + linear(block.down, hidden)
        return norm(transformer.norm, x)

    batch = batch_of(task, False)
    rows = [np.argmax((batch["history"] != PAD).sum(1) == length) for length in (1, 3, HISTORY)]
    want = [contexts(history) for history in batch["history"][rows]]
    np.testing.assert_allclose(contexts_of(student, batch)[rows], want, rtol=1e-4, atol=1e-4)


def test_a_gate_scales_the_change_of_a_block():
    block = GatedBlock(8, 2, 0.0, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (6, 8))
    mask = jnp.tril(jnp.ones((2, 1, 3, 3), bool))

    def with_gates(*bias):
        for gate, value in zip(block.gates, bias, strict=True):
            gate.kernel[...] = jnp.zeros((8, 8))
            gate.bias[...] = jnp.full(8, value)
        return np.asarray(block(x, mask, None))

    closed, opened, logit3 = -200.0, 200.0, np.log(3.0)
    np.testing.assert_array_equal(with_gates(closed, closed), x)
    attended = with_gates(opened, closed)
    np.testing.assert_allclose(
        with_gates(logit3, closed), x + 0.75 * (attended - x), rtol=1e-5, atol=1e-6
    )
    hidden = block.norm2(x)
    change = block.down(jax.nn.silu(block.up(hidden)) * block.side(hidden))
    np.testing.assert_allclose(with_gates(closed, logit3), x + 0.75 * change, rtol=1e-5, atol=1e-6)


@each
def test_item_dropout_is_the_same_in_the_history_and_in_the_softmax(name, section, task):
    student = student_of(task, name, dropout=0.0, item_dropout=0.5, **section)
    batch = {key: value for key, value in batch_of(task, False).items() if key in READ}
    table = np.asarray(student.item[...])
    exact = student.factors(batch)
    np.testing.assert_array_equal(exact.vectors, table)
    first, second = (student.factors(batch, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    kept = np.asarray(first.vectors) != 0
    np.testing.assert_allclose(np.asarray(first.vectors)[kept], 2 * table[kept], rtol=1e-6)
    assert 0.4 < kept.mean() < 0.6 and (kept != (np.asarray(second.vectors) != 0)).any()
    np.testing.assert_allclose(
        first.contexts, student.contexts(batch, first.vectors), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(first.bias, exact.bias)
