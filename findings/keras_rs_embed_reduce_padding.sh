#!/usr/bin/env bash
# keras-rs 0.4.0 (Keras 3.15.1 on JAX): EmbedReduce(mask_zero=True) averages the padding in, so that
# a user's vector, and the user's list, depend on how far the history was padded.
#
# Docstring: mask_zero is "whether or not the input value 0 is a special "padding" value that should
# be masked out", and the layer is "typically used to embed a sequence of items as a single
# embedding". Expected: the mean, sum or sqrtn of the items that are not 0, as Keras' own
# Embedding(mask_zero=True) with GlobalAveragePooling1D gives. Seen, with no error and no warning:
#   the output is, to the bit, that with mask_zero=False, for each combiner: the embedding of item 0
#     is added once for each padded place, and mean and sqrtn divide by all places;
#   below, a two-tower model is trained with histories of mostly 1 to 20 items, padded to 50. Its
#     hit rate is 0.29, with the workaround 0.34. The same users, padded to 200, get other lists:
#     four or five of ten items are others, and the hit rate is 0.17 (workaround: the same lists);
#   with few items the vector is mostly padding: users of up to 3 items have 0.17 (0.28);
#   the mask is handed on all the same, in the shape of the input, (rows, places), for an output of
#     (rows, dimensions). An operation such as matmul drops it; behind Dense it reaches the loss,
#     and fit raises ValueError on shapes, but where a batch has as many rows as places it is taken
#     for the mask of the rows, and the loss is another number than the mean.
# The sum is right only while the embedding of item 0 is 0; it is initialised and trained like any.
# Workaround: layer(ids, weights=ops.cast(ids != 0, "float32")), with which all is as expected.
# Source: layers/embedding/embed_reduce.py, call, weights = ops.ones_like(inputs).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet keras-rs==0.4.0 keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 \
  numpy==2.4.6
export KERAS_BACKEND=jax KERAS_HOME="$folder/keras" JAX_PLATFORMS=cpu
cat >"$folder/program.py" <<'PYTHON'
import keras
import numpy as np
from keras import ops
from keras_rs.layers import EmbedReduce

# the smallest case: item 1 alone, and with three padded places
table = np.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]], np.float32)
ids = np.array([[1, 2, 0, 0, 0], [1, 0, 0, 0, 0]])
inputs = keras.Input((None,), dtype="int32")
mean = keras.layers.GlobalAveragePooling1D()(
    keras.layers.Embedding(3, 2, mask_zero=True, weights=table)(inputs)
)
keras_mean = np.asarray(keras.Model(inputs, mean)(ids))
for combiner in ("mean", "sum", "sqrtn"):
    real = ids != 0
    divisor = {"mean": real.sum(1), "sum": np.ones(2), "sqrtn": np.sqrt(real.sum(1))}[combiner]
    right = (table[ids] * real[..., None]).sum(1) / divisor[:, None]
    masked, plain = (
        EmbedReduce(3, 2, combiner=combiner, mask_zero=mask_zero, weights=table)
        for mask_zero in (True, False)
    )
    found = np.asarray(masked(ids))
    print(f"{combiner:5} expected", *right.round(1), "| seen", *found.round(1))
    assert np.array_equal(found, np.asarray(plain(ids))), f"changed: {combiner} with mask_zero"
    assert not np.allclose(found, right)
    assert np.allclose(plain(ids, weights=ops.cast(ids != 0, "float32")), right, rtol=1e-5)
    if combiner == "mean":
        assert np.allclose(keras_mean, right)

# a two-tower model: each user likes one of 20 kinds of items
random = np.random.default_rng(0)
KINDS, ITEMS, SIZE, PLACES, TEN = 20, 400, 32, 50, 10
kinds = np.arange(ITEMS) % KINDS


def histories(users):
    """Rows of item ids from 1 on, padded with 0, and the next item of each user."""
    rows, following = np.zeros((users, PLACES), np.int32), np.zeros(users, np.int32)
    for user in range(users):
        likes = np.where(kinds == random.integers(KINDS), 60, 1)
        length = min(random.geometric(0.12), PLACES)
        *before, following[user] = random.choice(ITEMS, length + 1, p=likes / likes.sum())
        rows[user, :length] = np.array(before) + 1
    return rows, following


class TwoTower(keras.Model):
    def __init__(self, by_weights):
        super().__init__()
        self.by_weights = by_weights
        self.user = EmbedReduce(ITEMS + 1, SIZE, mask_zero=not by_weights)
        self.items = keras.layers.Embedding(ITEMS, SIZE)

    def call(self, ids):
        weights = {"weights": ops.cast(ids != 0, "float32")} if self.by_weights else {}
        return ops.matmul(self.user(ids, **weights), ops.transpose(self.items(ops.arange(ITEMS))))


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


train, test = histories(4000), histories(1000)
short = (test[0] > 0).sum(1) <= 3
rates = {}
for name in ("mask_zero", "weights"):
    keras.utils.set_random_seed(0)
    model = TwoTower(by_weights=name == "weights")
    model.compile(keras.optimizers.Adam(0.01), cross_entropy())
    model.fit(*train, epochs=6, batch_size=100, verbose=0)
    lists = {}
    for places in (PLACES, 200):
        padded = np.pad(test[0], ((0, 0), (0, places - PLACES)))
        scores = model.predict(padded, verbose=0, batch_size=500)
        lists[places] = np.argsort(-scores, axis=1, kind="stable")[:, :TEN]
        hits = (lists[places] == test[1][:, None]).any(1)
        rates[name, places] = hits.mean()
        rates[name, places, "short"] = hits[short].mean()
    same = np.mean([len(set(a) & set(b)) / TEN for a, b in zip(lists[PLACES], lists[200])])
    rates[name, "same"] = same
    print(f"{name:9} | hit rate@10 of users padded to {PLACES} {rates[name, PLACES]:.2f}", end=", ")
    print(f"to 200 {rates[name, 200]:.2f}; {same:.0%} of the items stay", end=" | up to 3 items: ")
    print(f"{rates[name, PLACES, 'short']:.2f}, {rates[name, 200, 'short']:.2f}")
assert rates["weights", "same"] > 0.99
assert abs(rates["weights", 200] - rates["weights", PLACES]) < 0.01
assert rates["mask_zero", "same"] < 0.8, "changed: the lists of users that are padded further"
assert rates["mask_zero", 200] < rates["mask_zero", PLACES] - 0.04, "changed: the hit rate"
assert rates["mask_zero", PLACES, "short"] < rates["weights", PLACES, "short"] - 0.02

# the mask that is handed on
rows, targets = train[0][:PLACES], random.normal(size=(PLACES, 1)).astype(np.float32)
masked = EmbedReduce(ITEMS + 1, SIZE, mask_zero=True)
output = masked(rows)
assert output._keras_mask.shape == rows.shape != output.shape, "changed: the mask of the output"
model = keras.Sequential([masked, keras.layers.Dense(1)])
model.compile("sgd", "mse")
counted = float(np.mean((model.predict(rows, verbose=0) - targets) ** 2))
seen = model.evaluate(rows, targets, batch_size=PLACES, verbose=0)
print(f"mean squared error {counted:.4f} | evaluate, {PLACES} rows of {PLACES} places {seen:.4f}")
assert abs(seen - counted) > 1e-3 * counted, "changed: evaluate"
try:
    model.evaluate(rows[:10], targets[:10], verbose=0)
    raise AssertionError("changed: no error for 10 rows")
except ValueError as error:
    print("10 rows:", str(error).splitlines()[0])
print("As described: mask_zero leaves no place out, and the lists depend on the padding.")
PYTHON
"$python" "$folder/program.py" 2>"$folder/stderr" ||
  { cat "$folder/stderr"; exit 1; }
