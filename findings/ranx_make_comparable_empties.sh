#!/usr/bin/env bash
# ranx 0.3.21: evaluate and compare with make_comparable=True delete users from the run they are
# given, so that the next group of users is scored with empty lists: 0.0, or a bit too low.
#
# Docstring: make_comparable "adds empty results for queries missing from the run and removes those
# not appearing in qrels"; without it evaluate refuses such a pair, and the message asks for the
# option. evaluate is to return numbers; save_results_in_run=False is to leave even these out of
# the run. Expected: the run is for that one call without the others, as it would be with a copy.
# Seen, with no error and no warning: the users are deleted from the caller's Run, and a later call
# cannot tell a deleted user from one who never had a list, and adds an empty one. Below, a run of
# 300 users is scored for groups of them, of which each has the same quality,
#   groups without a common user: the first is right, each later one is exactly 0.0;
#   the held-out items of one week and of the next, with some users in both: the second week has
#     0.34 in place of 0.77, which looks like a worse week. In the other order the first has 0.34;
#   compare with two models whose runs were scored for different groups before: the better model
#     loses, and the difference is marked as significant;
#   all users, after a call for half of them: 0.41 in place of 0.79. A run that is saved then has
#     lost the other half.
# This hurts who reports numbers for groups of users, or for validation and test, by one run.
# Workaround: evaluate(qrels, Run(scores), ..., make_comparable=True), a new Run for each call.
# Source: data_structures/run.py, make_comparable, del self.run[q_id]; meta/evaluate.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet ranx==0.3.21 numba==0.68.1 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1
export NUMBA_NUM_THREADS=1 IR_DATASETS_HOME="$folder/datasets"
cat >"$folder/program.py" <<'PYTHON'
import json
import random
import sys

from ranx import Qrels, Run, compare, evaluate

random.seed(0)
ITEMS = [f"item {i}" for i in range(40)]
USERS = [f"user {u}" for u in range(300)]
held_out = {user: random.choice(ITEMS) for user in USERS}


def model(share):
    """Scores of all items for each user; the held-out one is the first for a share of them."""
    scores = {user: {item: random.random() for item in ITEMS} for user in USERS}
    for user, item in held_out.items():
        if random.random() < share:
            scores[user][item] = 2.0
    return scores


def relevant(users):
    return Qrels({user: {held_out[user]: 1} for user in users})


def counted(scores, users):
    """MRR by a direct count."""
    ranks = [
        1 + sum(score > scores[user][held_out[user]] for score in scores[user].values())
        for user in users
    ]
    return sum(1 / rank for rank in ranks) / len(ranks)


def number(run, users):
    options = {"make_comparable": True, "save_results_in_run": False}
    return float(evaluate(relevant(users), run, "mrr", **options))


def near(one, other):
    return abs(one - other) < 1e-9


scores = model(0.8)

# groups without a common user
groups = [USERS[:100], USERS[100:200], USERS[200:]]
right = [counted(scores, users) for users in groups]
new = [number(Run(scores), users) for users in groups]
run = Run(scores)
one = [number(run, users) for users in groups]
print("three groups, MRR | direct count", [round(x, 3) for x in right], end=" | ")
print("a new Run for each", [round(x, 3) for x in new], "| one Run", [round(x, 3) for x in one])
assert all(map(near, right, new))
assert near(one[0], right[0]) and one[1:] == [0.0, 0.0], "changed: one Run for three groups"
assert [len(found) for found in run.to_dict().values()] == [0] * 100

# two weeks with users in both
weeks = [USERS[:180], USERS[100:280]]
right = [counted(scores, users) for users in weeks]
run = Run(scores)
first, second = (number(run, users) for users in weeks)
run = Run(scores)
second_before, first_after = (number(run, users) for users in weeks[::-1])
print(f"two weeks | direct count {right[0]:.3f} {right[1]:.3f}", end=" | ")
print(f"one Run {first:.3f} {second:.3f}", end=" | ")
print(f"in the other order {first_after:.3f} {second_before:.3f}")
assert near(first, right[0]) and near(second_before, right[1])
both = [user for user in weeks[0] if user in weeks[1]]
for found in (second, first_after):
    assert near(found, counted(scores, both) * len(both) / 180), "changed: the second week"

# two models
better, worse = model(0.9), model(0.7)
runs = [Run(better, name="better"), Run(worse, name="worse")]
number(runs[0], weeks[0])
number(runs[1], weeks[1])
report = compare(relevant(weeks[1]), runs, ["mrr"], make_comparable=True).to_dict()
found = [report[name]["scores"]["mrr"] for name in ("better", "worse")]
right = [counted(made, weeks[1]) for made in (better, worse)]
p = report["worse"]["comparisons"]["better"]["mrr"]
print(f"the better and the worse model | direct count {right[0]:.3f} {right[1]:.3f}", end=" | ")
print(f"compare {found[0]:.3f} {found[1]:.3f}, p = {p:.1g}")
assert right[0] > right[1] and found[0] < found[1] and p < 0.01, "changed: compare"

# all users
run = Run(scores)
every = number(run, USERS)
number(run, USERS[:150])
run.save(sys.argv[1])
with open(sys.argv[1]) as file:
    saved = len(json.load(file))
later = number(run, USERS)
print(f"all users {every:.3f} | after a call for half of them {later:.3f}, {saved} users saved")
assert near(every, counted(scores, USERS))
assert near(later, counted(scores, USERS[:150]) / 2), "changed: all users"
assert saved == 150, "changed: the saved run"
print("As described: a call with make_comparable=True deletes the other users from the run.")
PYTHON
"$python" -W ignore "$folder/program.py" "$folder/run.json"
