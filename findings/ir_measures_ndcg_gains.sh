#!/usr/bin/env bash
# ir-measures 0.4.3 with pytrec-eval-terrier 0.5.11: in about every third process, nDCG@10 beside
# nDCG(gains=...)@10 is computed with the gains of the other, and the other is 0.0.
#
# gains is the documented "custom gain mapping" of nDCG, and calc_aggregate takes any number of
# measures. Expected: the number of a measure does not depend on what else is in the list, and the
# same call gives the same numbers. Seen, with no error and no warning: trec_eval has no gains, so
# the provider maps the relevances before and calls it once for each mapping. nDCG without gains is
# put into whichever call was made up first, also one with mapped relevances. Below, for ratings
# where only 4 and 5 stars are to count,
#   if the measure with gains comes first, nDCG@10 gets its number, and its own is 0.0 for each
#     user, the value for what was not computed, since both have one name in trec_eval;
#   nDCG@5 beside nDCG(gains=...)@10 is that with gains. Both numbers look right;
#   calc_aggregate and calc of the package put the measures into a set before, so that which one
#     comes first changes with PYTHONHASHSEED, which is random by default. A provider by name,
#     ir_measures.pytrec_eval, keeps the order of the list. P, R or AP before both prevents it;
#   NumRet goes the same way: after P(judged_only=True)@10 it counts the judged items alone.
# This hurts who reports a table of measures: a model can be compared by the gains of one process
# and by the ratings of the next. Workaround: one call for each nDCG with gains; all agree then
# with a direct count. Tied scores have no part in it.
# Source: providers/pytrec_eval_provider.py, _build_invokers, next(iter(invocations)).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet ir-measures==0.4.3 pytrec-eval-terrier==0.5.11 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import json
import math
import os
import random
import subprocess
import sys

import ir_measures
from ir_measures import AP, P, NumRet, Qrel, R, ScoredDoc, nDCG

draw = random.Random(0)
USERS, ITEMS, JUDGED = 50, 60, 40
qrels, run = [], []
for user in range(USERS):
    for item in range(ITEMS):
        stars = draw.choice((1, 2, 3, 3, 4, 4, 5))
        run.append(ScoredDoc(f"u{user}", f"i{item}", stars / 5 + 2 * draw.random()))
        if item < JUDGED:
            qrels.append(Qrel(f"u{user}", f"i{item}", stars))
LIKED = {1: 0, 2: 0, 3: 0, 4: 1, 5: 2}
gains = nDCG(gains=LIKED) @ 10


def together(*measures, by=ir_measures):
    """The numbers of measures that are asked for in one call."""
    found = by.calc_aggregate(measures, qrels, run)
    return [round(found[measure], 4) for measure in measures]


def alone(*measures):
    return [together(measure)[0] for measure in measures]


def counted(k, gain):
    """nDCG@k by a direct count."""
    total = 0
    for user in range(USERS):
        scores = {s.doc_id: s.score for s in run if s.query_id == f"u{user}"}
        value = {q.doc_id: gain[q.relevance] for q in qrels if q.query_id == f"u{user}"}
        found = [value.get(item, 0) for item in sorted(scores, key=scores.get)[::-1][:k]]
        best = sorted(value.values())[::-1][:k]
        one, ideal = (sum(g / math.log2(n + 2) for n, g in enumerate(x)) for x in (found, best))
        total += one / ideal
    return round(total / USERS, 4)


if sys.argv[1:] == ["numbers"]:
    print(json.dumps(together(nDCG @ 10, gains)))
    sys.exit()
same = {stars: stars for stars in range(1, 6)}
right = [counted(10, same), counted(10, LIKED)]
print(f"nDCG@10 and nDCG(gains)@10 | direct count {right} | alone {alone(nDCG @ 10, gains)}")
assert alone(nDCG @ 10, gains) == right
assert alone(nDCG @ 5) == [counted(5, same)]

# the provider by its name: the order of the list
trec = ir_measures.pytrec_eval
print("together, by pytrec_eval", together(nDCG @ 10, gains, by=trec), end=" | ")
print("and in the other order", together(gains, nDCG @ 10, by=trec)[::-1])
assert together(nDCG @ 10, gains, by=trec) == right
assert together(gains, nDCG @ 10, by=trec) == [0.0, right[1]], "changed: gains first"
for other in (P @ 10, R @ 10, AP):  # without gains: these are not changed, and protect nDCG
    assert together(other, gains, nDCG @ 10, by=trec) == [*alone(other), right[1], right[0]]
values = [m.value for m in trec.iter_calc([gains, nDCG @ 10], qrels, run) if m.measure == gains]
assert values == [0.0] * USERS, "changed: the users' numbers"

# another cutoff, which gives both a number of their own
both = together(gains, nDCG @ 5, by=trec)
print(f"nDCG@5 alone {counted(5, same)} | after nDCG(gains)@10 {both[1]}")
assert both == [right[1], counted(5, LIKED)] and both[1] != counted(5, same), "changed: nDCG@5"

# the package's own function: the hash seed
seen = {}
for seed in range(16):
    output = subprocess.run(
        [sys.executable, __file__, "numbers"],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        check=True,
    ).stdout
    seen.setdefault(tuple(json.loads(output)), []).append(seed)
for numbers, seeds in seen.items():
    print(f"together, by ir_measures {list(numbers)} with PYTHONHASHSEED in {seeds}")
assert set(seen) == {tuple(right), (right[1], 0.0)}, "changed: the hash seed has no part"

# NumRet
judged = P(judged_only=True) @ 10
print("NumRet alone", alone(NumRet), "| after P(judged_only)", together(judged, NumRet, by=trec))
assert alone(NumRet) == [USERS * ITEMS]
assert together(judged, NumRet, by=trec)[1] == USERS * JUDGED, "changed: NumRet"
print("As described: a measure takes the gains, or the judged_only, of another in the list.")
PYTHON
"$python" "$folder/program.py"
