#!/usr/bin/env bash
# keras-rs 0.4.0 (Keras 3.15.1 on JAX): RemoveAccidentalHits returns the logits as they came in, so
# in-batch training still pushes a user away from the user's own positive item.
#
# Docstring: the layer zeroes "the logits of negative candidates that have the same ID as the
# positive candidate in that row". Expected: such a logit is 0, as the sentence says, or so small
# that its softmax is 0. Seen, with no error and no warning: neither. In the source, it adds
# finfo("float32").smallest_normal / 100, a positive 1.2e-40, in place of the lowest float; a logit
# of normal size absorbs it. Below, for a batch with a popular item in some rows,
#   the output is the input to the bit, for ids of one row and for ids of each row;
#   the loss is that without the layer, and its gradient still lowers the scores of the copies of
#     the positive item;
#   with the same item in all 8 rows the loss is log(8), where it should be 0.
# This hurts anyone who trains a two-tower model with it: popular items are held down, as without
# the layer.
# Workaround: mask the logits by hand, as masked() below. keras-rs has an open pull request for it
# (206, of September 2026); 0.4.0, the newest release, has the fault.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet keras-rs==0.4.0 keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 \
  numpy==2.4.6 ml-dtypes==0.6.0
export KERAS_BACKEND=jax KERAS_HOME="$folder/keras" JAX_PLATFORMS=cpu
cat >"$folder/program.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import keras
import keras_rs
import numpy as np

print("keras-rs", keras_rs.__version__, "| keras", keras.__version__, "| jax", jax.__version__)
layer = keras_rs.layers.RemoveAccidentalHits()


def masked(logits, labels, ids):
    """What the layer is for: a negative with the id of the positive gets no probability."""
    ids = jnp.broadcast_to(ids, labels.shape)
    positive = jnp.take_along_axis(ids, labels.argmax(-1, keepdims=True), axis=-1)
    return jnp.where((ids == positive) & (labels == 0), -1e9, logits)


def loss(logits, labels, ids, filtered):
    logits = filtered(logits, labels, ids) if filtered else logits
    return -(labels * jax.nn.log_softmax(logits)).sum(-1).mean()


# row n has the item of column n: item 7 is that of rows 0, 1 and 3
ROWS = 5
ids = jnp.array([7, 7, 9, 7, 4])
labels = jnp.eye(ROWS)
logits = jnp.array(np.random.default_rng(0).normal(size=(ROWS, ROWS)), jnp.float32)
hits = (ids[None] == ids[:, None]) & (labels == 0)
assert hits.sum() == 6

ONE, EACH = ids, jnp.tile(ids, (ROWS, 1))
for name, candidates in {"ids of one row": ONE, "ids of each row": EACH}.items():
    found = layer(logits, labels, candidates)
    share = jnp.where(hits, jax.nn.softmax(found), 0).sum(-1)
    right = jnp.where(hits, jax.nn.softmax(masked(logits, labels, candidates)), 0).sum(-1)
    print("  ", name, "| output is the input:", bool((found == logits).all()), end=" ")
    shares = [f"{value:.2f}" for value in share.tolist()]
    print("| probability of accidental hits:", shares, end=" ")
    print("| masked:", right.tolist())
    assert (found == logits).all(), "changed: the layer changes logits"
    assert (right == 0).all()
    assert (share[jnp.array([0, 1, 3])] > 0.1).all()

found = {
    name: jax.value_and_grad(loss)(logits, labels, ONE, filtered)
    for name, filtered in {"no layer": None, "the layer": layer, "masked": masked}.items()
}
for name, (value, gradient) in found.items():
    print("  ", f"{name:9} | loss {value:.4f}", end=" ")
    print("| gradient of the accidental hits", np.round(gradient[hits], 3))
(plain, by_plain), (kept, by_kept), (right, by_right) = found.values()
assert plain == kept and (by_plain == by_kept).all(), "changed: the layer has an effect"
assert (by_kept[hits] > 0).all(), "changed: the layer stops the gradient of the hits"
assert (by_right[hits] == 0).all() and right < kept

# a batch of 8 rows with one and the same item, and a model that gives it the highest score
same = jnp.full((8, 8), 5.0), jnp.eye(8), jnp.full(8, 3)
values = [float(loss(*same, filtered)) for filtered in (layer, masked)]
print(f"   one item in all rows | loss with the layer {values[0]:.4f}, masked {abs(values[1]):.4f}")
assert abs(values[0] - np.log(8)) < 1e-4, "changed: the layer has an effect"
assert abs(values[1]) < 1e-6
PYTHON
"$python" -W ignore "$folder/program.py"
