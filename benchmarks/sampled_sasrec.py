"""SASRec with the full softmax against shared negatives, at equal processor time, on validation.

    python benchmarks/sampled_sasrec.py amazon-beauty [--seconds=120] [--rates=1e-3,3e-3]

Leave-one-out, d=64, 2 blocks, the last 50 items, 128 users a step, in bins. Negatives are drawn in
proportion to (count + 1) ** .5, with log-Q. The clock is the processor time of the training alone,
without compilation and evaluation, so other work on the machine hardly counts. NDCG@10 over the
whole catalogue is that of --users users of valid, at five times.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.padding import LENGTH, split_of
from benchmarks.peers_ours import dataset_of
from kd_jax.core.process import keep_freed_memory
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import batches
from kd_jax.data.examples.packed import packed_examples
from kd_jax.devices import sharding
from kd_jax.distillation.term import Term
from kd_jax.evaluation.tasks import Rank
from kd_jax.losses import sampled
from kd_jax.losses.softmax import CrossEntropy
from kd_jax.models.scorer import Frozen
from kd_jax.models.scorer import split as take_apart
from kd_jax.models.students import build_student, student_spec
from kd_jax.training.compiled import compiled_step
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec

STEPS = 10**6
CHUNK = 10


def train(data: Dataset, negatives: int, rate: float, options: argparse.Namespace) -> list[float]:
    """NDCG@10 at each fifth of the time; prints the epochs too. negatives: 0 for the full one."""
    spec = student_spec(
        "sasrec",
        {"dim": 64, "history": LENGTH},
        num_users=data.num_users,
        num_items=data.num_items,
        num_classes=0,
        item_bias=np.log1p(data.item_counts).astype(np.float32),
        warm=None,
    )
    module = build_student("sasrec", spec, {}, rngs=nnx.Rngs(0))
    if negatives:
        module.proposal = Frozen(jnp.asarray(sampled.proposal(data.item_counts, 0.5)))
    graphdef, params, constants = take_apart(module)
    items = "sampled" if negatives else "all"
    clicks = (Term("clicks", CrossEntropy(), items=items, negatives=negatives),)
    examples, mesh = packed_examples(data, history=LENGTH), sharding.make_mesh(1, 1)
    recipe, rows = Recipe(STEPS, 128, rate), examples.rows_of(128)
    step, state = compiled_step(
        StepSpec(graphdef, clicks, recipe.tx(), STEPS),
        params,
        mesh=mesh,
        seed=0,
        look_up=examples.look_up,
    )
    tables = sharding.put_whole(examples.tables, mesh)
    stream = batches(
        examples, batch_size=rows, num_batches=STEPS, seed=0, chunk=CHUNK, gather=False
    )
    task = Rank(data, "ndcg@10", ("ndcg",), (10,), 512, options.users)
    judge = task.evaluation_function(graphdef, "valid", LENGTH, full=False)
    compiled = step.lower(state, next(stream), tables, constants, None).compile()
    scores: list[float] = []
    used, steps = 0.0, 0
    while len(scores) < 5:
        batch, began = next(stream), time.process_time()
        state, _ = jax.block_until_ready(compiled(state, batch, tables, constants, None))
        used, steps = used + time.process_time() - began, steps + CHUNK
        if used >= options.seconds * (len(scores) + 1) / 5:
            scores.append(task.score(judge(state.params, constants)))
    kind = f"{negatives:,} negatives" if negatives else "full softmax"
    values = " | ".join(f"{score:.4f}" for score in scores)
    print(f"| {kind} | {rate:g} | {steps * rows / examples.size:.1f} | {values} |", flush=True)
    return scores


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rates", default="1e-3,3e-3")
    parser.add_argument("--negatives", default="0,256,1024")
    parser.add_argument("--users", type=int, default=5000)
    options = parser.parse_args()
    split = split_of(options.data)
    data = dataset_of(dataclasses.replace(split, fit_valid=False))
    times = " | ".join(f"{options.seconds * n / 5:.0f} s" for n in range(1, 6))
    print(f"| | rate | epochs | {times} |\n|---|---|---|" + "---|" * 5)
    for rate in map(float, options.rates.split(",")):
        for negatives in map(int, options.negatives.split(",")):
            train(data, negatives, rate, options)


if __name__ == "__main__":
    main()
