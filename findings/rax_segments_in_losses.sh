#!/usr/bin/env bash
# rax 0.4.0 (jax 0.6.2 and 0.10.2): with segments, three parts of its losses still read the packed
# list as one list, so that packed lists train another model than the same lists apart.
#
# Docstrings: the loss "will only be computed on items that share the same segment"; segments "may
# or may not be sorted". Expected: the sum of a loss over lists packed into one array, with
# segments, is the sum over the lists, and so is its gradient, in any order of the items. That holds
# for softmax_loss, poly1_softmax_loss, unique_softmax_loss, pairwise losses, pointwise losses, the
# metrics. Seen, with no error and no warning:
#   dcg_lambdaweight, dcg2_lambdaweight, normalize=True: the gains of the first item of a segment
#     alone are divided by the ideal DCG. The weights change with the order of the items, and most
#     pairs have those of normalize=False;
#   softmax_loss, label_fn=rax.utils.normalize_probabilities, which takes segments: is called
#     without them. The labels of all lists together sum to 1: a list among 32 has about 1/32 of its
#     loss, and one with higher labels has more than the others;
#   listmle_loss: reads the segments in the order of the items, the scores in that of the sorted
#     labels, which is right only where equal segments stand together; and with where its gradient
#     is NaN, also where they do, though its value is right.
# (dcg_lambdaweight without normalize scales by the length of the array, packed or not, as the
# source says.) Below, LambdaRank with normalize=True trains a linear scorer on lists whose labels
# differ in scale: apart, all lists count alike; packed, those with high labels take most of the
# gradient, and NDCG of the others ends at 0.67, not 0.83.
# Source: lambdaweights.py, _generic_dcg_lambdaweight (dcg_metric with reduce_fn=None returns a value
# at the first item of each segment, 0 elsewhere, and 0 becomes 1); losses.py, softmax_loss and
# listmle_loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/program.py" <<'PYTHON'
import functools

import jax
import jax.numpy as jnp
import numpy as np
import rax

print("jax", jax.__version__)
random = np.random.default_rng(0)
LENGTHS = (3, 5, 4)
ends = np.cumsum((0, *LENGTHS))
scores = jnp.asarray(random.normal(size=ends[-1]), jnp.float32)
labels = jnp.asarray(random.integers(0, 3, ends[-1]), jnp.float32)
valid = jnp.asarray(np.arange(ends[-1]) % 4 != 2)
together = jnp.asarray(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
mixed = random.permutation(ends[-1])  # the same items, lists interleaved
probabilities = rax.utils.normalize_probabilities
logistic = rax.pairwise_logistic_loss
lambdas = {
    name: functools.partial(logistic, lambdaweight_fn=functools.partial(weight, normalize=True))
    for name, weight in (("dcg", rax.dcg_lambdaweight), ("dcg2", rax.dcg2_lambdaweight))
}


def apart(loss, scores, where=None):
    """The sum over the lists, each given alone."""
    total = 0.0
    for a, b in zip(ends[:-1], ends[1:]):
        given = {} if where is None else {"where": where[a:b]}
        found = loss(scores[a:b], labels[a:b], reduce_fn=jnp.sum, **given)
        # The weights of LambdaRank are scaled by the length of the array that holds the list.
        scale = len(scores) / (b - a) if loss in lambdas.values() else 1.0
        total += scale * found
    return total


def packed(loss, scores, where=None, order=slice(None)):
    given = {} if where is None else {"where": where[order]}
    return loss(
        scores[order], labels[order], segments=together[order], reduce_fn=jnp.sum, **given
    )


def compare(name, loss, right, where=None, order=slice(None)):
    """right: whether value and gradient are those of the lists apart."""
    want, slope = jax.value_and_grad(lambda x: apart(loss, x, where))(scores)
    have, packed_slope = jax.value_and_grad(lambda x: packed(loss, x, where, order))(scores)
    gap = float(jnp.max(jnp.abs(packed_slope - slope)))
    same = np.allclose(want, have, rtol=1e-4), gap < 1e-4
    print(f"{name:44s} apart {want:8.4f}, packed {have:8.4f}, largest gap of a slope {gap:.4f}")
    assert same == right, same


RIGHT, WRONG = (True, True), (False, False)
for name in ("softmax_loss", "poly1_softmax_loss", "unique_softmax_loss", "listmle_loss"):
    compare(name, getattr(rax, name), RIGHT)
compare("pairwise_logistic_loss", logistic, RIGHT)
compare("softmax_loss, interleaved", rax.softmax_loss, RIGHT, order=mixed)
compare("softmax_loss, where", rax.softmax_loss, RIGHT, where=valid)
plain = functools.partial(logistic, lambdaweight_fn=rax.dcg_lambdaweight)
lambdas["not normalized"] = plain
compare("LambdaRank, dcg, normalize=False", plain, RIGHT)
compare("LambdaRank, dcg, normalize=True", lambdas["dcg"], WRONG)
compare("LambdaRank, dcg2, normalize=True", lambdas["dcg2"], WRONG)
normalised = functools.partial(rax.softmax_loss, label_fn=probabilities)
compare("softmax_loss, normalize_probabilities", normalised, WRONG)
compare("listmle_loss, interleaved", rax.listmle_loss, WRONG, order=mixed)
compare("listmle_loss, where", rax.listmle_loss, (True, False), where=valid)  # NaN

orders = [packed(lambdas["dcg"], scores, order=o) for o in (np.arange(ends[-1]), mixed)]
print("LambdaRank, normalize=True, in two orders of the same items:", *map(float, orders))
assert not np.allclose(*orders, rtol=0.01)

# 32 lists of 8 items, half of them with labels of 0 to 1, half with labels of 4 to 5: two groups
# of queries in which other features matter.
LISTS, ITEMS, WIDTH = 32, 8, 6
features = random.normal(size=(LISTS, ITEMS, WIDTH)).astype(np.float32)
high = np.arange(LISTS) % 2 == 1
matters = np.zeros((LISTS, WIDTH))
matters[~high, 0], matters[high, 1] = 1, 1
hits = np.einsum("lif,lf->li", features, matters) > 0.5
grades = jnp.asarray(np.where(high[:, None], 4.0, 0.0) * hits + hits, jnp.float32)
features = jnp.asarray(features)
of_list = jnp.repeat(jnp.arange(LISTS), ITEMS)
loss = lambdas["dcg"]


def train(value, steps=200):
    slope = jax.jit(jax.grad(value))
    weights = jnp.zeros(WIDTH)
    for _ in range(steps):
        step = slope(weights)
        weights -= 0.05 * step / jnp.linalg.norm(step)
    return weights


one_by_one = train(lambda w: jnp.sum(loss(features @ w, grades, reduce_fn=jnp.sum)))
in_one = train(
    lambda w: loss(
        (features @ w).ravel(), grades.ravel(), segments=of_list, reduce_fn=jnp.sum
    )
)
for name, w in (("apart", one_by_one), ("packed", in_one)):
    quality = rax.ndcg_metric(features @ w, grades, reduce_fn=None)
    means = [float(jnp.mean(quality[group])) for group in (~high, high)]
    print(f"trained on lists {name:6s}: NDCG of low labels {means[0]:.3f}, of high {means[1]:.3f}")
    ratio = float(w[0] / w[1])
    print(f"    weight of the feature of low labels / of that of high labels: {ratio:.2f}")
    assert (ratio > 0.6) == (name == "apart"), ratio
print("as described")
PYTHON
for jax in 0.6.2 0.10.2; do
    python3 -m venv "$folder/$jax"
    "$folder/$jax/bin/python" -m pip install --quiet rax==0.4.0 "jax==$jax" numpy==2.4.6
    JAX_PLATFORMS=cpu "$folder/$jax/bin/python" -W ignore "$folder/program.py"
done
