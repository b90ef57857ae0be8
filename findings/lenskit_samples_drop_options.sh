#!/usr/bin/env bash
# lenskit 2026.4.0 (2025.8.1 with Python before 3.12.5): sample_users drops the seed if its samples
# cover all users, and sample_users and sample_records drop test_only for a single sample.
#
# Docstrings: rng is "the random number generator or seed", and test_only=True "returns splits with
# empty training sets", both whatever repeats is. Expected: the same users for the same seed; no row
# of train with test_only. Seen, with no warning about either option:
#   sample_users with repeats * size >= users hands over to crossfold_users without rng and without
#     test_only: one seed gives other users at each call, and train is full. It logs "cannot take 4
#     disjoint samples of size 10 from 40 users", though 40 users are just enough for that;
#   sample_records in the same case keeps the seed and drops test_only;
#   both with repeats=None, the default, ignore test_only: train is full.
# crossfold_users and crossfold_records, called directly, obey both options.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet numpy==2.4.6 pandas==2.3.3 scipy==1.17.1 torch==2.14.1 \
  "lenskit==2026.4.0; python_full_version >= '3.12.5'" \
  "lenskit==2025.8.1; python_full_version < '3.12.5'"
"$python" -W ignore - <<'PYTHON'
import lenskit
import numpy as np
import pandas as pd
from lenskit.data import from_interactions_df
from lenskit.splitting import (
    SampleN,
    crossfold_records,
    crossfold_users,
    sample_records,
    sample_users,
)

print("lenskit", lenskit.__version__)
random = np.random.default_rng(0)
USERS, EACH = 40, 20  # 800 rows
rows = [(u, item) for u in range(USERS) for item in random.choice(60, EACH, replace=False)]
data = from_interactions_df(pd.DataFrame(rows, columns=["user_id", "item_id"]))
assert data.interaction_count == USERS * EACH


def users(split, *numbers, **options):
    return split(data, *numbers, SampleN(2, rng=1), **options)


def records(split, *numbers, **options):
    return split(data, *numbers, **options)


def splits(kind, *arguments, **options):
    made = kind(*arguments, rng=42, **options)
    return [made] if hasattr(made, "train") else list(made)


def tested(kind, made):
    """What is drawn by the seed: the users of each test set, or all its rows."""
    keys = [{int(key.user_id): sorted(map(int, row.ids())) for key, row in s.test} for s in made]
    return [sorted(drawn) if kind is users else drawn for drawn in keys]


CASES = {
    "sample_users, one of 10": (users, (sample_users, 10), {}),
    "sample_users, 3 of 10": (users, (sample_users, 10), {"repeats": 3}),
    "sample_users, 4 of 10": (users, (sample_users, 10), {"repeats": 4}),
    "crossfold_users, 4": (users, (crossfold_users, 4), {}),
    "sample_records, one of 200": (records, (sample_records, 200), {}),
    "sample_records, 3 of 200": (records, (sample_records, 200), {"repeats": 3}),
    "sample_records, 4 of 200": (records, (sample_records, 200), {"repeats": 4}),
    "crossfold_records, 4": (records, (crossfold_records, 4), {}),
}
found = {}
for name, (kind, arguments, options) in CASES.items():
    first, second = (tested(kind, splits(kind, *arguments, **options)) for _ in range(2))
    only = splits(kind, *arguments, **options, test_only=True)
    found[name] = first == second, max(s.train.interaction_count for s in only)
    print(name, "| same test with the same seed:", found[name][0], end=" ")
    print("| rows of train with test_only:", found[name][1])
other = {name for name, (same, _) in found.items() if not same}
full = {name for name, (_, left) in found.items() if left}
assert other == {"sample_users, 4 of 10"}, "changed: where the seed is used"
assert full == {
    "sample_users, one of 10",
    "sample_users, 4 of 10",
    "sample_records, one of 200",
    "sample_records, 4 of 200",
}, "changed: where test_only is used"
PYTHON
