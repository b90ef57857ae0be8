"""Use the exported vectors of a run in two models without a language model.

    python examples/use_vectors.py --workdir=runs/quickstart

An item-kNN recommender and a logistic regression read the vectors of the exported student of a
finished run, a matrix factorisation. Both are fitted on the train split and evaluated on the test
split, so the vectors are those of student.safetensors, as they were trained: the vectors of the
other files are the served ones, which know all interactions.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from scipy.optimize import minimize
from scipy.sparse import csr_array, diags_array, issparse

from kd_jax.core.errors import InputError
from kd_jax.data import dataset as datasets
from kd_jax.evaluation.evaluator import evaluate_rank, popularity
from kd_jax.evaluation.metrics import binary_auc

TRAIN = 0
TEST = 2


def item_knn(history, vectors):
    """A function from users to scores [users, I].

    A score is the sum of the cosines between the item's vector and those of the user's history.
    history: sparse [U, I]. vectors: [I, D], dense or sparse. The cosines of all item pairs are not
    computed.
    """
    length = np.sqrt((vectors * vectors).sum(axis=1))
    directions = diags_array(1 / np.maximum(length, 1e-12)) @ vectors
    dense = csr_array.toarray if issparse(directions) else np.asarray
    return lambda users: jnp.asarray(dense(history[users] @ directions @ directions.T))


def draw_pairs(data, split, rng):
    """Users [N], items [N] and labels [N] of pairs.

    They are the interactions of ``split`` by users with a train interaction (label 1), and for each
    of these a random item that the user had not chosen by the end of ``split`` (label 0).
    """
    usable = (np.diff(data.targets(TRAIN)[0]) > 0) & (np.diff(data.indptr) < data.num_items)
    rows = (data.split == split) & usable[data.user]
    key = data.user.astype(np.int64) * data.num_items
    first = key[rows]
    item = data.item[rows]
    taken = (key + data.item)[data.split <= split]
    other = rng.integers(data.num_items, size=len(item))
    while (again := np.isin(first + other, taken)).any():
        other[again] = rng.integers(data.num_items, size=again.sum())
    return (
        np.tile(data.user[rows], 2),
        np.concatenate([item, other]),
        np.repeat([1.0, 0.0], len(item)),
    )


def logistic_regression(features, real, penalty=1e-4):
    """Fits labels ``real`` [N] in {0, 1} to standardised features [N, F].

    Returns a function from features [M, F] to log-odds [M].
    """
    mean = features.mean(0)[None]
    std = np.maximum(features.std(0), 1e-6)[None]

    @jax.jit
    @jax.value_and_grad
    def loss(w, x, real):
        logits = x @ w[1:] + w[0]
        return jnp.mean(jnp.logaddexp(0.0, logits) - real * logits) + penalty * jnp.sum(w[1:] ** 2)

    x = jnp.asarray((features - mean) / std)
    real = jnp.asarray(real, jnp.float32)
    w = minimize(
        lambda w: [np.float64(part) for part in loss(jnp.float32(w), x, real)],
        np.zeros(1 + x.shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 200},
    ).x
    return lambda features: (features - mean) / std @ w[1:] + w[0]


def main(workdir):
    data = datasets.load(workdir / "dataset")
    path = workdir / "export/student.safetensors"
    if not path.exists():
        raise InputError(f"{path} is missing: finish a run with the stage 'export'")
    weights = load_file(path)  # rows are in the order of data
    if weights.keys() != {"user", "item", "bias"}:
        raise InputError(
            f"{path} is not of a matrix factorisation that ranks: finish a run of"
            " student.name='mf' and task='rank'"
        )
    model = json.loads(path.with_suffix(".json").read_text())["model"]
    users, items, bias = weights["user"], weights["item"], weights["bias"]

    def matrix(rows):
        ones = np.ones(rows.sum(), np.float32)
        return csr_array(
            (ones, (data.user[rows], data.item[rows])), shape=(data.num_users, data.num_items)
        )

    history = matrix(data.split != TEST)
    train = matrix(data.split == TRAIN)
    print(f"{model + ', first seed: ranking, NDCG@10':<36}  all items   warm items")
    for name, scores in {
        "popularity": popularity(data),
        "item-kNN on co-occurrence": item_knn(history, csr_array(train.T)),
        f"item-kNN on vectors of {model}": item_knn(history, items),
        "the student's item biases": lambda rows: jnp.tile(bias, (len(rows), 1)),
        "the student": lambda rows: jnp.asarray(users[rows] @ items.T + bias[None]),
    }.items():
        result = evaluate_rank(scores, data, TEST, metrics=("ndcg",), ks=(10,))
        print(
            f"  {name:<34}{result.metrics['ndcg@10']:>11.4f}"
            f"{result.slices['warm']['ndcg@10']:>13.4f}"
        )

    rng = np.random.default_rng(0)
    count = np.log1p(data.item_counts).astype(np.float32)[:, None]
    train_pairs = draw_pairs(data, TRAIN, rng)
    test_pairs = draw_pairs(data, TEST, rng)
    print(f"{len(test_pairs[2]) // 2:,} test pairs among as many others      AUC")
    for name, features in {
        "popularity": lambda u, i: count[i],
        "vectors": lambda u, i: np.hstack([users[u], items[i], users[u] * items[i]]),
        "vectors and popularity": lambda u, i: np.hstack(
            [users[u], items[i], users[u] * items[i], count[i]]
        ),
    }.items():
        model = logistic_regression(features(*train_pairs[:2]), train_pairs[2])
        auc = binary_auc(model(features(*test_pairs[:2])), test_pairs[2] > 0)
        print(f"  logistic regression on {name:<23} {auc:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    try:
        main(parser.parse_args().workdir)
    except InputError as error:
        sys.exit(f"error: {error}")
