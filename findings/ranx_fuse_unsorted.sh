#!/usr/bin/env bash
# ranx 0.3.21: fuse takes the order in which add_score was called for the ranking, so that
# reciprocal rank fusion and the other methods of ranks return wrong lists until evaluate is called.
#
# add_score is a documented way to fill a Run: it adds an item with its score "or, change its value
# if it already exists"; no docstring asks to sort the run. Expected: the rank of an item is that of
# its score, as in evaluate and save, and fuse gives the same list for the same scores, however the
# run was made. Seen, with no error and no warning: add_score leaves the run unsorted, evaluate
# sorts it in place, and fuse does not. So with runs filled by add_score
#   rrf, isr, log_isr, logn_isr, rbc, bordafuse and condorcet, and any method with norm="rank" or
#     "borda", rank the items by the order of the calls. Below, where they are added in the order
#     of the catalog, all users get the same list, and NDCG@10 falls from above 0.9 to 0.2;
#   after evaluate(qrels, run, ...) of each run, a call that should only read, the same fuse gives
#     other lists, which are right;
#   a Run of a dictionary, in which add_score then changes the scores, as a reranker does, is
#     fused by the old ranks.
# Methods of scores (sum, mnz, med, wsum with min-max, max or zmuv) are right. This hurts anyone who
# fuses the lists of several recommenders, for serving or in a table. Workaround: run.sort() before
# fuse, or Run(dictionary).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet ranx==0.3.21 numba==0.68.1 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1
export NUMBA_NUM_THREADS=1 IR_DATASETS_HOME="$folder/datasets"
export PYTHONHASHSEED=0 # condorcet breaks its cycles in the order of a set of texts
cat >"$folder/program.py" <<'PYTHON'
import random

from ranx import Qrels, Run, evaluate, fuse

random.seed(0)
USERS = [f"user {u}" for u in range(30)]
CATALOG = [f"item {i:02}" for i in range(40)]
liked = {user: dict.fromkeys(random.sample(CATALOG, 6), 1) for user in USERS}


def scored():
    """Scores of all items of the catalog: a liked one is mostly above the others."""
    return {
        user: {item: random.gauss(2.0 * (item in liked[user]), 0.7) for item in CATALOG}
        for user in USERS
    }


def added(scores):
    """A run filled item by item, in the order of the catalog."""
    run = Run()
    for user, items in scores.items():
        for item, score in items.items():
            run.add_score(user, item, score)
    return run


def ndcg(run):
    return round(float(evaluate(Qrels(liked), run, "ndcg@10")), 3)


def lists(run):
    """The fused scores, rounded, as a plain dictionary."""
    return {u: {i: round(s, 9) for i, s in items.items()} for u, items in run.to_dict().items()}


first, second = scored(), scored()
print("   NDCG@10 of the two runs", ndcg(Run(first)), ndcg(Run(second)))
assert ndcg(added(first)) == ndcg(Run(first)), "changed: evaluate"

RANKS = [
    ("rrf", None, {}),
    ("isr", None, {}),
    ("log_isr", None, {}),
    ("logn_isr", None, {"sigma": 0.01}),
    ("rbc", None, {"phi": 0.8}),
    ("bordafuse", None, {}),
    ("condorcet", None, {}),
    ("sum", "rank", {}),
    ("sum", "borda", {}),
    ("rrf", "min-max", {}),  # min-max is the default of norm
]
SCORES = [
    ("sum", "min-max", {}),
    ("mnz", "max", {}),
    ("med", "zmuv", {}),
    ("wsum", "min-max", {"weights": [0.5, 0.5]}),
]
for method, norm, params in RANKS + SCORES:
    runs = added(first), added(second)
    before = fuse(list(runs), norm=norm, method=method, params=params)
    tops = {tuple(sorted(x, key=x.get, reverse=True)[:10]) for x in before.to_dict().values()}
    same = fuse([Run(first), Run(second)], norm=norm, method=method, params=params)
    for run in runs:
        evaluate(Qrels(liked), run, "ndcg@10")
    after = fuse(list(runs), norm=norm, method=method, params=params)
    equal = lists(before) == lists(same), lists(after) == lists(same)
    values = ndcg(before), ndcg(after), ndcg(same)
    print("  ", f"{method:9} norm={norm!s:7} | NDCG@10 of runs by add_score: {values[0]},", end=" ")
    print(f"the same after evaluate: {values[1]}, of Run(dictionary): {values[2]}")
    assert equal[1] and values[1] == values[2] > 0.9, f"changed: {method} {norm}"
    if (method, norm, params) in SCORES:
        assert equal[0], f"changed: {method} {norm} depends on the order of add_score"
    else:
        assert not equal[0] and values[0] < 0.25, f"changed: {method} {norm} sorts before it ranks"
        assert len(tops) == 1, f"changed: {method} {norm} gives each user a list"

# a reranker changes the scores of a run that was sorted when it was made
reranked = Run(first)
for user in USERS:
    for item, score in second[user].items():
        reranked.add_score(user, item, score)
fused = lists(fuse([reranked, reranked], norm=None, method="rrf"))
old, new = (lists(fuse([Run(s), Run(s)], norm=None, method="rrf")) for s in (first, second))
print("   reranked by add_score | fused by the old ranks:", fused == old, end=" ")
print("| by the new ones:", fused == new)
assert fused == old and fused != new, "changed: fuse follows the new scores"
reranked.sort()
assert lists(fuse([reranked, reranked], norm=None, method="rrf")) == new, "changed: sort()"
PYTHON
"$python" -W ignore "$folder/program.py"
