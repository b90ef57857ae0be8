#!/usr/bin/env bash
# flax 0.12.8: nnx.metrics divides by the wrong number where a mask is broadcast, and Welford takes
# no mask, so that one MultiMetric gives two means of the same loss.
#
# Docstrings: the mask of Average and Accuracy "should be broadcastable" to the values or labels,
# and a mask given to MultiMetric.update is passed "to all the metrics". Expected: what is masked is
# in no number, whether the mask has the shape of the values or is broadcast to it. Seen, with no
# warning and no error, for losses of shape (rows, positions):
#   a mask of shape (rows, 1), as for the filled-up rows of the last batch, gives a mean that is too
#     large by the number of positions, and an Accuracy far above 1. Average adds values * mask,
#     which is broadcast, and counts mask.sum(), which is not;
#   one of shape (positions,) gives a mean that is too large by the number of rows;
#   Welford takes any keyword and reads its own alone: the mask is dropped, and masked values are in
#     mean and deviation, where Average beside it in the MultiMetric leaves them out. A mask that a
#     dictionary names for the Welford metric is dropped as well.
# A mask of the full shape is right for Average and Accuracy: broadcast it before. The wrong count
# is the subject of an open pull request of September 2026; for Welford there was none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet flax==0.12.8 jax==0.10.2
cat >"$folder/program.py" <<'PYTHON'
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROWS, POSITIONS = 4, 50
random = np.random.default_rng(0)
loss = jnp.asarray(random.uniform(1, 2, (ROWS, POSITIONS)), jnp.float32)
labels = jnp.asarray(random.integers(0, 3, (ROWS, POSITIONS)), jnp.int32)
right = jnp.asarray(random.random((ROWS, POSITIONS)) < 0.5)  # every second prediction
logits = jnp.where(right[..., None], 1.0, -1.0) * (labels[..., None] == jnp.arange(3))


def measured(mask):
    metrics = nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"),
        accuracy=nnx.metrics.Accuracy(),
        spread=nnx.metrics.Welford("loss"),
    )
    metrics.update(loss=loss, logits=logits, labels=labels, mask=mask)
    found = metrics.compute()
    return float(found["loss"]), float(found["accuracy"]), float(found["spread"].mean)


def counted(mask):
    kept = np.broadcast_to(mask, loss.shape)
    return float(loss[kept].mean()), float(right[kept].mean())


rows = jnp.array([[True], [True], [False], [False]])  # the last two rows only fill the batch
positions = jnp.arange(POSITIONS) >= 10
seen = {}
for name, mask in {
    "(4, 1)": rows,
    "(50,)": positions,
    "rows, full shape": jnp.broadcast_to(rows, loss.shape),
    "positions, full shape": jnp.broadcast_to(positions, loss.shape),
}.items():
    values, expected = measured(mask), counted(mask)
    seen[name] = (values, expected)
    print(f"   mask {name:22}| loss {values[0]:7.3f}, expected {expected[0]:.3f}", end=" | ")
    print(f"accuracy {values[1]:6.3f}, expected {expected[1]:.3f} | Welford {values[2]:.3f}")
for name in ("rows, full shape", "positions, full shape"):
    values, expected = seen[name]
    assert np.allclose(values[:2], expected, rtol=1e-5), "changed: wrong with a full mask too"
for name, factor in (("(4, 1)", POSITIONS), ("(50,)", ROWS)):
    values, expected = seen[name]
    assert np.allclose(values[:2], np.multiply(expected, factor), rtol=1e-5), "changed: the count"

# Welford: the second half of the losses is masked and ten times as large
metrics = nnx.MultiMetric(average=nnx.metrics.Average(), spread=nnx.metrics.Welford())
values, mask = jnp.array([1.0, 3.0, 10.0, 30.0]), jnp.array([True, True, False, False])
for how in (mask, {"average": mask, "spread": mask}):
    metrics.reset()
    metrics.update(values=values, mask=how)
    found = metrics.compute()
    mean, spread = float(found["spread"].mean), float(found["spread"].standard_deviation)
    print(f"   Average {float(found['average'])} | Welford {mean}, deviation {spread:.3f}", end="")
    print(", expected 2.0 and 1.0")
    assert float(found["average"]) == 2, "changed: Average"
    assert (mean, round(spread, 3)) == (11, round(float(values.std()), 3)), "changed: Welford"
PYTHON
JAX_PLATFORMS=cpu "$python" -W ignore "$folder/program.py"
