#!/usr/bin/env bash
# implicit 0.7.3: a zero that is stored in the CSR matrix is a click for BPR, no click for the
# neighbours, and neither for ALS.
#
# A log in which a click is taken back ends in a matrix with stored zeros, when values are set or
# summed up and eliminate_zeros() is not called; scipy's own arithmetic treats them like zeros that
# are not stored. Expected: the same model with and without them, or an error. Seen, with no warning:
#   BayesianPersonalizedRanking reads the positions and never the values: the model is, to the bit,
#     that of a matrix in which each stored zero is a 1;
#   AlternatingLeastSquares gives such a pair the weight 0, where a pair that is not stored has 1,
#     so that what a user took back scores higher than the same pair that was never stored;
#   CosineRecommender gives the same scores with and without them;
#   recommend(filter_already_liked_items=True) leaves a stored zero out of the user's list in the
#     first two and shows it in the third.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet implicit==0.7.3 scipy==1.17.1 numpy==2.4.6
OPENBLAS_NUM_THREADS=1 "$python" -W ignore - <<'PYTHON'
import numpy as np
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import CosineRecommender

USERS, ITEMS = 200, 40
clicks = scipy.sparse.random(USERS, ITEMS, 0.15, format="csr", dtype=np.float32, random_state=0)
clicks.data[:] = 1
stored = clicks.copy()
back = np.random.default_rng(0).random(clicks.nnz) < 0.3
stored.data[back] = 0
removed = stored.copy()
removed.eliminate_zeros()
assert stored.nnz > removed.nnz and (stored != removed).nnz == 0  # equal for scipy

MODELS = {
    "BPR": lambda: BayesianPersonalizedRanking(8, iterations=20, random_state=0, num_threads=1),
    "ALS": lambda: AlternatingLeastSquares(8, iterations=5, random_state=0, num_threads=1),
    "cosine": lambda: CosineRecommender(5, num_threads=1),
}
everybody = np.arange(USERS)
taken = clicks.tocoo().row[back], clicks.tocoo().col[back]


def fitted(make, matrix):
    """The scores of all pairs, for the histories without what was taken back."""
    model = make()
    model.fit(matrix, show_progress=False)
    ids, scores = model.recommend(everybody, removed, N=ITEMS, filter_already_liked_items=False)
    every = np.zeros((USERS, ITEMS), np.float32)
    rows, known = np.repeat(everybody, ids.shape[1]), ids.ravel() >= 0
    every[rows[known], ids.ravel()[known]] = scores.ravel()[known]
    return model, every


found = {}
for name, make in MODELS.items():
    model, with_zeros = fitted(make, stored)
    without, as_clicks = fitted(make, removed)[1], fitted(make, clicks)[1]
    shown, _ = model.recommend(everybody, stored, N=ITEMS - 15)
    found[name] = {
        "same as without zeros": bool(np.array_equal(with_zeros, without)),
        "same as clicks": bool(np.array_equal(with_zeros, as_clicks)),
        "taken back, mean score with and without": [
            round(float(scores[taken].mean()), 3) for scores in (with_zeros, without)
        ],
        "taken back is shown": bool((shown[taken[0]] == taken[1][:, None]).any()),
    }
    print(name, found[name])
same = [tuple(list(row.values())[:2]) for row in found.values()]
assert same == [(False, True), (False, False), (True, False)], "changed: how stored zeros count"
high, low = found["ALS"]["taken back, mean score with and without"]
assert high > low, "changed: ALS no longer favours stored zeros"
filters = [row["taken back is shown"] for row in found.values()]
assert filters == [False, False, True], "changed: what the filter leaves out"
PYTHON
