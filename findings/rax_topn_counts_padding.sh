#!/usr/bin/env bash
# rax 0.4.0 (jax 0.6.2 and 0.10.2): with topn and a mask, the approximate metrics give the first
# places to the padding, so that a loss of Recall@10 counts as if only the first place mattered.
#
# Docstrings: where is for "which items are valid for computing the metric", and approx_t12n makes
# a loss of a metric. Expected: a list gives the same loss and gradient however many masked items
# stand behind it, as without topn, and as the exact metrics do. Seen, with no error and no
# warning: approx_ranks gives each masked item rank 1, and the metrics hand these ranks to
# cutoff_fn without the mask, so that the masked items fill the first topn places.
#   approx_t12n: with topn masked items or more, the cut lies at place 1, not at topn + 1/2. So
#     the lists of one batch have different cuts, by their padding;
#   bound_t12n: the bound falls with each masked item;
#   rank_fn=approx_ranks with the usual cutoff: value and gradient are 0;
#   average precision, also without topn: a masked item with a label of 1 or more is a hit at the
#     first place, and the metric passes 1.
# Below, a model is trained with Recall@10 as the loss, on lists of 12 to 40 items. In a buffer of
# 64 places NDCG@10 of other lists ends near 0.8, against 0.93 with the workaround: a cutoff_fn
# that knows the mask, with which the loss is that of the lists without padding. Padded to the
# longest list it loses little, which makes it hard to see.
# Source: metrics.py, _retrieved_items, call of cutoff_fn; utils.py, approx_ranks, initial=1.0.
# From jax 0.7.0 on approx_t12n itself does not start (jax.util.wraps is gone); what it passes to
# the metric, rank_fn and cutoff_fn, can be given by hand, and does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/program.py" <<'PYTHON'
import functools

import jax
import jax.numpy as jnp
import numpy as np
import rax

try:
    rax.approx_t12n(rax.ndcg_metric)
    by_hand = False
except AttributeError:
    by_hand = True
print("jax", jax.__version__, "| the arguments of approx_t12n", end=" ")
print("given by hand" if by_hand else "by approx_t12n")


def transformed(metric, ranks_step, cutoff_step):
    """What approx_t12n and bound_t12n return."""
    ranks = functools.partial(rax.utils.approx_ranks, step_fn=ranks_step)
    cutoff = functools.partial(rax.utils.approx_cutoff, step_fn=cutoff_step)
    return lambda scores, labels, **options: -metric(
        scores, labels, **{"rank_fn": ranks, "cutoff_fn": cutoff, **options}
    )


def approx(metric, temperature=1.0):
    if not by_hand:
        return rax.approx_t12n(metric, temperature)
    step = lambda x: jax.nn.sigmoid(x / temperature)
    return transformed(metric, step, step)


def bound(metric):
    if not by_hand:
        return rax.bound_t12n(metric)
    return transformed(metric, lambda x: jax.nn.relu(x + 1), lambda x: 1 - jax.nn.relu(1 - x))


random = np.random.default_rng(0)
ITEMS = 8
scores = random.normal(size=ITEMS).astype(np.float32)
labels = np.array([0, 1, 0, 1, 0, 0, 1, 0], np.float32)


def padded(loss, padding, label=0.0, **options):
    """Loss and gradient of the list with masked items behind it."""
    behind = functools.partial(np.pad, pad_width=(0, padding))
    where = jnp.arange(ITEMS + padding) < ITEMS
    known = jnp.asarray(behind(labels, constant_values=label))
    # the scores of the padding are as those of any model: neither high nor low
    value, slope = jax.value_and_grad(loss)(
        jnp.asarray(behind(scores)), known, where=where, **options
    )
    assert (slope[ITEMS:] == 0).all()
    return float(value), np.asarray(slope[:ITEMS])


def same(a, b):
    return np.isclose(a[0], b[0], atol=1e-5) and np.allclose(a[1], b[1], atol=1e-5)


exact = lambda metric: lambda *arguments, **options: -metric(*arguments, **options)
ranks_only = functools.partial(rax.ndcg_metric, rank_fn=rax.utils.approx_ranks)
rows = {
    "approx NDCG": (approx(rax.ndcg_metric), {}, True),
    "exact NDCG@3": (exact(rax.ndcg_metric), {"topn": 3}, True),
    "approx NDCG@3": (approx(rax.ndcg_metric), {"topn": 3}, False),
    "approx Recall@3": (approx(rax.recall_metric), {"topn": 3}, False),
    "approx MRR@3": (approx(rax.mrr_metric), {"topn": 3}, False),
    "approx AP@3": (approx(rax.ap_metric), {"topn": 3}, False),
    "bound NDCG@3": (bound(rax.ndcg_metric), {"topn": 3}, False),
    "approx ranks, NDCG@3": (exact(ranks_only), {"topn": 3}, False),
    "exact AP, labels 1": (exact(rax.ap_metric), {"label": 1.0}, True),
    "approx AP, labels 1": (approx(rax.ap_metric), {"label": 1.0}, False),
}
for name, (loss, options, right) in rows.items():
    found = [padded(loss, padding, **options) for padding in (0, 2, 12)]
    print(f"   {name:21}| metric with 0, 2, 12 masked items:", end=" ")
    print(*(f"{-value:.3f}" for value, _ in found), end=" | length of the gradient ")
    print(*(f"{np.linalg.norm(slope):.3f}" for _, slope in found))
    assert all(same(found[0], x) for x in found) == right, f"changed: {name}"
    if name.startswith("bound"):
        assert -found[-1][0] < -1, "changed: the bound of NDCG"
    if name.startswith("approx ranks"):
        assert found[-1][0] == 0 and (found[-1][1] == 0).all(), "changed: approx_ranks alone"


def with_mask(where, temperature):
    """The workaround: a cutoff that knows the mask."""
    step = lambda x: jax.nn.sigmoid(x / temperature)
    return functools.partial(rax.utils.approx_cutoff, where=where, step_fn=step)


for name in ("approx NDCG@3", "approx Recall@3", "approx MRR@3", "approx AP@3"):
    loss, options, _ = rows[name]
    cutoff = with_mask(jnp.arange(ITEMS + 12) < ITEMS, 1.0)
    assert same(padded(loss, 12, cutoff_fn=cutoff, **options), padded(loss, 0, **options)), name

# with topn masked items or more, the cut is at place 1
places = jnp.asarray(-(jnp.arange(8) + 1.0))
masked = jnp.concatenate([places, -jnp.ones(3)])
cuts = np.asarray(rax.utils.approx_cutoff(masked, n=3)[:8])
print("   weight of places 1 to 5 in a top 3, none masked:", end=" ")
print(*(f"{x:.2f}" for x in rax.utils.approx_cutoff(places, n=3)[:5]), end=" | three masked: ")
print(*(f"{x:.2f}" for x in cuts[:5]))
assert np.allclose(cuts, jax.nn.sigmoid(places + 1), atol=1e-6)

if not by_hand:
    raise SystemExit  # the training is shown once, with the newer jax

# training: lists of 12 to 40 items, as they are in a batch and in a buffer of 64, linear model
LISTS, LONGEST, SIZE, TOP, TEMPERATURE = 300, 64, 8, 10, 0.1
truth = random.normal(size=SIZE)
features = random.normal(size=(LISTS, LONGEST, SIZE)).astype(np.float32)
where = np.arange(LONGEST) < random.integers(12, 41, LISTS)[:, None]
wanted = np.where(where, features @ truth + random.gumbel(size=where.shape), -np.inf)
clicked = (np.argsort(np.argsort(-wanted, axis=1), axis=1) < 6).astype(np.float32)
starts = 0.1 * random.normal(size=(3, SIZE)).astype(np.float32)
recall = approx(rax.recall_metric, TEMPERATURE)


def measured(weights):
    """The exact metric of other lists."""
    rest = features[150:] @ weights
    return float(rax.ndcg_metric(rest, clicked[150:], where=jnp.asarray(where[150:]), topn=TOP))


def trained(length, knows):
    mask, known = jnp.asarray(where[:150, :length]), jnp.asarray(clicked[:150, :length])
    options = {"cutoff_fn": with_mask(mask, TEMPERATURE)} if knows else {}
    table = jnp.asarray(features[:150, :length])
    loss = lambda weights: recall(table @ weights, known, where=mask, topn=TOP, **options)
    step = jax.jit(jax.vmap(lambda weights: weights - 0.5 * jax.grad(loss)(weights)))
    weights = jnp.asarray(starts)
    for _ in range(200):
        weights = step(weights)
    return [measured(w) for w in weights]


print("   exact NDCG@10 of other lists, three starts:", end=" ")
print(*(f"{measured(w):.2f}" for w in starts))
for length in (40, LONGEST):
    lost, kept = trained(length, False), trained(length, True)
    print(f"   after 200 steps, padded to {length}:", *(f"{x:.2f}" for x in lost), end=" | ")
    print("with a cutoff_fn that knows the mask:", *(f"{x:.2f}" for x in kept))
    assert min(kept) > 0.85, "changed: training with the workaround"
    if length == LONGEST:
        assert max(lost) < min(kept) - 0.05, "changed: training on padded lists"
PYTHON
for jax in 0.6.2 0.10.2; do
    python3 -m venv "$folder/$jax"
    "$folder/$jax/bin/python" -m pip install --quiet rax==0.4.0 "jax==$jax" numpy==2.4.6
    JAX_PLATFORMS=cpu "$folder/$jax/bin/python" -W ignore "$folder/program.py"
done
