"""The example of docs/compression.md on a finished run, and the reduction of teacher vectors.

The example is examples/use_vectors.py; benchmarks/vector_sizes.py reduces the vectors.
"""

from __future__ import annotations

import re
import shutil

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from benchmarks import vector_sizes
from examples import use_vectors
from helpers import toy
from helpers.runs import config, metrics_of, run
from kd_jax.core.errors import InputError
from kd_jax.data import dataset as datasets
from kd_jax.distillation import label_cache
from kd_jax.experiment.smaller import cut

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    c = config(world, **{"eval.metrics": ("ndcg",), "eval.ks": (10,)})
    return root, c, vector_sizes.measure(c, root, [4, 16])


@pytest.fixture(scope="module")
def finished(measured):
    root, c, _ = measured
    c.stages = ("export",)
    for role in ("student", "distilled"):
        c.tuned[role] = {"student": {"mf": {"dim": 16}}}
    run(c, root / "dim16")
    return root / "dim16"


def test_the_example_prints_a_table_of_numbers_in_range(finished, capsys):
    use_vectors.main(finished)
    printed = capsys.readouterr().out
    ranked = dict(re.findall(r"^  (\S.*?)  +(\d\.\d{4} +\d\.\d{4})$", printed, re.M))
    assert ranked.keys() == {
        "popularity",
        "item-kNN on co-occurrence",
        "item-kNN on vectors of distilled",
        "the student's item biases",
        "the student",
    }
    values = [float(value) for pair in ranked.values() for value in pair.split()]
    assert all(0 <= value <= 1 for value in values) and len(set(values)) > 2
    output = re.findall(r"logistic regression on (\S.*?) +(\d\.\d{4})$", printed, re.M)
    assert [name for name, _ in output] == ["popularity", "vectors", "vectors and popularity"]
    assert all(0 < float(auc) < 1 for _, auc in output)


def test_the_example_names_a_missing_file(finished, tmp_path):
    (tmp_path / "dataset").symlink_to(finished / "dataset")
    with pytest.raises(InputError, match="student.safetensors is missing: finish a run with the"):
        use_vectors.main(tmp_path)


def test_the_example_refuses_the_tables_of_another_student(finished, tmp_path):
    (tmp_path / "dataset").symlink_to(finished / "dataset")
    (tmp_path / "export").mkdir()
    tensors = load_file(finished / "export/student.safetensors") | {"out.kernel": np.ones((2, 2))}
    save_file(tensors, tmp_path / "export/student.safetensors")
    with pytest.raises(InputError, match="is not of a matrix factorisation that ranks: finish"):
        use_vectors.main(tmp_path)


def test_the_example_reads_the_student_as_it_was_trained(finished, tmp_path, capsys):
    """The vectors of the other files know the interactions that it ranks."""
    (tmp_path / "dataset").symlink_to(finished / "dataset")
    (tmp_path / "export").mkdir()
    for kind in ("safetensors", "json"):
        shutil.copy(finished / f"export/student.{kind}", tmp_path / "export")
    use_vectors.main(tmp_path)
    found = re.search(r"^  the student  +(\S+)", capsys.readouterr().out, re.M)
    assert found is not None
    models = {model["name"]: model["test"] for model in metrics_of(finished)["models"]}
    assert float(found[1]) == pytest.approx(models["distilled"]["ndcg@10"], abs=6e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_item_knn_sums_the_cosines_of_the_history(sparse):
    rng = np.random.default_rng(0)
    vectors, history = rng.normal(size=(9, 4)), (rng.random((5, 9)) < 0.4).astype(float)
    vectors[3] = 0.0
    want = history @ cosine_similarity(vectors)
    scores = use_vectors.item_knn(csr_array(history), csr_array(vectors) if sparse else vectors)
    np.testing.assert_allclose(scores(np.array([4, 1])), want[[4, 1]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [0, 2])
def test_sampled_pairs_are_real_ones_and_ones_that_never_were(split):
    data = toy.dataset()
    user, item, real = use_vectors.draw_pairs(data, split, np.random.default_rng(0))
    pairs, half = list(zip(user.tolist(), item.tolist(), strict=True)), len(user) // 2
    there = data.split == split
    assert pairs[:half] == list(
        zip(data.user[there].tolist(), data.item[there].tolist(), strict=True)
    )
    until = data.split <= split
    assert not set(pairs[half:]) & set(
        zip(data.user[until].tolist(), data.item[until].tolist(), strict=True)
    )
    assert (
        user[half:].tolist() == user[:half].tolist()
        and real.tolist() == [1.0] * half + [0.0] * half
    )


def test_logistic_regression_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, size=(300, 5)).astype(np.float32)
    y = (x @ [0.3, -0.2, 0.0, 0.1, 0.0] + rng.normal(size=300) > 0.4).astype(float)
    ours = use_vectors.logistic_regression(x, y, penalty=0.01)(x)
    scaled = StandardScaler().fit_transform(x)
    theirs = (
        LogisticRegression(C=1 / (2 * 0.01 * len(x)), tol=1e-8)
        .fit(scaled, y)
        .decision_function(scaled)
    )
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


@pytest.fixture(scope="module")
def label_folder(finished):
    return finished / "labels/teacher.seed0"


def test_moving_the_mean_context_into_the_bias_changes_no_score(label_folder):
    found = label_cache.read(label_folder)
    contexts, items, bias = vector_sizes.teacher_vectors(label_folder)
    want = found["contexts"][:, -1] @ found["items"].T + found["bias"][None]
    np.testing.assert_allclose(contexts @ items.T + bias[None], want, atol=1e-4)
    users, vectors = cut(contexts, items, items.shape[1])
    np.testing.assert_allclose(users @ vectors.T + bias[None], want, atol=1e-4)
    assert np.abs(contexts.mean(0)).max() < 1e-5 < np.abs(found["contexts"].mean(0)).max()


def test_the_benchmark_measures_every_size_and_shares_one_teacher(measured):
    root, _, found = measured
    assert [row["dim"] for row in found["sizes"]] == [4, 16]
    assert [row["bytes"] for row in found["sizes"]] == [
        4 * (dim * (40 + 24) + 24) for dim in (4, 16)
    ]
    files = [
        (root / f"dim{dim}/labels/teacher.seed0/rows-00000.safetensors").read_bytes()
        for dim in (4, 16)
    ]
    assert files[0] == files[1] and not (root / "dim16/teacher").exists()
    for row in found["sizes"]:
        for name in ("student", "distilled", "pca"):
            assert 0 <= row[name]["warm"] <= 1 and 0 <= row[name]["all"] <= 1
    assert found["sizes"][1]["pca"] == pytest.approx(
        {k: found["teacher"][k] for k in ("all", "warm")}, abs=1e-6
    )
    lines = vector_sizes.table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "0, biases alone",
        "4",
        "16",
        "16, uncut",
    ]


def test_a_scorer_is_judged_like_the_student_that_was_exported(finished):
    data = datasets.load(finished / "dataset")
    users, items = (
        pl.read_parquet(finished / f"export/{kind}_vectors.parquet") for kind in ("user", "item")
    )
    arrays = users["vector"].to_numpy(), items["vector"].to_numpy(), items["bias"].to_numpy()
    judged = vector_sizes.evaluate(data, *arrays)
    scores = jnp.asarray(arrays[0] @ arrays[1].T + arrays[2][None])
    history, targets = data.history(2), data.targets(2)
    gains = []
    for user in range(
        data.num_users
    ):  # leave-one-out: one target each, so NDCG@10 is 1 / log2(1 + rank)
        ranked = np.array(scores[user])
        ranked[history[1][history[0][user] : history[0][user + 1]]] = -np.inf
        rank = int(np.sum(ranked >= ranked[targets[1][targets[0][user]]]))
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    assert judged["all"] == pytest.approx(np.mean(gains), abs=1e-5)
