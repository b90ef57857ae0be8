"""RecBole's BPR as a contestant of ``peers.py``, with its defaults and its own Trainer.

python benchmarks/peer_recbole.py bpr --data=SPLIT.npz [--epochs=5 | --seconds=60]
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peer_common import K, Split, arguments, best_of, hit_ndcg, read_split, report, users_of
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed
from recbole.utils.case_study import full_sort_topk


def write(split: Split, folder: Path) -> None:
    """RecBole's atomic files, one for each part of the split."""
    users = np.arange(split.num_users)
    indptr, items = split.fit()
    parts = {
        "train": (users_of(indptr), items),
        "valid": (users, split.valid),
        "test": (users, split.test),
    }
    for part, pairs in parts.items():
        header = "user_id:token\titem_id:token"
        np.savetxt(
            folder / f"data.{part}.inter",
            np.stack(pairs, 1),
            "%d",
            "\t",
            header=header,
            comments="",
        )


def prepare(options, epochs: int):
    """Config, dataset and loaders.

    RecBole reads files, and writes logs and its saved models into the current folder.
    """
    config = Config(
        model="BPR",
        dataset="data",
        config_dict={
            "data_path": str(Path.cwd()),
            "benchmark_filename": ["train", "valid", "test"],
            "use_gpu": False,
            "epochs": epochs,
            "metrics": ["Hit", "NDCG"],
            "topk": [K],
            "valid_metric": f"NDCG@{K}",
            "metric_decimal_place": 6,
            "eval_args": {
                "mode": "full",
                "order": "TO",
                "group_by": "user",
                "split": {"LS": "valid_and_test"},
            },
            "show_progress": False,
            **({"learning_rate": options.learning_rate} if options.learning_rate else {}),
        },
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    return config, dataset, *data_preparation(config, dataset)


def main() -> None:
    options = arguments(__doc__, ("bpr",), epochs=5)
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    split = read_split(options.data)
    folder = tempfile.TemporaryDirectory()
    os.chdir(folder.name)
    (Path.cwd() / "data").mkdir()
    write(split, Path.cwd() / "data")
    config, dataset, train, _, test = prepare(
        options, options.epochs if options.seconds is None else 10**6
    )
    times: list[float] = []

    class Enough(Exception):
        """Stops training when the seconds are over; the Trainer has no other way to do so."""

    class Timed(Trainer):
        def _train_epoch(self, *args, **kwargs):
            start = time.perf_counter()
            loss = super()._train_epoch(*args, **kwargs)
            times.append(time.perf_counter() - start)
            if options.seconds is not None and sum(times) >= options.seconds:
                raise Enough
            return loss

    model = BPR(config, train.dataset)
    trainer = Timed(config, model)
    with contextlib.suppress(Enough):
        trainer.fit(train, verbose=False, saved=False)
    evaluate_s, found = best_of(3, lambda: trainer.evaluate(test, load_best_model=False))
    users = dataset.token2id(dataset.uid_field, [str(user) for user in range(split.num_users)])
    topk_s, (_, top) = best_of(3, lambda: full_sort_topk(users, model, test, K))
    top = dataset.id2token(dataset.iid_field, top.numpy()).astype(np.int64)
    own = found[f"hit@{K}"], found[f"ndcg@{K}"]
    if not np.allclose(own, hit_ndcg(top, split.test), atol=2e-3):
        raise ValueError(f"RecBole reports {own}, its lists give {hit_ndcg(top, split.test)}")
    report(
        settings=(
            f"BPR, defaults (64 factors, batch {config['train_batch_size']}), lr"
            f" {config['learning_rate']:g}, {len(times)} epochs"
        ),
        times=times,
        interactions=len(split.fit()[1]),
        rank_s=min(evaluate_s, topk_s),
        top=top,
        split=split,
        packages="recbole torch numpy",
        evaluate_s=evaluate_s,
        topk_s=topk_s,
    )


if __name__ == "__main__":
    main()
