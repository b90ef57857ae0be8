#!/usr/bin/env bash
# recommenders 1.2.1 (Microsoft's Recommenders): SAR.predict gives a row the score of another user,
# unless the users of the table come in the order in which fit met them.
#
# Docstring: predict outputs "SAR scores for only the users-items pairs which are in the test set",
# with no word about order. Expected: the score of a pair is the same in whatever row it stands, and
# is that of a direct count (the user's affinity times the item similarity). Seen, with no error and
# no warning: score() has one row for each user of the table, in the order of their first rows, but
# predict takes from it the row whose number the user got in fit. With the rows of
# python_random_split, or sorted by user id, nearly all scores are those of another user: below, the
# AUC of held-out items against random ones falls from 0.81 to about 0.5.
#   A table with all users, first met in the order of fit, is right;
#   one with some of the users raises IndexError if a number is too high, and is wrong if none is.
# recommend_k_items is right for any order and any choice of users.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
# what SAR imports, without the packages of the other models
"$python" -m pip install --quiet numpy==1.26.4 pandas==2.3.3 scipy==1.13.1 scikit-learn==1.5.2
"$python" -m pip install --quiet --no-deps recommenders==1.2.1
cat >"$folder/program.py" <<'PYTHON'
import numpy as np
import pandas as pd
from recommenders.datasets.python_splitters import python_random_split
from recommenders.models.sar import SAR
from sklearn.metrics import roc_auc_score

random = np.random.default_rng(0)
USERS, ITEMS, PAIR = 300, 100, ["userID", "itemID"]
log = []
for user in range(USERS):
    likes = np.where(np.arange(ITEMS) % 4 == user % 4, 20, 1)
    for item in random.choice(ITEMS, 12, replace=False, p=likes / likes.sum()):
        log.append((user, item, 1.0))
log = pd.DataFrame(log, columns=[*PAIR, "rating"])
train, test = python_random_split(log, 0.75, seed=1)
test = test[test.userID.isin(train.userID)].drop(columns="rating")
model = SAR(similarity_type="jaccard", timedecay_formula=False)
model.fit(train)

# the held-out pairs, and for each user three that are in neither part
others = pd.DataFrame(np.ndindex(USERS, ITEMS), columns=PAIR)
others = others.merge(log, how="left", on=PAIR)
others = others[others.rating.isna()][PAIR].groupby("userID").sample(3, random_state=1)
table = pd.concat([test[PAIR].assign(held_out=1), others.assign(held_out=0)])

# direct count: affinity times Jaccard similarity
seen = np.zeros((USERS, ITEMS))
seen[train.userID, train.itemID] = 1
both = seen.T @ seen
alone = np.diag(both)
scores = seen @ (both / np.maximum(alone[:, None] + alone - both, 1e-9))

number = {user: place for place, user in enumerate(train.userID.unique())}
orders = {
    "shuffled": table.sample(frac=1, random_state=2),
    "by user id": table.sort_values("userID", kind="stable"),
    "by first row in fit": table.sort_values("userID", key=lambda u: u.map(number)),
}
seen_wrong = {}
for name, rows in orders.items():
    assert set(rows.userID) == set(train.userID)
    found = model.predict(rows)
    assert (found[PAIR].to_numpy() == rows[PAIR].to_numpy()).all(), "changed: the rows"
    direct = scores[rows.userID, rows.itemID]
    wrong = ~np.isclose(found.prediction, direct)
    seen_wrong[name] = wrong.mean(), roc_auc_score(rows.held_out, found.prediction)
    print(f"   {name:20}| {wrong.sum()} of {len(rows)} scores wrong", end=" | ")
    print(f"AUC {seen_wrong[name][1]:.3f}, counted {roc_auc_score(rows.held_out, direct):.3f}")
assert seen_wrong["by first row in fit"][0] == 0, "changed: wrong in the order of fit too"
assert seen_wrong["by first row in fit"][1] > 0.75
for name in ("shuffled", "by user id"):
    assert seen_wrong[name][0] > 0.5, "changed: predict no longer depends on the order"
    assert seen_wrong[name][1] < 0.6

first = list(number)[:2]  # two users alone, the second first
few = pd.DataFrame({"userID": first[::-1], "itemID": [0, 0]})
found, direct = model.predict(few).prediction.to_numpy(), scores[few.userID, few.itemID]
print("   two users alone, predicted", found.round(3), "counted", direct.round(3))
assert np.allclose(found, direct[::-1]) and not np.allclose(*direct), "changed: two users"

top = model.recommend_k_items(orders["shuffled"][["userID"]], top_k=10, remove_seen=True)
assert np.allclose(top.prediction, scores[top.userID, top.itemID]), "changed: recommend_k_items"
print("   recommend_k_items:", len(top), "scores, all as counted")
PYTHON
"$python" -W ignore "$folder/program.py"
