#!/usr/bin/env bash
# RecTools 0.19.0: an item that a user has twice in the test fold counts as two hits, so Precision,
# NDCG, F1Beta, Accuracy and MAP(divide_by_k=True) pass 1 and the better model can come out worse.
#
# In a log of plays or purchases a user has the same item several times; Dataset, the splitters and
# cross_validate take such a log as it is, and no docstring asks for distinct pairs. Expected, from
# the docstrings: Precision is "tp / k", with tp the relevant ones among the first k recommended
# items, and "NDCG@k values lie in [0, 1]", since the gain of an item is 1 or 0. Seen, with no
# warning: the test interactions are joined with the recommendations row by row (merge_reco), so one
# recommended item that a user played 30 times counts as 30. Below, with cross_validate,
#   Precision@1 and NDCG@1 of an item that few users play often are 1.5, where 5 percent of the
#     lists have a hit;
#   those of an item that half of the users play once are 0.5, which is right.
# Recall and MAP stay below 1, but weigh an item by its plays. HitRate, MRR, PAP and PartialAUC do
# not change; the last two drop repeated pairs first (outer_merge_reco). With drop_duplicates of the
# test all are right. RecTools has it as an open issue (164, of 2024); the docstrings are silent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet RecTools==0.19.0 numpy==1.26.4 pandas==2.3.3
cat >"$folder/program.py" <<'PYTHON'
import pandas as pd
from rectools import metrics
from rectools.dataset import Dataset
from rectools.metrics import calc_metrics
from rectools.model_selection import TimeRangeSplitter, cross_validate
from rectools.models import PopularModel

# the smallest case: one user, who has the one recommended item three times in the test
one = pd.DataFrame({"user_id": [1], "item_id": ["a"], "rank": [1]})
for metric in (
    metrics.Precision(k=1),
    metrics.NDCG(k=1),
    metrics.MAP(k=1, divide_by_k=True),
    metrics.F1Beta(k=1),
    metrics.Accuracy(k=1),
):
    catalog = {"catalog": ["a", "b"]} if isinstance(metric, metrics.Accuracy) else {}
    thrice = metric.calc(one, one.sample(3, replace=True), **catalog)
    print("  ", "three times the same play |", type(metric).__name__, thrice)
    assert metric.calc(one, one, **catalog) == 1, "changed: not 1 for a single play"
    assert thrice > 1, "changed: no longer above 1"

# "often": 1 user in 20 plays it 30 times a day. "wide": half of the users play it once a day. Each
# day has its own users, so that nobody has played in train what stands in the test.
rows = []
for day in range(4):
    start = pd.Timestamp("2026-01-01") + pd.Timedelta(days=day)
    for user in range(200):
        plays = [f"rare {user % 50}"] + ["often"] * 30 * (user % 20 == 0) + ["wide"] * (user % 2)
        for minute, item in enumerate(plays):
            # users of the last day are known from a play of another item on the first
            rows.append((user + 1000 * day, item, 1.0, start + pd.Timedelta(minutes=minute)))
            if day == 3 and minute == 0:
                rows.append((user + 3000, "rare 0", 1.0, pd.Timestamp("2026-01-01 12:00")))
log = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "datetime"])
SPLITTER = TimeRangeSplitter("1D", n_splits=1)  # the last day is the test
MODELS = {
    "often": PopularModel(popularity="n_interactions"),
    "wide": PopularModel(popularity="n_users"),
}
METRICS = {
    "Precision@1": metrics.Precision(k=1),
    "NDCG@1": metrics.NDCG(k=1),
    "F1@1": metrics.F1Beta(k=1),
    "MAP@1/k": metrics.MAP(k=1, divide_by_k=True),
    "HitRate@1": metrics.HitRate(k=1),
    "MRR@1": metrics.MRR(k=1),
    "PAP@1": metrics.PAP(k=1),
}


def validated(rows):
    """The metrics of cross_validate, and the item that each model recommends first."""
    found = cross_validate(
        Dataset.construct(rows), SPLITTER, METRICS, MODELS, k=1, filter_viewed=False
    )
    found = {row["model"]: row for row in found["metrics"]}
    return {model: {name: round(found[model][name], 3) for name in METRICS} for model in MODELS}


seen = validated(log)
for model, values in seen.items():
    print("  ", f"recommends {model!r} |", values)

# the same fold with each pair once
test = log[log.datetime >= "2026-01-04"]
train = log[log.datetime < "2026-01-04"]
test = test[test.user_id.isin(train.user_id) & test.item_id.isin(train.item_id)]
test = test.merge(train[["user_id", "item_id"]].drop_duplicates(), how="left", indicator=True)
test = test[test._merge == "left_only"]
once = {}
for item in ("often", "wide"):
    lists = pd.DataFrame({"user_id": test.user_id.unique(), "item_id": item, "rank": 1})
    values = calc_metrics(METRICS, lists, test)
    assert all(abs(values[name] - seen[item][name]) < 1e-3 for name in METRICS), "changed: the fold"
    values = calc_metrics(METRICS, lists, test.drop_duplicates(["user_id", "item_id"]))
    once[item] = {name: round(values[name], 3) for name in METRICS}
    share = lists.merge(test[["user_id", "item_id"]].drop_duplicates()).shape[0] / len(lists)
    print("  ", f"{item!r}, each pair once |", once[item], "| lists with a hit:", round(share, 3))
    assert abs(once[item]["Precision@1"] - share) < 1e-3, "changed: wrong without repetitions too"
assert once["often"]["Precision@1"] < 0.1 < once["wide"]["Precision@1"]
for name in ("Precision@1", "NDCG@1", "MAP@1/k"):
    assert seen["often"][name] > 1, f"changed: {name} no longer counts repetitions"
    assert seen["often"][name] > seen["wide"][name]
for name in ("HitRate@1", "MRR@1", "PAP@1"):
    assert seen["often"][name] == once["often"][name], f"changed: {name} counts repetitions"
PYTHON
"$python" -W ignore "$folder/program.py"
