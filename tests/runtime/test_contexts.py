"""Contexts in NumPy against the students in JAX, and the history map against its formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.training import HISTORY, student_of, task_of
from kd_jax.core.types import PAD
from kd_jax.models.scorer import split
from kd_jax.models.students import STUDENTS
from kd_jax.models.students.base import ITEM_TEXT
from kd_jax.models.teachers.bi_encoder import BiEncoder
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.serving.exporters import Bundle, runtime

LENGTHS = (0, 1, 3, HISTORY)


def random_student(name, text=False, **section):
    """A student with random parameters, so that no bias or norm is at its first value."""
    task = task_of(False)
    inputs = {}
    if text:
        inputs[ITEM_TEXT] = np.random.default_rng(1).normal(size=(task.dataset.num_items, 6))
    graphdef, params, constants = split(student_of(task, name, inputs=inputs, **section))
    rng = np.random.default_rng(2)
    drawn = nnx.to_pure_dict(nnx.state(nnx.merge(graphdef, params, constants), nnx.Param))

    def draw(tree):
        if isinstance(tree, dict):
            return {key: draw(value) for key, value in tree.items()}
        return jnp.asarray(rng.normal(size=tree.shape) * 0.5, jnp.float32)

    return task.dataset, nnx.merge(graphdef, draw(drawn), constants)


def histories(items, rows=5):
    rng = np.random.default_rng(3)
    found = np.full((rows, HISTORY), PAD, np.int32)
    for row in range(rows):
        length = LENGTHS[row % len(LENGTHS)]
        if length:
            found[row, -length:] = rng.integers(0, items, length)
    return found


@pytest.mark.parametrize(
    ("name", "text", "section"),
    [
        ("sasrec", False, {}),  # two blocks, one behind another
        ("sasrec", False, {"block": "ligr"}),
        ("gru4rec", False, {}),
        ("two_tower", False, {}),
        ("two_tower", True, {}),
    ],
)
def test_a_context_in_numpy_is_that_of_the_student(name, text, section):
    data, model = random_student(name, text, **section)
    history = histories(data.num_items)
    vectors = model.items()[0]
    want = model.context({"history": jnp.asarray(history)}, vectors)
    context = model.runtime_context()
    np.testing.assert_allclose(context(history, np.asarray(vectors)), want, rtol=2e-5, atol=2e-5)
    # Without the padding that no row needs, and one row at a time.
    short = history[1:2, -1:]
    np.testing.assert_allclose(context(short, np.asarray(vectors)), want[1:2], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("trends", [False, True])
def test_a_context_in_numpy_is_that_of_the_teacher(trends):
    items, rng = 9, np.random.default_rng(5)
    features = rng.normal(size=(3, items, 4)).astype(np.float32) if trends else None
    spec = TeacherSpec(
        items, np.zeros(items, np.float32), None, item_features="id", dim=8, blocks=2, heads=2,
        history=HISTORY, trends=features,
    )  # fmt: skip
    graphdef, params, constants = split(BiEncoder(spec, rngs=nnx.Rngs(0)))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), params
    )
    model = nnx.merge(graphdef, params, constants)
    history, (vectors, _) = histories(items), model.items()
    want = model.context({"history": jnp.asarray(history)}, vectors)
    assert want.shape[1] == (12 if trends else 8)
    context = model.runtime_context()
    np.testing.assert_allclose(context(history, np.asarray(vectors)), want, rtol=5e-5, atol=5e-5)


def test_a_teacher_that_reads_histories_as_text_has_no_context_in_numpy():
    model = BiEncoder(
        TeacherSpec(4, np.zeros(4, np.float32), None, item_features="id", dim=8),
        rngs=nnx.Rngs(0),
    )
    assert model.runtime_context() is not None
    model.transformer = None  # as it is with texts in its place
    assert model.runtime_context() is None


def test_students_that_read_histories_have_a_context_or_become_a_program():
    reading = {name for name, cls in STUDENTS.items() if cls.example_kind != "user"}
    own = {name for name in reading if random_student(name)[1].runtime_context() is not None}
    assert own == reading == {"sasrec", "gru4rec", "two_tower"}


@pytest.mark.slow
def test_a_program_of_jax_gives_the_contexts_of_the_student(monkeypatch):
    data, model = random_student("sasrec")
    description = {"model": "student", "task": "rank", "history": HISTORY}
    program = runtime._program(Bundle(data, model, description))
    history = histories(data.num_items)
    vectors = np.asarray(model.items()[0])
    want = model.context({"history": jnp.asarray(history)}, vectors)
    np.testing.assert_allclose(program(history, vectors), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(program(history[3:4, -3:], vectors)[0], program(
        np.concatenate([np.full((1, HISTORY - 3), PAD), history[3:4, -3:]], 1), vectors
    )[0], rtol=1e-5)  # fmt: skip


def test_the_history_map_is_its_formula():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(9, 3)).astype(np.float32)
    weight = rng.normal(size=(3, 3)).astype(np.float32)
    intercept = rng.normal(size=3).astype(np.float32)
    model = HistoryMap(weight, intercept, decay=2.0, shrink=0.5)
    found = model(np.array([[PAD, PAD, 4, 7, 4], [PAD] * 5]), vectors)
    shares = np.exp([-1.0, -0.5, 0.0])  # ages 2, 1 and 0
    mean = (shares @ vectors[[4, 7, 4]]) / (shares.sum() + 0.5)
    np.testing.assert_allclose(found[0], mean @ weight + intercept, rtol=1e-5)
    np.testing.assert_allclose(found[1], intercept, rtol=1e-6)
