#!/usr/bin/env bash
# cornac 3.0.1 with numpy 2.4.6: MRR, NDCG(k=-1) and NCRR(k=-1) depend on which other metrics are
# computed in the same call.
#
# MRR takes no k, and k=-1, the default of the other two, is documented as "all" items. Expected:
# one number for a model and a split, whatever else stands in the list of metrics. Seen, with no
# warning: a user's items are ranked once, for the largest k of the list, and -1 counts as the
# smallest. With Recall(k) in the list only the first k items are sorted; the rest stays as
# numpy.argpartition leaves it, and the three metrics read all of it. With Recall(1) in the list:
#   where numpy partitions without vector code (a CPU with neither AVX2 nor AVX-512; here it is
#     switched off) MRR falls from 0.24 to 0.15 and NDCG from 0.31 to 0.21;
#   where it has vector code, the first hundred items or more happen to come out sorted: NDCG is
#     0.001 too low and another for most users, so that results depend on the machine.
# Without Recall the metrics agree with a direct count. MAP and AUC use the scores: no change.
# cornac 2.2.1 does the same, and with numpy 1.26.4 gives the 0.15 also on a CPU with AVX-512.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet cornac==3.0.1 numpy==2.4.6 scipy==1.17.1
cat >"$folder/program.py" <<'PYTHON'
import sys

import numpy as np
from cornac.eval_methods import RatioSplit
from cornac.metrics import AUC, MAP, MRR, NCRR, NDCG, Recall
from cornac.models import BPR

random = np.random.default_rng(0)
USERS, ITEMS = 200, 2000
popular = 1 / np.arange(1, ITEMS + 1) ** 0.8
log = []
for user in range(USERS):
    taste = popular * np.where(np.arange(ITEMS) % 20 == user % 20, 20, 1)
    for item in random.choice(ITEMS, 20, replace=False, p=taste / taste.sum()):
        log.append((f"u{user}", f"i{item}", 1.0))
NAMES = ("MRR", "NDCG@-1", "NCRR@-1", "MAP", "AUC")


def evaluated(*others):
    """The model, its split, and for each metric the values of all users."""
    split = RatioSplit(log, test_size=0.2, seed=1)
    model = BPR(k=8, max_iter=50, seed=3, num_threads=1)
    metrics = [MRR(), NDCG(), NCRR(), MAP(), AUC(), *others]
    values = split.evaluate(model, metrics, user_based=True)[0].metric_user_results
    return model, split, {name: np.array(list(values[name].values())) for name in NAMES}


def counted(model, split):
    """MRR and NDCG of all users, from the ranks of their test items."""
    train, test = split.train_set.csr_matrix, split.test_set.csr_matrix
    values = []
    for user in set(split.test_set.uir_tuple[0]):
        scores = np.array(model.score(user), float)
        scores[train[user].indices] = -np.inf  # not ranked
        places = np.sort([(scores > scores[item]).sum() for item in test[user].indices])
        gains, most = 1 / np.log2(places + 2), 1 / np.log2(np.arange(len(places)) + 2)
        values.append((1 / (places[0] + 1), gains.sum() / most.sum()))
    return dict(zip(("MRR", "NDCG@-1"), np.transpose(values)))


model, split, alone = evaluated()
direct = counted(model, split)
found = {"counted": direct, "without Recall": alone}
for k in (1, 10):
    found[f"with Recall({k})"] = evaluated(Recall(k))[2]
for name, values in found.items():
    print("  ", name, "|", {metric: round(float(v.mean()), 4) for metric, v in values.items()})
for metric in direct:
    assert np.allclose(direct[metric], alone[metric]), "changed: wrong without Recall too"
for name in ("with Recall(1)", "with Recall(10)"):
    other = {metric: ~np.isclose(alone[metric], found[name][metric]) for metric in NAMES}
    users = {metric: int(differs.sum()) for metric, differs in other.items()}
    print("  ", name, "| users with another value, of", len(alone["MRR"]), "|", users)
    assert users["MAP"] == users["AUC"] == 0, "changed: MAP or AUC"
    assert users["NDCG@-1"] > len(alone["MRR"]) / 2, "changed: NDCG no longer depends on the list"
if sys.argv[1] == "plain":
    assert found["with Recall(1)"]["MRR"].mean() < 0.8 * alone["MRR"].mean(), "changed: MRR"
PYTHON
export OPENBLAS_NUM_THREADS=1
echo "on this CPU:"
"$python" -W ignore "$folder/program.py" any
echo "without the vector code:"
NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL" "$python" -W ignore "$folder/program.py" plain
