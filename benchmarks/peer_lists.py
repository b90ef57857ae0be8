r"""Lists of LightFM or Surprise on the split of a workdir, as a file for ``eval.lists``.

    peers/lightfm/bin/python benchmarks/peer_lists.py --workdir=runs/x --library=lightfm \
        --out=lightfm.jsonl
    python launch.py --workdir=runs/x --config.eval.lists=lightfm.jsonl   # and the run's arguments

Runs in an environment of its own, with NumPy, polars and lightfm (or its fork rectools-lightfm,
which installs where lightfm does not), or scikit-surprise with numpy<2. It imports nothing of
kd_jax. The model learns from the train interactions and ranks all items that a user has not chosen
before the test split; the first 50 are written. Of the settings below the one with the best NDCG@10
on validation is taken. Surprise predicts ratings, and ranks by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

TRAIN, VALID, TEST = 0, 1, 2
LENGTH, K = 50, 10
AT_ONCE = 512  # users
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "lightfm": tuple(
        {"no_components": 64, "epochs": epochs, "learning_rate": rate}
        for epochs in (10, 30)
        for rate in (0.02, 0.05)
    ),
    "surprise": tuple(
        {"n_factors": factors, "n_epochs": epochs} for factors in (20, 100) for epochs in (10, 30)
    ),
}
Scores = Callable[[np.ndarray], np.ndarray]  # users [B] -> scores [B, I]


def lightfm(rows: pl.DataFrame, users: int, items: int, setting: dict[str, Any]) -> Scores:
    """WARP (Weston, Bengio and Usunier, IJCAI 2011) on clicks."""
    import scipy.sparse
    from lightfm import LightFM

    shape = users, items
    ones = np.ones(len(rows), np.float32)
    places = np.array(rows["user"]), np.array(rows["item"])  # copies: it writes to them
    clicks = scipy.sparse.coo_matrix((ones, places), shape=shape)
    epochs = setting.pop("epochs")
    model = LightFM(loss="warp", random_state=0, **setting).fit(clicks, epochs=epochs)
    user_bias, user = model.get_user_representations()
    item_bias, item = model.get_item_representations()
    return lambda chosen: user[chosen] @ item.T + item_bias + user_bias[chosen][:, None]


def surprise(rows: pl.DataFrame, users: int, items: int, setting: dict[str, Any]) -> Scores:
    """SVD (Koren, Bell and Volinsky, IEEE Computer 2009) on ratings."""
    from surprise import SVD, Reader
    from surprise.dataset import Dataset

    ratings = rows.select("user", "item", pl.col("rating").cast(pl.Float64), time=None).rows()
    scale = min(row[2] for row in ratings), max(row[2] for row in ratings)
    data = Dataset(Reader(rating_scale=scale)).construct_trainset(ratings)
    model = SVD(random_state=0, **setting).fit(data)
    factors = setting["n_factors"]
    user, item = np.zeros((users, factors)), np.zeros((items, factors))
    bias = np.full(items, float(np.min(model.bi)))  # items without a rating come last
    user[[data.to_raw_uid(n) for n in range(data.n_users)]] = model.pu
    raw = [data.to_raw_iid(n) for n in range(data.n_items)]
    item[raw], bias[raw] = model.qi, model.bi
    return lambda chosen: user[chosen] @ item.T + bias


FITS = {"lightfm": lightfm, "surprise": surprise}


def best(scores: Scores, rows: pl.DataFrame, split: int, length: int) -> Iterator[tuple[int, Any]]:
    """(user, the first items) of the users with targets in ``split``."""
    known = rows.filter((pl.col("split") < split) | (pl.col("split") > TEST))
    users = rows.filter(pl.col("split") == split)["user"].unique().sort().to_numpy()
    seen = dict(known.group_by("user").agg("item").iter_rows())
    for start in range(0, len(users), AT_ONCE):
        block = users[start : start + AT_ONCE]
        found = np.array(scores(block), np.float32)
        for row, user in zip(found, block.tolist(), strict=True):
            row[seen.get(user, [])] = -np.inf
            first = np.argpartition(-row, length)[:length]
            yield user, first[np.argsort(-row[first], kind="stable")]


def quality(scores: Scores, rows: pl.DataFrame) -> float:
    """NDCG@10 on validation."""
    chosen = dict(rows.filter(pl.col("split") == VALID).group_by("user").agg("item").iter_rows())
    discounts = 1 / np.log2(np.arange(K) + 2)
    values = [
        discounts @ np.isin(found, chosen[user]) / discounts[: len(chosen[user])].sum()
        for user, found in best(scores, rows, VALID, K)
    ]
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--library", choices=sorted(FITS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = options.workdir.expanduser() / "dataset"
    rows = pl.read_parquet(folder / "interactions.parquet")
    users, items = (
        pl.read_parquet(folder / f"{name}.parquet")["id"].to_list() for name in ("users", "items")
    )
    train = rows.filter(pl.col("split") == TRAIN)
    fitted = []
    for setting in SETTINGS[options.library]:
        scores = FITS[options.library](train, len(users), len(items), dict(setting))
        fitted.append((quality(scores, rows), setting, scores))
        print(f"{setting}: NDCG@10 {fitted[-1][0]:.4f} on validation", file=sys.stderr, flush=True)
    _, setting, scores = max(fitted, key=lambda one: one[0])
    with options.out.open("w") as file:
        for user, found in best(scores, rows, TEST, min(LENGTH, len(items) - 1)):
            line = {"user": users[user], "items": [items[item] for item in found.tolist()]}
            file.write(json.dumps(line) + "\n")
    print(f"{options.out}: {setting}")


if __name__ == "__main__":
    main()
