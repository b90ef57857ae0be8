"""RecTools' SASRec as a contestant of ``peers.py``.

    python benchmarks/peer_rectools.py flat|model --data=SPLIT.npz [--epochs=3 | --seconds=600]

d=64, 2 heads, 2 blocks, the last 50 items, softmax over all items. flat:
``rectools.fast_transformers.FlatSASRecNet`` and ``build_sequences`` in a plain loop, with PyTorch's
fused Adam and the initial values of SASRecModel (Xavier): with its own, N(0, 1) embeddings, the
mean loss of the first epoch is 25. model: ``rectools.models.SASRecModel``, the documented class,
through Lightning, with its own ``recommend``.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import numpy as np
import torch
from peer_common import K, Split, arguments, best_of, read_split, report, timed_epochs, users_of
from torch.nn.functional import cross_entropy

D = 64
HEADS = 2
BLOCKS = 2
LENGTH = 50
DROPOUT = 0.2
BATCH = 128
RATE = 1e-3
RANK_BATCHES = (128, 256, 512, 1024)  # users at once: the fastest counts
SETTINGS = f"d={D}, {HEADS} heads, {BLOCKS} blocks, L={LENGTH}, softmax, batch {BATCH}"


def last_items(indptr: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[U, LENGTH]: each user's newest items, newest last, 0 on the left where there are none."""
    at = indptr[1:, None] - np.arange(LENGTH, 0, -1)
    return np.where(at >= indptr[:-1, None], items[np.maximum(at, 0)], 0)


def flat(split: Split, options) -> None:
    from rectools.fast_transformers import FlatSASRecNet, build_sequences

    torch.manual_seed(0)
    fit_indptr, fit_items = split.fit()
    start = time.perf_counter()
    columns = [users_of(fit_indptr), fit_items.astype(np.int64), np.arange(len(fit_items))]
    x, y, known, _ = build_sequences(*map(torch.from_numpy, columns), max_len=LENGTH)
    sequences_s = time.perf_counter() - start
    number = np.zeros(
        split.num_items, np.int64
    )  # 0: without a train interaction, the net has no such item
    number[known.numpy()] = np.arange(1, len(known) + 1)

    def build() -> tuple[Any, torch.optim.Optimizer]:
        net = FlatSASRecNet(len(known), D, BLOCKS, HEADS, LENGTH, DROPOUT)
        for values in net.parameters():
            if values.ndim > 1:
                torch.nn.init.xavier_normal_(values)
        return net, torch.optim.Adam(net.parameters(), lr=options.learning_rate or RATE, fused=True)

    def epoch(net, optimizer, batches: int) -> float:
        net.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH)[:batches]:
            logits = net({"x": x[rows], "y": y[rows]})
            loss = cross_entropy(logits.flatten(0, 1), y[rows].flatten() - 1, ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / batches

    epoch(*build(), 3)  # PyTorch's allocator and threads
    net, optimizer = build()
    batches = -(-len(x) // BATCH)
    losses: list[float] = []
    times = timed_epochs(options, lambda: losses.append(epoch(net, optimizer, batches)))
    if not np.isfinite(losses).all() or losses[-1] > np.log(len(known)) + 1:
        raise ValueError(f"losses {losses}")

    indptr, items = split.seen()
    seen = torch.from_numpy(number[items] - 1)

    # PyTorch's fused attention of eval mode turns positions of padding into NaN, which the next
    # block hands to the last one: without this line every user with fewer than LENGTH items, 1,796
    # of ML-1M's 6,040, is ranked by NaN.
    torch.backends.mha.set_fastpath_enabled(False)

    @torch.inference_mode()
    def rank(batch: int) -> np.ndarray:
        net.eval()
        inputs = torch.from_numpy(last_items(indptr, number[items]))
        table = net.all_item_embeddings().T.contiguous()
        lists = []
        for low in range(0, len(inputs), batch):
            scores = net.encode_last(inputs[low : low + batch]) @ table
            bounds = indptr[low : low + batch + 1]
            rows = torch.arange(len(scores)).repeat_interleave(torch.from_numpy(np.diff(bounds)))
            columns = seen[bounds[0] : bounds[-1]]
            scores[rows[columns >= 0], columns[columns >= 0]] = -torch.inf
            best = scores.topk(K)  # NaN counts as the greatest, so one look at the best finds it
            if not best.values.isfinite().all():
                raise ValueError("scores that are not finite")
            lists.append(best.indices)
        return known[torch.cat(lists)].numpy()

    ranked = {batch: best_of(3, lambda batch=batch: rank(batch)) for batch in RANK_BATCHES}
    rank_batch = min(ranked, key=lambda batch: ranked[batch][0])
    rank_s, top = ranked[rank_batch]
    report(
        settings=(
            f"FlatSASRecNet, {SETTINGS}, lr {options.learning_rate or RATE:g}, {len(times)} epochs"
        ),
        times=times,
        interactions=int((y > 0).sum()),
        rank_s=rank_s,
        top=top,
        split=split,
        packages="rectools torch numpy",
        losses=losses,
        sequences_s=sequences_s,
        rank_batch=rank_batch,
        rank_seconds={batch: seconds for batch, (seconds, _) in ranked.items()},
    )


def model(split: Split, options) -> None:
    import pandas as pd
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seed_everything(0)

    def table(indptr: np.ndarray, items: np.ndarray) -> Dataset:
        order = np.arange(len(items))
        users = users_of(indptr)
        frame = {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(order, unit="s"),
        }
        return Dataset.construct(pd.DataFrame(frame))

    times: list[float] = []

    class Clock(Callback):
        def on_train_epoch_start(self, trainer, module):
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer, module):
            times.append(time.perf_counter() - self.start)
            if options.seconds is not None and sum(times) >= options.seconds:
                trainer.should_stop = True

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1 if options.seconds is not None else options.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )

    recommender = SASRecModel(
        n_blocks=BLOCKS,
        n_heads=HEADS,
        n_factors=D,
        dropout_rate=DROPOUT,
        session_max_len=LENGTH,
        loss="softmax",
        lr=options.learning_rate or RATE,
        batch_size=BATCH,
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )
    recommender.fit(table(*split.fit()))
    history = table(*split.seen())
    rank_s, found = best_of(
        3,
        lambda: recommender.recommend(np.arange(split.num_users), history, k=K, filter_viewed=True),
    )
    found = found.sort_values([Columns.User, Columns.Rank])
    lengths = np.minimum(np.diff(split.fit()[0]) - 1, LENGTH)
    report(
        settings=(
            f"SASRecModel, {SETTINGS}, lr {options.learning_rate or RATE:g}, {len(times)} epochs"
        ),
        times=times,
        interactions=int(lengths[lengths > 0].sum()),
        rank_s=rank_s,
        top=found[Columns.Item].to_numpy().reshape(-1, K),
        split=split,
        packages="rectools torch pytorch-lightning numpy",
    )


def main() -> None:
    options = arguments(__doc__, ("flat", "model"), epochs=3)
    torch.set_num_threads(options.threads)
    {"flat": flat, "model": model}[options.model](read_split(options.data), options)


if __name__ == "__main__":
    main()
