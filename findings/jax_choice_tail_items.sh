#!/usr/bin/env bash
# jax 0.10.2 (CPU): jax.random.choice with p never draws a part of the rare items of a large
# catalogue, draws others more often than asked, and draws items of probability 0.
#
# Docstring: p is "the probabilities associated with each entry". It warns of probabilities below
# 1e-7 only for mode, which is for draws without p and without replacement. Expected: with
# replacement an item is drawn about p * n times in n draws, as by NumPy from the same p in float32,
# and never where p is 0. Seen, with no error and no warning: a float32 uniform number, of which
# there are 2**23, is looked up in a float32 cumulative sum, which near 1 has steps of 6e-8. Below,
# for a million items whose popularity falls with the rank (Zipf), as for popularity-weighted
# negatives, and 60 million draws,
#   of the rarer half of the items a fifth are never drawn, where 0.5 percent are expected: they
#     are never negatives, so nothing lowers their scores. Others come up too often in return (the
#     counts vary 2.6 times as much as by chance), and a histogram over many items looks right;
#   with p = 0 for a random half of the items (what may not be drawn), 5 thousand of 20 million
#     draws are such items (jax's open issue 25498).
# log(p), as a correction for the sampling (log Q), is then not what was drawn. With
# JAX_ENABLE_X64=1 and p in float64 all is as expected; or draw jax.random.bits and look these up in
# cumulative integers, as kd_jax does (kd_jax/losses/sampled.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet jax==0.10.2 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

ITEMS, DRAWS, TIMES = 1_000_000, 4_000_000, 15
HALF = ITEMS // 2
p = 1 / np.arange(1, ITEMS + 1)
p /= p.sum()
wide = jax.config.jax_enable_x64
numbers = jnp.float64 if wide else jnp.float32


@jax.jit
def draw(key, p):
    return jax.random.choice(key, ITEMS, (DRAWS,), p=p)


def counts(p, times):
    found = np.zeros(ITEMS, np.int64)
    given = jnp.asarray(p, numbers)
    for number in range(times):
        found += np.bincount(draw(jax.random.key(number), given), minlength=ITEMS)
    return found


def described(name, found):
    expected = DRAWS * TIMES * p[HALF:]
    never = (found[HALF:] == 0).mean(), np.exp(-expected).mean()
    spread = ((found[HALF:] - expected) ** 2 / expected).mean()
    total = found[HALF:].sum() / expected.sum()
    print(f"   {name}: rarer half, never drawn {never[0]:.3f}, expected {never[1]:.3f};", end=" ")
    print(f"variance {spread:.2f} times that of chance; all together {total:.3f} of the expected")
    assert 0.99 < total < 1.01
    return never[0], spread


never, spread = described("jax", counts(p, TIMES))
shown = np.random.default_rng(1).random(ITEMS) < 0.5
some = np.where(shown, p, 0)
forbidden = int(counts(some / some.sum(), 5)[~shown].sum())
print(f"   jax: draws of items with probability 0: {forbidden} of {5 * DRAWS}")
if wide:
    assert never < 0.01 and spread < 1.1 and forbidden == 0
else:
    assert never > 0.15 and spread > 2, "changed: the rare items"
    assert forbidden > 1000, "changed: the items of probability 0"
    random = np.random.default_rng(0)
    single = p.astype(np.float32).astype(np.float64)
    found = np.zeros(ITEMS, np.int64)
    for _ in range(TIMES):
        drawn = random.choice(ITEMS, DRAWS, p=single / single.sum())
        found += np.bincount(drawn, minlength=ITEMS)
    never, spread = described("numpy", found)
    assert never < 0.01 and spread < 1.1
PYTHON
"$python" "$folder/program.py"
echo "in float64:"
JAX_ENABLE_X64=1 "$python" "$folder/program.py"
