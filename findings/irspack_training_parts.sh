#!/usr/bin/env bash
# irspack 0.5.2: the splits of a log drop the ratings of the training users, keep their future, and
# with text ids hold out other items in each process, whatever random_state is.
#
# Docstrings: split_dataframe_partial_user_holdout says of rating_column that without it "the rating
# will be treated as 1 for all interactions", and has a random_state "for this procedure";
# holdout_specific_interactions is to "split the dataframe by a certain timepoint, and ensure that
# no information after that timepoint contaminates the training set". Expected: ratings in all
# three parts; the same split for the same log and random_state; no late interaction in a part that
# is for training. Seen, with no error and no warning:
#   split_dataframe_partial_user_holdout passes rating_column to validation and test only: each
#     value of train is 1, and a model is fitted to other data than it is asked with. Below, with
#     play counts, P3alpha and cosine neighbours fall from NDCG@10 0.44 to 0.10. (With time_column
#     as well, rating_column raises KeyError.)
#   the same function orders the items by a Python set and then draws positions, so that with text
#     ids the held-out items, and the columns, change with PYTHONHASHSEED, which is random by
#     default. The users of the parts, and splits of integer ids, do not change;
#   holdout_specific_interactions takes the late interactions away from validation and test users
#     alone. The other 60% (by default) of the users with late interactions come into train with
#     all they did, also after the timepoint.
# Workaround: df_to_sparse(rating_column=...) on the rows of train.user_ids; integer ids, or a fixed
# PYTHONHASHSEED; and ratios of validation and test that add up to 1, or dropping late rows by hand.
# Source: split/userwise.py, split_dataframe_partial_user_holdout; split/specified.py, df_train.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet irspack==0.5.2 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 \
    optuna==5.0.0 pydantic==2.14.4
cat >"$folder/program.py" <<'PYTHON'
import os
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
from irspack import CosineKNNRecommender, EvaluatorWithColdUser, P3alphaRecommender, df_to_sparse
from irspack.split import holdout_specific_interactions, split_dataframe_partial_user_holdout

random = np.random.default_rng(0)
USERS, ITEMS = 400, 80
rows = []
for user in range(USERS):
    like = np.arange(ITEMS) % 4 == user % 4
    for item in random.choice(np.flatnonzero(like), 8, replace=False):
        rows.append((user, item, random.integers(8, 30)))  # what is liked is played often
    for item in random.choice(np.flatnonzero(~like), 16, replace=False):
        rows.append((user, item, 1))
log = pd.DataFrame(rows, columns=["user", "item", "plays"]).astype(int)
log["time"] = random.permutation(len(log))
TEXT = log.assign(user=log.user.map("user {:03}".format), item=log.item.map("item {:03}".format))


def pairs(matrix, part, items):
    return sorted((part.user_ids[u], items[i]) for u, i in zip(*matrix.nonzero()))


def split(table, **options):
    return split_dataframe_partial_user_holdout(table, "user", "item", random_state=0, **options)


if sys.argv[1:]:  # in another process: what is held out
    for table in (log, TEXT):
        parts, items = split(table)
        users = [sorted(map(str, part.user_ids)) for part in parts.values()]
        held_out = [pairs(parts[name].X_test, parts[name], items) for name in ("val", "test")]
        print(*(zlib.crc32(str(x).encode()) for x in (users, held_out)))
    raise SystemExit

# ratings
parts, items = split(log, rating_column="plays")
for name, part in parts.items():
    values = np.unique(part.X_all.data)
    print(f"   plays in {name:5}| from {values.min():.0f} to {values.max():.0f}")
    assert (len(values) == 1) == (name == "train"), f"changed: the ratings of {name}"
train, test = parts["train"], parts["test"]
ids = {"user_ids": train.user_ids, "item_ids": items}
plays, _, _ = df_to_sparse(log, "user", "item", rating_column="plays", **ids)
ones, _, _ = df_to_sparse(log, "user", "item", **ids)
assert (train.X_train != ones).nnz == 0 and (train.X_train != plays).nnz > 0
liked = (test.X_test >= 8).astype(float)
evaluator = EvaluatorWithColdUser(test.X_train, liked, cutoff=10, n_threads=1)
for model in (P3alphaRecommender, CosineKNNRecommender):
    found, right = (
        evaluator.get_score(model(matrix, n_threads=1).learn())["ndcg"]
        for matrix in (train.X_train, plays)
    )
    print(f"   {model.__name__:21}| NDCG@10 {found:.3f} with train, {right:.3f} with its plays")
    assert found < 0.2 and right > 0.35, "changed: the effect of the lost ratings"

# random_state
seen = []
for seed in ("1", "2", "2"):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-W", "ignore", __file__, "held out"]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seen.append([line.split() for line in out.stdout.splitlines()])
for place, name in enumerate(("integer ids", "text ids")):
    users, held_out = ([run[place][k] for run in seen] for k in (0, 1))
    same = len(set(users)) == 1, held_out[0] == held_out[1], held_out[1] == held_out[2]
    print(f"   random_state=0, {name:11} | two processes have the same users: {same[0]}", end=", ")
    print(f"the same held-out pairs: {same[1]}; with one PYTHONHASHSEED: {same[2]}")
    assert same == (True, place == 0, True), f"changed: random_state with {name}"

# the future
late = (log.time >= 0.8 * len(log)).to_numpy()
future = set(zip(log.user[late], log.item[late]))
for options in ({}, {"validatable_user_ratio_val": 0.5, "validatable_user_ratio_test": 0.5}):
    items, parts = holdout_specific_interactions(
        log, "user", "item", late, random_state=0, **options
    )
    kept = {name: pairs(part.X_train, part, items) for name, part in parts.items()}
    kept = {name: len(future.intersection(found)) for name, found in kept.items()}
    print(f"   late interactions in X_train, of {len(future)}:", kept, "| ratios", end=" ")
    print(*options.values() or ["by default"])
    assert kept["val"] == kept["test"] == 0
    assert kept["train"] == 0 if options else kept["train"] > 0.5 * len(future), "changed: future"
PYTHON
OMP_NUM_THREADS=1 "$python" -W ignore "$folder/program.py"
