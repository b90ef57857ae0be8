"""The values that other libraries give to the same lists, for tests/evaluation/test_conventions.py.

    python benchmarks/metric_fixtures.py lists               # in the environment of kd_jax
    python benchmarks/metric_fixtures.py rectools|ir_measures   # in one of that library

The first writes tests/evaluation/fixtures/lists.json: for each user the targets, and the 20 first
of 60 items, best first. The others write LIBRARY.json beside it: the versions, and the value of
each user by the name of our metric. Only the library and the standard library are needed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "tests/evaluation/fixtures"
USERS, ITEMS, LENGTH = 24, 60, 20
CUTS = (1, 5, 10)
Values = dict[str, list[float]]


def lists() -> dict[str, list[list[int]]]:
    """Users with 1 to 14 targets; the first has one, in second place."""
    rng = random.Random(0)
    targets = [sorted(rng.sample(range(ITEMS), rng.randint(1, 14))) for _ in range(USERS)]
    ranked = []
    for chosen in targets:  # more of them in front than by chance
        score = {item: rng.random() + 0.2 * (item in chosen) for item in range(ITEMS)}
        ranked.append(sorted(score, key=score.__getitem__, reverse=True)[:LENGTH])
    targets[0] = [ranked[0][1]]
    return {"targets": targets, "lists": ranked}


def rectools(given: dict[str, list[list[int]]]) -> Values:
    import pandas as pd
    from rectools import metrics as m

    chosen = [(u, i) for u, of_user in enumerate(given["targets"]) for i in of_user]
    listed = [(u, i, n) for u, row in enumerate(given["lists"]) for n, i in enumerate(row, 1)]
    interactions = pd.DataFrame(chosen, columns=["user_id", "item_id"])
    reco = pd.DataFrame(listed, columns=["user_id", "item_id", "rank"])
    kinds = {
        "ndcg": m.NDCG,
        "ndcg, achievable": lambda k: m.NDCG(k, divide_by_achievable=True),
        "map": m.MAP,
        "recall": m.Recall,
        "precision": m.Precision,
        "f1": m.F1Beta,
        "hit_rate": m.HitRate,
        "mrr": m.MRR,
    }
    found = {}
    for name, kind in kinds.items():
        for k in CUTS:
            values = kind(k).calc_per_user(reco, interactions)
            found[f"{name}@{k}"] = [float(values[u]) for u in range(USERS)]
    return found


def ir_measures(given: dict[str, list[list[int]]]) -> Values:
    import ir_measures as ir
    from ir_measures import AP, RR, P, R, Success, nDCG

    qrels = [
        ir.Qrel(f"{u:02}", f"{i:02}", 1) for u, row in enumerate(given["targets"]) for i in row
    ]
    run = [
        ir.ScoredDoc(f"{u:02}", f"{i:02}", -float(n))
        for u, row in enumerate(given["lists"])
        for n, i in enumerate(row)
    ]
    kinds = {"ndcg": nDCG, "map": AP, "recall": R, "precision": P, "hit_rate": Success, "mrr": RR}
    found: Values = {f"{name}@{k}": [0.0] * USERS for name in kinds for k in CUTS}
    names = {kind @ k: f"{name}@{k}" for name, kind in kinds.items() for k in CUTS}
    for value in ir.iter_calc(list(names), qrels, run):
        found[names[value.measure]][int(value.query_id)] = value.value
    return found


LIBRARIES: dict[str, tuple[Callable[[dict[str, list[list[int]]]], Values], tuple[str, ...]]] = {
    "rectools": (rectools, ("rectools", "numpy", "pandas")),
    "ir_measures": (ir_measures, ("ir-measures", "pytrec-eval-terrier")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("lists", *LIBRARIES))
    what = parser.parse_args().what
    FIXTURES.mkdir(exist_ok=True)
    if what == "lists":
        content: dict[str, object] = dict(lists())
    else:
        calculate, packages = LIBRARIES[what]
        values = calculate(json.loads((FIXTURES / "lists.json").read_text()))
        versions = {name: importlib.metadata.version(name) for name in packages}
        versions["python"] = ".".join(map(str, sys.version_info[:3]))
        rounded = {name: [round(value, 9) for value in row] for name, row in values.items()}
        content = {"versions": versions, "values": rounded}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in content.items())
    (FIXTURES / f"{what}.json").write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
