"""Every student keeps the contract of ``Scorer``, with item texts and without."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from helpers import text_student
from helpers.terms import term
from helpers.toy import refused
from helpers.training import HISTORY, examples_of, spec_of, student_of, task_of
from kd_jax.core import fields
from kd_jax.core.scores import Factors
from kd_jax.core.tables import gather_rows
from kd_jax.core.types import PAD
from kd_jax.distillation.objective import StepInputs
from kd_jax.losses import sampled
from kd_jax.models.scorer import Frozen, split, table_rows
from kd_jax.models.students import STUDENTS, build_student, student_class
from kd_jax.models.students.base import ITEM_TEXT, text_start
from kd_jax.models.students.mf import MatrixFactorization
from kd_jax.models.students.mlp import MLP
from kd_jax.serving.exporters import Bundle, weights
from kd_jax.training.step import StepSpec, gathered


@dataclasses.dataclass(frozen=True)
class Case:
    """The expected behaviour of a student.

    rates: whether it rates pairs too. errors: sections that it refuses, each with a part of the
    message.
    """

    rates: bool
    errors: tuple[tuple[dict, str], ...] = ()


WIDTH = ({"dim": 0}, "dim=0 must be at least 1")
CASES = {
    "mf": Case(True, (WIDTH, ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and less than"))),
    "mlp": Case(True, (WIDTH, ({"hidden": 0}, "hidden=0 must be at least 1"))),
    "sasrec": Case(
        False,
        (
            WIDTH,
            ({"history": 0}, "history=0 must be at least 1"),
            ({"dim": 15}, "dim=15 is no multiple of heads=2"),
            ({"item_dropout": 1.0}, "item_dropout=1.0 must be at least 0 and less than 1"),
            ({"block": "lirg"}, "block='lirg' is unknown; did you mean 'ligr'?"),
        ),
    ),
    "gru4rec": Case(
        False,
        (
            WIDTH,
            ({"history": 0}, "history=0 must be at least 1"),
            ({"hidden": 0}, "hidden=0 must be at least 1"),
        ),
    ),
    "two_tower": Case(False, (WIDTH, ({"hidden": 0}, "hidden=0 must be at least 1"))),
    text_student.NAME: Case(False, (WIDTH,)),
}
ALL = {**STUDENTS, text_student.NAME: text_student.LinearText}
VARIANTS = [(name, text) for name in ALL for text in (False, True)[: 1 + bool(ALL[name].inputs)]]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(STUDENTS, text_student.NAME, text_student.LinearText)


def case_of(name):
    if name not in CASES:
        pytest.fail(f"the student {name!r} has no case here: add one to CASES")
    return CASES[name]


@functools.cache
def task(ratings=False):
    return task_of(ratings)


def inputs_of(name, with_text):
    """Random arrays in place of the language model's."""
    known = {ITEM_TEXT: np.random.default_rng(1).normal(size=(task().dataset.num_items, 12))}
    assert set(ALL[name].inputs) <= known.keys(), f"{name} reads an input that the test lacks"
    left_out = () if with_text else (ITEM_TEXT,)
    return {
        key: value.astype(np.float32)
        for key, value in known.items()
        if key in ALL[name].inputs and key not in left_out
    }


def trained(name, with_text=False, ratings=False):
    """A student with parameters that differ from the initial ones."""
    student = student_of(task(ratings), name, inputs=inputs_of(name, with_text))
    graphdef, params, constants = split(student)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    leaves = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), constants)


def batch_of(student, ratings=False, size=6):
    examples = examples_of(task(ratings), student.example_kind)
    return {key: jnp.asarray(value) for key, value in examples.gather(np.arange(size)).items()}


@nnx.jit
def logits_of(student, batch):
    return student.logits(batch)


@pytest.mark.parametrize(("name", "with_text"), VARIANTS)
def test_factors_logits_and_scores_are_the_same_numbers(name, with_text):
    case_of(name)
    student = trained(name, with_text)
    batch, items = batch_of(student), task().dataset.num_items
    logits = logits_of(student, batch)
    positions = batch["targets"].shape[1]
    assert logits.shape == (6, positions, items) and logits.dtype == jnp.float32
    assert positions == 1 or student.example_kind == "all"
    if student.factorised:
        factors = student.factors(batch)
        width = factors.vectors.shape[1]
        assert factors.contexts.shape == (6, positions, width)
        assert factors.vectors.shape == (items, width) and factors.bias.shape == (items,)
        np.testing.assert_allclose(factors.dense(), logits, atol=1e-5)
    scores = student.scores(batch, student.catalogue())
    assert isinstance(scores, Factors) == student.factorised
    scores = scores.dense() if isinstance(scores, Factors) else scores
    np.testing.assert_allclose(scores, logits[:, -1], atol=1e-5)
    assert np.std(np.asarray(scores), axis=0).max() > 1e-3  # users differ


@pytest.mark.parametrize("ratings", [False, True])
def test_an_mlp_in_numpy_reads_the_concatenation_of_both_vectors(ratings, monkeypatch):
    monkeypatch.setattr(MLP, "chunk", 5)  # which does not divide the catalogue
    student = trained("mlp", ratings=ratings)
    batch = batch_of(student, ratings)
    users, items = student.user[...][batch["user"]], np.asarray(student.item[...])
    kernel = np.concatenate([student.user_in.kernel[...], student.item_in.kernel[...]])

    def output(items):
        both = np.concatenate([users, np.broadcast_to(items, users.shape)], 1)
        hidden = np.maximum(both @ kernel + np.asarray(student.user_in.bias[...]), 0)
        return hidden @ np.asarray(student.out.kernel[...]) + np.asarray(student.out.bias[...])

    if ratings:
        want = output(items[batch["item"]])
    else:
        assert len(items) % MLP.chunk
        want = np.concatenate([output(item) for item in items], 1) + np.asarray(student.bias[...])
    np.testing.assert_allclose(student.logits(batch)[:, 0], want, rtol=1e-5, atol=1e-5)


def test_a_two_tower_in_numpy_maps_texts_and_the_mean_of_a_history():
    student, (text,) = trained("two_tower", True), inputs_of("two_tower", True).values()

    def tower(layers, x):
        def linear(layer, x):
            return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

        up = linear(layers.up, x)
        gelu = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        return linear(layers.linear, x) + linear(layers.down, gelu)

    vectors = tower(student.item, (text - text.mean(0)) / (text - text.mean(0)).std())
    history = np.array(batch_of(student)["history"])
    for row, length in enumerate((0, 1, 3)):
        history[row, : HISTORY - length] = PAD
    mean = np.zeros((len(history), vectors.shape[1]))
    for row, items in enumerate(history):
        if any(known := items != PAD):
            mean[row] = vectors[items[known]].mean(0)
    want = tower(student.user, mean) @ vectors.T + np.asarray(student.bias[...])
    found = logits_of(student, {"history": jnp.asarray(history)})[:, 0]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "with_text"), VARIANTS)
@pytest.mark.slow
def test_every_parameter_is_learned_and_no_input_is(name, with_text):
    graphdef, params, constants = split(trained(name, with_text))

    def total(params):
        student = nnx.merge(graphdef, params, constants)
        logits = student.logits(batch_of(student))
        return jnp.sum(logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape)))

    zero = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params))
        if not np.any(leaf)
    ]
    assert not zero
    given = inputs_of(name, with_text).values()
    kept = [leaf for leaf in jax.tree.leaves(constants) if leaf.shape in {x.shape for x in given}]
    assert bool(kept) == bool(given)


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].inputs])
def test_a_student_that_reads_texts_scores_by_them_and_builds_without(name):
    with_text, without = trained(name, True), trained(name)
    text = inputs_of(name, True)[ITEM_TEXT].shape
    for student, there in ((with_text, True), (without, False)):
        shapes = [leaf.shape for leaf in jax.tree.leaves(split(student)[2])]
        assert (text in shapes) == there
        assert student.example_kind == student_class(name).example_kind
    other = student_of(task(), name, inputs={ITEM_TEXT: np.ones(text, np.float32)})
    graphdef, _, constants = split(other)
    other = nnx.merge(graphdef, split(with_text)[1], constants)
    batch = batch_of(with_text)
    assert not np.allclose(logits_of(other, batch), logits_of(with_text, batch), atol=1e-3)


@pytest.mark.parametrize(("name", "with_text"), VARIANTS)
@pytest.mark.slow
def test_rows_in_place_of_the_tables_give_the_same_scores(name, with_text):
    student = trained(name, with_text)
    graphdef, params, constants = split(student)
    sizes = {"user": task().dataset.num_users, "item": task().dataset.num_items}
    kinds = {kind: table_rows(graphdef, params, kind) for kind in sizes}
    for kind, tables in kinds.items():
        assert set(tables.values()) <= {sizes[kind]}
    assert student.owns_item_table == bool(kinds["item"])
    batch = batch_of(student)
    samples = student.owns_item_table and student.factorised
    if samples:
        student.proposal = Frozen(jnp.asarray(sampled.proposal(np.ones(sizes["item"]), 0.0)))
    objective = (term("ce", items="sampled", negatives=9) if samples else term("ce"),)
    spec = StepSpec(graphdef, objective, optax.identity(), 1, lazy=True)
    given = gathered(spec, student, StepInputs(batch), jax.random.key(0))
    small = nnx.merge(graphdef, gather_rows(params, given.rows), constants)
    logits = logits_of(student, batch)
    if samples:
        rows = next(given.rows[name] for name in kinds["item"])
        logits = logits[..., rows[rows < sizes["item"]]]
    found = logits_of(small, given.inputs.batch)[..., : logits.shape[-1]]
    np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.parametrize("tables", [MatrixFactorization.tables, {"user": "user"}, {}])
def test_pairs_are_rated_from_the_rows_of_the_tables_that_there_are(tables):
    student = trained("mf", ratings=True)
    graphdef, params, constants = split(student)

    class Some(MatrixFactorization):
        pass

    Some.tables = tables
    Some.owns_item_table = "item" in tables.values()
    student.__class__ = Some
    batch = batch_of(student, ratings=True)
    spec = StepSpec(graphdef, (term("ce"),), optax.identity(), 1, lazy=True)
    given = gathered(spec, student, StepInputs(batch), jax.random.key(0))
    assert {tables[name] for name in given.rows} == set(tables.values())
    small = nnx.merge(graphdef, gather_rows(params, given.rows), constants)
    np.testing.assert_allclose(
        logits_of(small, given.inputs.batch), logits_of(student, batch), atol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_it_rates_pairs_or_refuses_to(name):
    if not case_of(name).rates:
        refused(lambda: spec_of(task(True).dataset, name, 2), f"student.{name}: it ranks only")
        return
    student = trained(name, ratings=True)
    logits = student.logits(batch_of(student, ratings=True))
    assert logits.shape == (6, 1, task(True).num_classes)


@pytest.mark.parametrize(("name", "with_text"), VARIANTS)
@pytest.mark.slow
def test_it_is_built_in_a_program_with_the_same_bits(name, with_text):
    spec, inputs = spec_of(task().dataset, name), inputs_of(name, with_text)

    def params(inputs):
        return split(build_student(name, spec, inputs, rngs=nnx.Rngs(0)))[1]

    jax.tree.map(np.testing.assert_array_equal, jax.jit(params)(inputs), params(inputs))


@pytest.mark.parametrize(("name", "with_text"), VARIANTS)
def test_what_is_exported_loads_with_the_same_scores(name, with_text, tmp_path):
    student, data = trained(name, with_text), task().dataset
    description = {
        "model": "student",
        "student": name,
        "task": "rank",
        "history": HISTORY,
        "spec": spec_of(data, name, dim=16).plain(),
    }
    weights.write(Bundle(data, student, description, inputs_of(name, with_text)), tmp_path)
    loaded, found = weights.read(tmp_path, data)
    assert found == description and type(loaded) is STUDENTS[name]
    batch = batch_of(student)
    np.testing.assert_array_equal(logits_of(loaded, batch), logits_of(student, batch))


@pytest.mark.parametrize("name", ALL)
def test_what_its_section_may_not_hold_is_refused_in_one_line(name):
    data = task().dataset
    refused(lambda: spec_of(data, name, dmi=3), f"student.{name}", "'dmi'", "did you mean 'dim'?")
    refused(lambda: spec_of(data, name, dim="x"), f"student.{name}.dim='x'", "of type int")
    assert case_of(name).errors
    for section, message in case_of(name).errors:
        refused(lambda section=section: spec_of(data, name, **section), f"student.{name}", message)


def test_an_unknown_student_is_refused():
    refused(lambda: student_class("mff"), "student.name='mff'", "did you mean 'mf'?")


@pytest.mark.parametrize("name", [name for name in STUDENTS if name in common.get_config().student])
def test_the_sections_of_configs_common_have_the_specs_defaults(name):
    section = common.get_config().student[name].to_dict()
    assert section == fields.defaults(STUDENTS[name].spec)


def test_item_vectors_start_as_the_principal_components_of_the_text():
    text = np.random.default_rng(3).normal(size=(50, 12)) * np.linspace(3, 0.5, 12)
    random = np.random.default_rng(4).normal(size=(50, 5)).astype(np.float32) * 0.1
    found = np.asarray(text_start(jnp.asarray(text, jnp.float32), jnp.asarray(random)))
    _, values, basis = np.linalg.svd(text - text.mean(0), full_matrices=False)
    expected = (text - text.mean(0)) @ basis[:5].T / np.sqrt(values[:5])
    expected *= np.sqrt((random**2).mean() / (expected**2).mean())
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)


def test_text_of_few_numbers_leaves_the_other_components_random():
    random = np.random.default_rng(4).normal(size=(9, 5)).astype(np.float32)
    text = jnp.asarray(np.random.default_rng(3).normal(size=(9, 2)), jnp.float32)
    found = np.asarray(text_start(text, jnp.asarray(random)))
    np.testing.assert_array_equal(found[:, 2:], random[:, 2:])
    assert np.abs(found[:, :2] - random[:, :2]).max() > 0.1


@pytest.mark.parametrize("name", ["mf", "mlp", "sasrec", "gru4rec"])
def test_a_student_that_starts_from_text_needs_it_only_to_start(name):
    spec = dataclasses.replace(spec_of(task().dataset, name), vectors="text")
    text = {ITEM_TEXT: np.random.default_rng(1).normal(size=(task().dataset.num_items, 12))}
    with_text = build_student(name, spec, text, rngs=nnx.Rngs(0))
    without = build_student(name, spec, {}, rngs=nnx.Rngs(0))
    assert STUDENTS[name].reads("text") == (ITEM_TEXT,) and STUDENTS[name].reads("random") == ()
    assert np.abs(with_text.item[...] - without.item[...]).max() > 0.01
    assert split(with_text)[0] == split(without)[0]


def test_an_offset_is_added_to_the_vectors_of_the_texts():
    inputs = inputs_of("two_tower", True)
    tower, both = (
        student_of(task(), "two_tower", inputs=inputs, offset=offset) for offset in (False, True)
    )
    of_texts, _ = tower.items()
    np.testing.assert_array_equal(both.items()[0], of_texts)  # it starts at 0
    own = np.random.default_rng(6).normal(size=of_texts.shape).astype(np.float32)
    both.offset[...] = own
    np.testing.assert_allclose(both.items()[0], of_texts + own, rtol=1e-6)
    by_ids = student_of(task(), "two_tower", offset=True)
    assert by_ids.offset is None and by_ids.id is not None


def test_an_unknown_start_of_item_vectors_is_refused():
    refused(
        lambda: student_of(task(), "mf", vectors="texts"),
        "student.mf: vectors='texts' is unknown",
        "'text'",
    )
