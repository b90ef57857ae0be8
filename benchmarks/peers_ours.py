"""kd_jax as a contestant of ``peers.py``: matrix factorisation and SASRec.

    python benchmarks/peers_ours.py mf|sasrec --data=SPLIT.npz [--epochs=N | --seconds=S]

They use the library's own examples, train step and top-k lists. SASRec has the size of the peers
(d=64, 2 heads, 2 blocks, the last 50 items, softmax over all items). An epoch is one pass over the
users: MF learns from all interactions of a user at once, SASRec from a target after each of the
last 50.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import polars as pl
from flax import nnx

from benchmarks.peer_common import (
    K,
    Split,
    arguments,
    best_of,
    read_split,
    report,
    timed_epochs,
    users_of,
)
from kd_jax.core.process import keep_freed_memory
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import batches
from kd_jax.data.examples.packed import packed_examples
from kd_jax.data.examples.user import MAX_TARGETS, user_examples
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.devices import sharding
from kd_jax.devices.profiling import matmul_flops
from kd_jax.distillation.term import Term
from kd_jax.evaluation.evaluator import top_k
from kd_jax.evaluation.scoring import score_function
from kd_jax.losses.softmax import CrossEntropy
from kd_jax.models.scorer import split as take_apart
from kd_jax.models.students import STUDENTS, student_spec
from kd_jax.training.compiled import compiled_step
from kd_jax.training.recipe import Recipe
from kd_jax.training.step import StepSpec

LENGTH = 50
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # student, recipe, epochs
    "mf": ({"dim": 64, "dropout": 0.5}, {"batch_size": 512, "learning_rate": 1e-2}, 30),
    "sasrec": (
        {"dim": 64, "dropout": 0.2, "history": LENGTH},
        {"batch_size": 128, "learning_rate": 6e-3},
        3,
    ),
}
DECAY = 30.0  # mf: an interaction that many interactions old counts 1/e


def dataset_of(split: Split) -> Dataset:
    """Train (and valid, where models learn from it), and the test item of every user."""
    indptr, items = split.seen()
    ends = indptr[1:]
    item = np.insert(items, ends, split.test)
    code = np.full(len(item), TRAIN, np.int8)
    last = ends + np.arange(split.num_users)  # where the test item of each user came to stand
    code[last] = TEST
    code[last - 1] = TRAIN if split.fit_valid else VALID
    bounds = indptr + np.arange(split.num_users + 1)
    ids = pl.Series("item", np.arange(split.num_items))
    return Dataset(
        name="split",
        split_name="leave_one_out",
        user_ids=pl.Series("user", np.arange(split.num_users)),
        item_ids=ids,
        items=pl.DataFrame({"title": ids.cast(pl.String)}),
        user=users_of(bounds).astype(np.int32),
        item=item.astype(np.int32),
        rating=np.ones(len(item), np.float32),
        timestamp=np.arange(len(item)),
        split=code,
        indptr=bounds,
        counts={},
        checksum="",
    )


def main() -> None:
    keep_freed_memory()  # before the first array
    options = arguments(__doc__, tuple(SETTINGS), epochs=0)
    split = read_split(options.data)
    data = dataset_of(split)
    size, recipe, epochs = SETTINGS[options.model]
    options.epochs = options.epochs or epochs
    if options.learning_rate:
        recipe = recipe | {"learning_rate": options.learning_rate}
    spec = student_spec(
        options.model,
        size,
        num_users=data.num_users,
        num_items=data.num_items,
        num_classes=0,
        item_bias=np.log1p(data.item_counts).astype(np.float32),
        warm=None,
    )
    student = STUDENTS[options.model]
    examples = (
        user_examples(data, history=1, decay=DECAY)
        if options.model == "mf"
        else packed_examples(data, history=LENGTH)
    )
    rows = examples.rows_of(recipe["batch_size"])
    per_epoch = -(-examples.size // rows)
    steps = Recipe(steps=per_epoch * 10_000, **recipe)
    mesh = sharding.make_mesh(1, 1)
    tables = sharding.put_whole(examples.tables, mesh)

    def build():
        graphdef, params, constants = take_apart(student(spec, {}, rngs=nnx.Rngs(0)))
        clicks = (Term("clicks", CrossEntropy()),)
        step, state = compiled_step(
            StepSpec(graphdef, clicks, steps.tx(), steps.steps),
            params,
            mesh=mesh,
            seed=0,
            look_up=examples.look_up,
        )
        chunk = max(n for n in range(1, 17) if per_epoch % n == 0)
        stream = batches(
            examples,
            batch_size=rows,
            num_batches=steps.steps,
            seed=0,
            chunk=chunk,
            gather=False,
        )
        return graphdef, constants, step, state, stream, per_epoch // chunk

    graphdef, constants, step, state, stream, programs = build()
    jax.block_until_ready(step(state, next(stream), tables, constants, None))  # compilation
    *_, state, stream, _ = build()
    losses: list[float] = []

    def epoch() -> None:
        nonlocal state
        for _ in range(programs):
            state, metrics = step(state, next(stream), tables, constants, None)
        losses.append(float(metrics["loss"]))

    times = timed_epochs(options, epoch)
    if not np.isfinite(losses).all() or losses[-1] > np.log(data.num_items) + 1:
        raise ValueError(f"losses {losses}")
    score = score_function(data, graphdef, TEST, LENGTH)
    users = np.arange(split.num_users)

    def rank() -> np.ndarray:
        return top_k(score(state.params, constants), users, K, data.history(TEST))[0]

    rank()
    rank_s, top = best_of(3, rank)
    lengths = np.diff(split.fit()[0])
    learned = int(
        np.minimum(
            *((lengths, MAX_TARGETS) if options.model == "mf" else (lengths - 1, LENGTH))
        ).sum()
    )
    batch = next(stream)
    flops = (
        matmul_flops(step, state, batch, tables, constants, None) / len(batch) * per_epoch
    )  # of an epoch
    if student.example_kind == "all":  # no work on padding counts
        flops *= learned / (per_epoch * rows * LENGTH)
    report(
        settings=f"{options.model}, d={size['dim']}, full softmax, batch {steps.batch_size}, "
        f"lr {steps.learning_rate:g}, {len(times)} epochs",
        times=times,
        interactions=learned,
        rank_s=rank_s,
        top=top,
        split=split,
        packages="jax flax numpy",
        losses=losses,
        useful_gflops=flops / float(np.median(times)) / 1e9,
    )


if __name__ == "__main__":
    main()
