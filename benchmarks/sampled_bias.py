"""Compares losses over a sample of the catalogue with those over the whole catalogue.

    python benchmarks/sampled_bias.py [--items=20000]

The teacher is artificial (tastes in clusters, popularity by Zipf's law), clicks are drawn from its
probabilities, and a matrix factorisation is trained on the clicks with the full loss for a few
hundred steps. For one batch of its users, each loss and its gradient with respect to contexts, item
vectors and biases are then estimated from many independent draws of negatives. One Markdown table
is printed, in less than a minute.

bias: of the mean over draws, relative to the full catalogue; that of the gradient is the length of
its error without the noise that remains in the mean (a U-statistic; '0' where nothing remains), and
its norm is the length of the mean along the full gradient. one draw: the error of a single step,
root mean square for the loss, else the mean.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.core.scores import Factors
from kd_jax.losses import candidates, sampled, streamed
from kd_jax.losses.softmax import KL, CrossEntropy
from kd_jax.losses.terms import Inputs, Rows, SoftmaxTerm

USERS = 256
WIDTH = 32
TARGETS = 8
DRAWS = 48
TOP = 64
NAMES = ("ce", "kl")
TERMS = (SoftmaxTerm(CrossEntropy()), SoftmaxTerm(KL()))
NEGATIVES = (256, 1024, 4096)
PROPOSALS = {  # power of the counts, and whether the correction is made
    "uniform": (0.0, True),
    "count^0.5": (0.5, True),
    "count": (1.0, True),
    "count, no log-Q": (1.0, False),
}


def world(items: int, steps: int, seed: int = 0) -> tuple[Factors, Factors, Rows, np.ndarray]:
    """A student [USERS, WIDTH] trained on clicks, its teacher, the clicks, and counts.

    The counts are those of the clicks on each item [I].
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, WIDTH))

    def taste(count: int) -> np.ndarray:
        return (
            centres[rng.integers(0, 40, count)] + 0.7 * rng.normal(size=(count, WIDTH))
        ) / WIDTH**0.25

    bias = -0.8 * np.log(rng.permutation(items) + 10.0)
    teacher = Factors(*(jnp.asarray(x, jnp.float32) for x in (taste(USERS), taste(items), bias)))
    scores = teacher.dense()[None] + jax.random.gumbel(
        jax.random.key(seed), (TARGETS, USERS, items)
    )
    targets = jnp.argmax(scores, -1).T.astype(jnp.int32)
    rows = Rows(targets, jnp.full(targets.shape, 1 / TARGETS), jnp.full(USERS, 1 / USERS))
    # Popularity as a data set of 20 clicks per item would count it.
    counts = rng.poisson(20 * items * np.asarray(jax.nn.softmax(teacher.dense(), -1).mean(0)))
    noise = jnp.asarray(rng.normal(size=(USERS + items, WIDTH)) * 0.1, jnp.float32)
    student = Factors(noise[:USERS], noise[USERS:], jnp.asarray(np.log1p(counts), jnp.float32))
    tx = optax.adam(2e-2)

    @jax.jit
    def train(student: Factors) -> Factors:
        def step(carry, _):
            student, state = carry
            slope = jax.grad(
                lambda s: streamed.mean_losses(TERMS, s, Inputs(rows, jnp.ones(2), teacher))[0]
            )(student)
            updates, state = tx.update(slope, state)
            return (optax.apply_updates(student, updates), state), None

        return jax.lax.scan(step, (student, tx.init(student)), length=steps)[0][0]

    return train(student), teacher, rows, counts


def flat(slope: Factors) -> jax.Array:
    return jnp.concatenate([part.ravel() for part in slope[:3]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=100, help="of training with the full loss")
    options = parser.parse_args()
    began = time.perf_counter()
    student, teacher, rows, counts = world(options.items, options.steps)

    @jax.jit
    def full(which: jax.Array):
        def value(s: Factors) -> jax.Array:
            return streamed.mean_losses(TERMS, s, Inputs(rows, which, teacher))[0]

        total, slope = jax.value_and_grad(value)(student)
        return total, flat(slope)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def estimate(
        starts: jax.Array,
        number: int,
        top: int,
        corrected: jax.Array,
        which: jax.Array,
        reference: jax.Array,
    ):
        """The mean gradient over the draws, and the averages of single draws.

        The latter are loss, norm, cosine of the angle, and squared error.
        """
        read = teacher._replace(top=candidates.top_items(teacher, top) if top else None)

        def one(key: jax.Array):
            draws = sampled.draw(starts, number, key)
            naive = jnp.full(number, math.log(number / options.items))
            draws = draws._replace(log_expected=jnp.where(corrected, draws.log_expected, naive))
            total, slope = jax.value_and_grad(
                lambda s: sampled.mean_losses(TERMS, s, Inputs(rows, which, read), draws)[0]
            )(student)
            slope = flat(slope)
            norm = jnp.linalg.norm(slope)
            long = jnp.linalg.norm(reference)
            error = jnp.sum((slope - reference) ** 2)
            return total, norm / long, slope @ reference / norm / long, error, slope

        def step(mean: jax.Array, key: jax.Array):
            *values, slope = one(key)
            return mean + slope / DRAWS, values

        return jax.lax.scan(
            step, jnp.zeros_like(reference), jax.random.split(jax.random.key(1), DRAWS)
        )

    losses = [float(full(jnp.eye(2)[i])[0]) for i in range(2)]
    print(
        f"{options.items:,} items, {USERS} users, ce {losses[0]:.3f}, kl {losses[1]:.3f}, {DRAWS}"
        " draws\n"
    )
    print("| loss | proposal | top | negatives | loss: bias | one draw | gradient: bias | norm | "
          "one draw: norm | angle |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for i, name_of_loss in enumerate(NAMES):
        total, slope = full(jnp.eye(2)[i])
        for name, (power, corrected) in PROPOSALS.items():
            starts = jnp.asarray(sampled.proposal(counts, power))
            for top in (0, TOP) if name_of_loss == "kl" else (0,):
                for number in NEGATIVES:
                    mean, (totals, norms, cosines, errors) = estimate(
                        starts, number, top, jnp.asarray(corrected), jnp.eye(2)[i], slope
                    )
                    typical = jnp.sqrt(jnp.mean((totals / total - 1) ** 2))
                    single = math.degrees(math.acos(min(1.0, float(cosines.mean()))))
                    long = float(jnp.linalg.norm(slope))
                    square = float(DRAWS * jnp.sum((mean - slope) ** 2) - errors.mean()) / (
                        DRAWS - 1
                    )
                    bias = math.sqrt(max(0.0, square)) / long
                    norm = float(mean @ slope) / long**2
                    print(
                        f"| {name_of_loss} | {name} | {top or ''} | {number} |"
                        f" {float(totals.mean() / total) - 1:+.2%} | {float(typical):.2%} |"
                        f" {bias:.1%} | {norm - 1:+.1%} | {float(norms.mean()) - 1:+.1%} |"
                        f" {single:.1f}° |",
                        flush=True,
                    )
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
