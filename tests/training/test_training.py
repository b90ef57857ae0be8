"""The train step and the training loop.

Sharded training equals unsharded training, a step is compiled once, a resumed run equals an
uninterrupted one, and a run stops cleanly.
"""

import dataclasses
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from helpers.marks import first_fast
from helpers.terms import term
from helpers.training import (
    HISTORY,
    ODD,
    Fit,
    examples_of,
    final_state,
    losses,
    student_of,
    task_of,
    teacher_of,
)
from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.devices import sharding
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.teachers import (
    Teacher,
    _cached_scores,
    cached_teacher,
    fit_to_device,
    online_teacher,
    with_logits,
)
from kd_jax.evaluation.scoring import score_function, users_at_once
from kd_jax.models.scorer import split, table_rows
from kd_jax.models.students import STUDENTS
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.compiled import compiled_step
from kd_jax.training.preemption import Preempted, Preemption
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec


@pytest.mark.parametrize("name", ["mf", "sasrec", "mlp"])
@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
@pytest.mark.slow
def test_every_device_ranks_its_share_of_the_users(name, shape, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    task, mesh = task_of(ratings=False), sharding.make_mesh(*shape)
    graphdef, *state = split(student_of(task, name))
    on_mesh = sharding.put(state, mesh)
    scores = score_function(task.dataset, graphdef, 2, HISTORY)(*on_mesh)(
        np.arange(16, dtype=np.int32)
    )
    split_over = scores.contexts if isinstance(scores, Factors) else scores
    rows = {
        index[0].indices(16)[:2]
        for index in split_over.sharding.devices_indices_map(split_over.shape).values()
    }
    assert len(rows) == shape[0]
    alone, many = (
        task.evaluation_function(graphdef, "test", HISTORY)(*where) for where in (state, on_mesh)
    )
    np.testing.assert_allclose(many.per_user["ndcg@10"], alone.per_user["ndcg@10"], rtol=1e-6)


@pytest.mark.parametrize("name", ["mf", "mlp"])
@pytest.mark.slow
def test_every_device_ranks_its_share_of_items_that_it_does_not_divide(name, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    task, mesh = task_of(False, **ODD), sharding.make_mesh(2, 4)
    graphdef, params, constants = split(student_of(task, name))
    many = (
        sharding.put_params(params, table_rows(graphdef, params), mesh),
        sharding.put(constants, mesh),
    )
    scores = score_function(task.dataset, graphdef, 2, HISTORY)(*many)(
        np.arange(16, dtype=np.int32)
    )
    if name == "mf":
        shards = [x.sharding.shard_shape(x.shape)[0] for x in (scores.contexts, scores.vectors)]
        assert len(scores.vectors) == len(scores.bias) == 24 and shards == [8, 6]
    many, alone = (
        task.evaluation_function(graphdef, "test", HISTORY)(*where)
        for where in (many, (params, constants))
    )
    np.testing.assert_allclose(many.per_user["ndcg@10"], alone.per_user["ndcg@10"], rtol=1e-6)


def test_a_student_with_scores_of_the_wrong_kind_is_refused(monkeypatch):
    task = task_of(False)
    monkeypatch.setattr(STUDENTS["mf"], "factorised", False)
    graphdef, params, constants = split(student_of(task, "mf"))
    with pytest.raises(
        TypeError, match=r"MatrixFactorization.scores returns factors; see Scorer.factorised"
    ):
        score_function.__wrapped__(task.dataset, graphdef, 2, HISTORY)(params, constants)(
            np.arange(4)
        )


def test_scores_without_factors_are_made_for_fewer_users_at_once_where_the_catalogue_is_large():
    task = task_of(ratings=False)
    mlp, mf = (
        functools.partial(users_at_once, split(student_of(task, name))[0]) for name in ("mlp", "mf")
    )
    assert mlp(256, 10_000, 1) == 256 and mlp(256, 10**6, 1) == 64
    # A block is that of a device, and every device has a user to rank.
    assert mlp(256, 10**6, 4) == 256 and mlp(256, 20 * 10**6, 4) == 8
    assert mlp(256, 10**9, 6) == 6 and mlp(256, 10_000, 3) == mf(256, 10**9, 3) == 258
    assert mf(256, 10**9, 1) == 256


@pytest.mark.parametrize(
    ("name", "ratings"),
    first_fast([("mf", False), ("mlp", False), ("sasrec", False), ("mf", True), ("mlp", True)]),
)
def test_cached_labels_give_the_same_losses_as_the_teacher_in_the_step(name, ratings, tmp_path):
    task = task_of(ratings)
    student = student_of(task, name)
    graphdef, params, constants = teacher_of(task)
    live = online_teacher(graphdef, params, constants, example_kind=student.example_kind)
    examples = task.examples(student.example_kind, history=HISTORY, decay=3.0, user_power=0.5)
    labeller = labellers.of_model(
        graphdef, params, constants, example_kind=student.example_kind, rates=ratings
    )
    label_cache.write(tmp_path / "labels", labeller, examples, batch_size=7, batches_per_file=2)
    mesh, teacher = sharding.make_mesh(1, 1), cached_teacher(tmp_path / "labels")
    online, _ = losses(task, student, mesh, live)
    cached, _ = losses(task, student_of(task, name), mesh, teacher)
    for one, other in zip(online, cached, strict=True):
        assert one == pytest.approx(
            other, rel=2e-5
        )  # one program or two: XLA fuses them differently

    if not ratings and student.example_kind != "all":
        for shape in ((1, 1), (4, 1)):
            how = sharding.make_mesh(*shape), with_logits(teacher)
            once, _ = losses(task, student_of(task, name), *how)
            for one, other in zip(cached, once, strict=True):
                assert one == pytest.approx(other, rel=2e-5 if shape == (1, 1) else 1e-4)

    same, _ = fit_to_device({"teacher": teacher}, examples, budget=2**30)
    assert same["teacher"] is teacher
    kept, beside = fit_to_device(
        {"teacher": teacher}, examples, budget=0
    )  # the host adds labels to each batch
    assert not kept["teacher"].arrays.keys() & {"contexts", "logits"} and not beside.on_device
    for shape in ((1, 1), (4, 2)):
        by_host, _ = losses(
            task,
            student_of(task, name),
            sharding.make_mesh(*shape),
            kept["teacher"],
            examples=beside,
        )
        for one, other in zip(cached, by_host, strict=True):
            # Another program: on some CPUs a sum is rounded otherwise.
            assert one == pytest.approx(other, rel=1e-5 if shape == (1, 1) else 1e-4)


def test_writing_labels_goes_on_where_it_was_cut_off(tmp_path):
    task = task_of(False)
    examples, labeller = (
        examples_of(task, "user"),
        labellers.of_model(*teacher_of(task), example_kind="user"),
    )
    label_cache.prepare(tmp_path / "labels", "made by this")
    label_cache.write(tmp_path / "labels", labeller, examples, batch_size=7, batches_per_file=1)
    whole, files = (
        label_cache.read(tmp_path / "labels"),
        sorted((tmp_path / "labels").glob("rows-*")),
    )
    times = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    with pytest.raises(
        InputError, match="hold .* rows; delete the folder and run the 'labels' stage again"
    ):
        label_cache.read(tmp_path / "labels")
    asked, label = [], labeller.label
    again = dataclasses.replace(labeller, label=lambda batch: asked.append(1) or label(batch))
    label_cache.prepare(tmp_path / "labels", "made by this")
    label_cache.write(tmp_path / "labels", again, examples, batch_size=7, batches_per_file=1)
    jax.tree.map(np.testing.assert_array_equal, label_cache.read(tmp_path / "labels"), whole)
    assert len(asked) == 1 and len(files) > 3
    assert [path.stat().st_mtime_ns for i, path in enumerate(files) if i != 1] == [
        t for i, t in enumerate(times) if i != 1
    ]
    label_cache.prepare(tmp_path / "labels", "made by another")
    assert not list((tmp_path / "labels").glob("rows-*"))


def test_what_of_several_teachers_does_not_fit_is_read_by_the_host():
    arrays = {"contexts": np.zeros((10, 1, 4), np.float32), "items": np.zeros((9, 4), np.float32)}
    teachers = {name: Teacher(arrays, _cached_scores, lambda: np.zeros(9)) for name in "abc"}
    teachers["b"] = dataclasses.replace(
        teachers["b"], arrays=arrays | {"weights": np.ones((10, 1), np.float32)}
    )
    examples = examples_of(task_of(False), "user")
    kept, changed = fit_to_device(teachers, examples, budget=2 * 160)
    assert [("contexts" in kept[name].arrays) for name in "abc"] == [True, False, True]
    batch = changed.gather(np.array([3, 4]))
    assert batch["labels of b"].keys() == {"contexts", "weights"} and not batch.keys() & {
        "labels of a",
        "labels of c",
    }
    assert kept["b"].scores(kept["b"].arrays | {"bias": np.zeros(9)}, batch).weights.shape == (2, 1)


@pytest.mark.parametrize("ratings", [False, True])
def test_labels_of_several_teachers_are_the_mean_of_their_logits(ratings, tmp_path):
    task = task_of(ratings)
    examples = task.examples("user", history=HISTORY, decay=3.0, user_power=0.5)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, seed in zip(folders, (5, 6), strict=True):
        label_cache.write(
            folder,
            labellers.of_model(*teacher_of(task, seed), example_kind="user", rates=ratings),
            examples,
        )

    def logits(*folders):
        teacher = cached_teacher(*folders)
        scores = teacher.scores(teacher.arrays, examples.gather(np.arange(6))).scores
        return np.asarray(scores if ratings else scores.dense()), teacher.bias

    (one, _), (other, _), (both, bias) = logits(folders[0]), logits(folders[1]), logits(*folders)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-5)
    if not ratings:
        assert bias().shape == (task.dataset.num_items,)


@pytest.mark.parametrize("name", first_fast(["mf", "sasrec"]))
@pytest.mark.parametrize("shape", first_fast([((2, 2),), ((1, 2),), ((8, 1),), ((2, 4),)]))
def test_losses_do_not_depend_on_the_mesh(name, shape, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    task = task_of(False)
    teacher = online_teacher(*teacher_of(task), example_kind=student_of(task, name).example_kind)
    alone, _ = losses(task, student_of(task, name), sharding.make_mesh(1, 1), teacher)
    many, state = losses(task, student_of(task, name), sharding.make_mesh(*shape), teacher)
    for one, other in zip(alone, many, strict=True):
        assert one == pytest.approx(
            other, rel=1e-4
        )  # sums over devices are rounded in another order
    spec = state.params["item"].sharding.spec
    assert spec == (PartitionSpec("model") if shape[1] > 1 else PartitionSpec())
    moments = [
        leaf
        for leaf in jax.tree.leaves(state.opt_state)
        if leaf.shape == state.params["item"].shape
    ]
    assert moments and all(leaf.sharding.spec == spec for leaf in moments)


@pytest.mark.parametrize(("name", "shape"), [("mf", (2, 4)), ("sasrec", (1, 4)), ("mlp", (1, 4))])
@pytest.mark.slow
def test_losses_do_not_depend_on_whether_the_mesh_divides_the_tables(
    name, shape, monkeypatch, tmp_path
):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    task, folder = task_of(False, **ODD), tmp_path / "labels"
    student = student_of(task, name)
    examples = task.examples(student.example_kind, history=HISTORY, decay=3.0, user_power=0.5)
    label_cache.write(
        folder, labellers.of_model(*teacher_of(task), example_kind=student.example_kind), examples
    )
    teacher = cached_teacher(folder)
    alone, one = losses(task, student_of(task, name), sharding.make_mesh(1, 1), teacher)
    many, state = losses(task, student, sharding.make_mesh(*shape), teacher)
    for a, b in zip(alone, many, strict=True):
        assert a == pytest.approx(b, rel=1e-4)  # sums over devices are rounded in another order
    np.testing.assert_allclose(state.params["item"][:23], one.params["item"], atol=2e-5)
    tables = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (24, 16)]
    assert len(tables) == 3 and not any(np.any(table[23:]) for table in tables)
    assert all(table.sharding.spec == PartitionSpec("model") for table in tables)


@pytest.mark.slow
def test_tables_that_the_mesh_does_not_divide_send_no_more(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    scaling = importlib.import_module("scaling")
    spec = {
        "count": 4,
        "axis": "model",
        "model": "mf",
        "batch": 16,
        "dim": 8,
        "length": 4,
        "teacher": True,
    }
    even, odd = (scaling.measure(spec | {"items": items})["collectives"] for items in (8192, 8191))
    assert [(c["kind"], c["shape"]) for c in even] == [(c["kind"], c["shape"]) for c in odd]
    assert max(c["bytes"] for c in odd) < 4 * 8192  # no table


@pytest.mark.slow
def test_checkpoints_do_not_depend_on_the_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    fits = {
        shape: Fit(tmp_path / str(shape[1]), shape, ODD, steps=10) for shape in ((1, 1), (2, 4))
    }
    alone, many = (fit().params for fit in fits.values())
    cut = Fit(tmp_path / "cut", (2, 4), ODD, steps=10)
    cut.watch = lambda evaluation: os.kill(os.getpid(), signal.SIGTERM) if evaluation == 1 else None
    with pytest.raises(Preempted):
        cut()
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    assert_same(cut().params, many)  # to the bit
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "4"))
    for found in (many, Fit(tmp_path / "moved", (1, 1), ODD, steps=10)().params):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, alone)
    shapes = [
        jax.tree.map(np.shape, final_state(tmp_path / name)) for name in ("1", "4", "cut", "moved")
    ]
    assert all(found == shapes[0] for found in shapes)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(
        InputError, match="batch size of student=10 is not divisible by the 4 devices"
    ):
        sharding.check_batch_size(10, sharding.make_mesh(4, 1), "batch size of student")
    with pytest.raises(InputError, match="does not fit the 8 device"):
        sharding.make_mesh(3, 3)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("number", "status"), first_fast([(signal.SIGTERM, 143), (signal.SIGINT, 130)])
)
def test_a_run_stopped_by_a_signal_saves_and_ends_as_if_it_had_not_been(tmp_path, number, status):
    whole = Fit(tmp_path / "whole")()
    cut = Fit(tmp_path / "cut")
    cut.watch = lambda evaluation: os.kill(os.getpid(), number) if evaluation in (2, 4) else None
    for saved in (10, 20):
        with pytest.raises(Preempted) as stopped:
            cut()
        assert stopped.value.code == status
        assert Checkpoints(tmp_path / "cut/student").latest() == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = cut()
    assert (resumed.best_step, resumed.best_score) == (whole.best_step, whole.best_score)
    assert_same(resumed.params, whole.params)
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


def test_training_learns_and_the_best_step_is_kept(tmp_path):
    fit = Fit(tmp_path, steps=60, learning_rate=0.05)
    trained = fit()
    events = [
        line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"valid"' in line
    ]
    scores = [float(line.split('"ndcg@10": ')[1].split("}")[0]) for line in events]
    assert trained.best_score == max(scores) > scores[0]
    assert trained.best_step == 5 * (1 + scores.index(max(scores)))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.slow
def test_a_trace_has_the_times_of_computation_and_communication(devices, tmp_path):
    fit = Fit(tmp_path / "run", (devices, 1))
    fit.traces = tmp_path / "trace"
    fit()
    events = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    (event,) = [event for event in events if "device_ms" in event]
    assert event["step"] == 15 and event["device_ms"]["compute"] > 0
    assert (event["device_ms"]["collective"] > 0) == (devices > 1)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_patience_stops_training(tmp_path):
    trained = Fit(tmp_path, steps=200, learning_rate=1e-20, patience=2)()
    assert (trained.best_step, trained.steps) == (5, 15)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    Fit(tmp_path, steps=5)()
    with pytest.raises(
        InputError,
        match=r"student: the loss is not finite at step \d+ .*checkpoint of step 5 is kept",
    ):
        Fit(tmp_path, steps=40, learning_rate=float("inf"))()
    kept = final_state(tmp_path)
    assert kept["step"] == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept["params"]))


def test_a_stop_does_not_save_parameters_that_are_not_finite(tmp_path, monkeypatch):
    Fit(tmp_path, steps=5)()
    monkeypatch.setattr(Preemption, "requested", lambda self: True)  # between two evaluations
    monkeypatch.setattr(Recipe, "chunk", 1)
    stopped = Fit(tmp_path, steps=40, learning_rate=float("inf"))
    with pytest.raises(InputError, match=r"\(param_norm=nan\).* checkpoint of step 5 is kept"):
        stopped()
    assert final_state(tmp_path)["step"] == 5


def test_training_time_is_that_of_all_the_processes_that_trained(tmp_path):
    before = Fit(tmp_path, steps=5)().seconds
    again = Fit(tmp_path, steps=5)()  # nothing is left to do
    assert before * 0.5 < again.seconds < before + 2
    assert Checkpoints(tmp_path / "student").seconds() > 0


def test_checkpoints_of_another_config_are_refused_by_field(tmp_path):
    Fit(tmp_path, steps=5)(identity={"student": {"dim": 16, "name": "mf"}})
    with pytest.raises(InputError, match=r"another config \(student.dim: 16 there, 32 here\)"):
        Checkpoints(tmp_path / "student", {"student": {"dim": 32, "name": "mf"}})
    with pytest.raises(InputError, match="parameter user has shape"):
        Checkpoints(tmp_path / "student").params(
            5, {"user": jnp.zeros((2, 2)), "item": jnp.zeros((24, 16)), "bias": jnp.zeros(24)}
        )


def test_a_checkpoint_restores_as_a_plain_tree_where_kd_jax_cannot_be_imported(tmp_path):
    trained = Fit(tmp_path, steps=5)()
    program = (
        "import sys; sys.modules['kd_jax'] = None\n"
        "import orbax.checkpoint as ocp, numpy as np\n"
        "tree = ocp.PyTreeCheckpointer().restore(sys.argv[1])\n"
        "assert type(tree) is dict, type(tree)\n"
        "np.save(sys.argv[2], np.asarray(tree['params']['item']))\n"
    )
    target = tmp_path / "item.npy"
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "student/checkpoints/5/state"), str(target)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    np.testing.assert_array_equal(np.load(target), trained.params["item"])


def test_dropout_differs_between_steps_and_is_off_in_evaluation():
    task = task_of(False)
    student = student_of(task, "mf", dropout=0.5)
    student.user[...] = jnp.ones_like(student.user[...])
    batch = task.examples("user", history=HISTORY, decay=3.0, user_power=0.5).gather(np.arange(4))
    one, other = (student.logits(batch, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert jnp.abs(one - other).max() > 0
    np.testing.assert_array_equal(student.logits(batch), student.logits(batch))


def test_models_that_differ_in_the_seed_alone_share_a_program():
    task, mesh, shared = task_of(ratings=False), sharding.make_mesh(1, 1), {}
    examples = examples_of(task, "user")
    batch = jax.tree.map(lambda x: x[None], examples.gather(np.arange(16)))

    def stepped(seed, rate, programs):
        graphdef, params, constants = split(student_of(task, "mf", seed))
        spec = StepSpec(graphdef, (term("ce"),), Recipe(2, 16, rate).tx(), 2)
        step, state = compiled_step(spec, params, mesh=mesh, seed=seed, programs=programs)
        state, _ = step(state, batch, None, sharding.put(constants, mesh), {})
        return step, jax.device_get(state.params)

    first, _ = stepped(0, 1e-2, shared)
    again, found = stepped(1, 1e-2, shared)
    assert again is first and len(shared) == 1 and first._cache_size() == 1
    alone, wanted = stepped(1, 1e-2, None)
    assert alone is not first
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    other, faster = stepped(1, 2e-2, shared)
    assert other is not first and len(shared) == 2
    assert any(np.any(faster[name] != found[name]) for name in found)
