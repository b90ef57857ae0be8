#!/usr/bin/env bash
# ranx 0.3.21: evaluate takes Python dictionaries, but pairs their users by position, so that a
# run in another order is scored against the relevant items of other users.
#
# Docstring: qrels and run may be a Dict[str, Dict[str, Number]], the scores are those "for the
# provided qrels and run"; nothing is said about order. Expected: the metrics of a direct count,
# as with Qrels and Run, whatever the order of the users in the dictionaries. Seen, with no error
# and no warning: the check of the query ids compares the keys as sets, without order, and passes;
# then the values are taken in the order in which they stand, and user n of one is paired with
# user n of the other. Below, for the same lists of 40 users,
#   two dictionaries in the same order give the right numbers;
#   with the run in another order, as parallel inference returns it, MRR falls from 0.8 to 0.01,
#     and a worse model, whose run is in the order of the qrels, looks better with 0.3;
#   a Qrels with a dictionary, or a dictionary with a Run, is wrong even if both were made of
#     dictionaries in the same order: Qrels and Run sort their users as text, so user "10" comes
#     before user "2". Right is only a dictionary that is sorted in this way;
#   return_mean=False, the numbers of single users, is wrong in the same way.
# This hurts anyone who compares models with it. Workaround: evaluate(Qrels(qrels), Run(run), ...),
# which is right for any order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet ranx==0.3.21 numba==0.68.1 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1
export NUMBA_NUM_THREADS=1 IR_DATASETS_HOME="$folder/datasets"
cat >"$folder/program.py" <<'PYTHON'
import random

from ranx import Qrels, Run, evaluate

random.seed(0)
METRICS = ["mrr", "hit_rate@1", "ndcg@5"]
ITEMS = [f"item {i}" for i in range(60)]
USERS = [str(u) for u in range(1, 41)]  # in the order of numbers: "1", "2", ..., "10", ...
held_out = {user: {random.choice(ITEMS): 1} for user in USERS}


def lists(share):
    """Ten items for each user; for a share of the users the held-out item is the first."""
    made = {}
    for place, (user, relevant) in enumerate(held_out.items()):
        (item,) = relevant
        others = random.sample([other for other in ITEMS if other != item], 10)
        if place < share * len(USERS):
            others = [item, *others[:9]]
        made[user] = {other: 1.0 - rank / 10 for rank, other in enumerate(others)}
    return made


def shuffled(run):
    users = list(run)
    random.shuffle(users)
    return {user: run[user] for user in users}


def counted(qrels, run):
    """MRR by a direct count; with one relevant item, at rank 1 or nowhere, all three are this."""
    found = 0.0
    for user, scores in run.items():
        ranked = sorted(scores, key=scores.get, reverse=True)
        (item,) = qrels[user]
        found += 1 / (1 + ranked.index(item)) if item in ranked else 0.0
    return found / len(run)


good, weak = lists(0.8), lists(0.3)
other = shuffled(good)
assert other == good and list(other) != list(good)  # the same mapping, in another order
as_text = {user: good[user] for user in sorted(good)}
CASES = {
    "good: two dictionaries, same order": (held_out, good),
    "good: two dictionaries, other order": (held_out, other),
    "good: Qrels and Run, same order": (Qrels(held_out), Run(good)),
    "good: Qrels and Run, other order": (Qrels(held_out), Run(other)),
    "good: Qrels and dictionary": (Qrels(held_out), good),
    "good: dictionary and Run": (held_out, Run(good)),
    "good: Qrels and dictionary sorted as text": (Qrels(held_out), as_text),
    "weak: two dictionaries, same order": (held_out, weak),
}
seen = {}
for name, pair in CASES.items():
    values = evaluate(*pair, METRICS)
    seen[name] = {metric: round(float(values[metric]), 3) for metric in METRICS}
    print("  ", f"{name:42}", seen[name])
true = {"good": counted(held_out, good), "weak": counted(held_out, weak)}
print("  ", "direct count of MRR", true)
assert counted(held_out, other) == true["good"] == 0.8
assert true["weak"] == 0.3

RIGHT = [
    "good: two dictionaries, same order",
    "good: Qrels and Run, same order",
    "good: Qrels and Run, other order",
    "good: Qrels and dictionary sorted as text",
    "weak: two dictionaries, same order",
]
for name, values in seen.items():
    if name in RIGHT:
        expected = dict.fromkeys(METRICS, true[name[:4]])
        assert values == expected, f"changed: no longer right: {name}"
    else:
        assert values["mrr"] < 0.2, f"changed: users are paired by id: {name}"
lost, kept = "good: two dictionaries, other order", "weak: two dictionaries, same order"
assert seen[lost]["mrr"] < 0.02, "changed: users are paired by id"
for metric in METRICS:
    assert seen[lost][metric] < seen[kept][metric], "changed: the better model looks no worse"

each = evaluate(held_out, other, METRICS, return_mean=False)["hit_rate@1"]
hits = [float(next(iter(held_out[user])) == next(iter(other[user]))) for user in other]
print("  ", "hits of the first users of the run: seen", each[:8].tolist(), "| true", hits[:8])
assert sum(hits) == 0.8 * len(USERS) and sum(each) < 0.2 * len(USERS), "changed: return_mean=False"
PYTHON
"$python" -W ignore "$folder/program.py"
