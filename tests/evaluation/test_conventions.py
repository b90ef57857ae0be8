"""What other libraries call by the name of our metrics, with the factor where it differs.

The lists and the values of RecTools and ir-measures are those of benchmarks/metric_fixtures.py;
ranx is compared in test_metrics.py. docs/metrics.md has the table.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from kd_jax.evaluation import metrics as m

FIXTURES = Path(__file__).parent / "fixtures"
GIVEN = json.loads((FIXTURES / "lists.json").read_text())
CUTS = (1, 5, 10)
SIZES = np.array([len(targets) for targets in GIVEN["targets"]])
IDEAL = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, 12)))])


@pytest.fixture(scope="module")
def ours():
    """Our value of each user; a target outside of the list comes after it."""
    pairs = [
        (user, ranked.index(item) + 1 if item in ranked else 60)
        for user, (targets, ranked) in enumerate(zip(GIVEN["targets"], GIVEN["lists"], strict=True))
        for item in targets
    ]
    rows, ranks = np.array(pairs).T
    names = m.expand(["ndcg", "recall", "precision", "f1", "hit_rate", "map"], CUTS)
    names += ["mrr", *(f"mrr@{k}" for k in CUTS)]
    found = m.rank_metrics(names, m.Ranking(ranks, rows, np.full(len(SIZES), 60)))
    assert all(values.std() > 0 for values in found.values())
    return found


def values_of(library):
    found = json.loads((FIXTURES / f"{library}.json").read_text())["values"]
    return {name: np.array(values) for name, values in found.items()}


def of_all_targets(k):
    """MAP@k over all targets, as a share of ours, which is over min(k, targets)."""
    return np.minimum(SIZES, k) / SIZES


def test_pytrec_eval_divides_map_by_all_targets_and_agrees_in_the_rest(ours):
    qrels = {
        f"{u:02}": {f"{i:02}": 1 for i in targets} for u, targets in enumerate(GIVEN["targets"])
    }
    run = {
        f"{u:02}": {f"{i:02}": float(-n) for n, i in enumerate(ranked)}
        for u, ranked in enumerate(GIVEN["lists"])
    }
    names = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "hit_rate": "success",
             "map": "map_cut"}  # fmt: skip
    cuts = ",".join(map(str, CUTS))
    wanted = {f"{name}.{cuts}" for name in names.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
    for name, theirs in names.items():
        for k in CUTS:
            factor = of_all_targets(k) if name == "map" else 1.0
            values = [found[f"{u:02}"][f"{theirs}_{k}"] for u in range(len(SIZES))]
            np.testing.assert_allclose(values, ours[f"{name}@{k}"] * factor, rtol=1e-6)
    values = [found[f"{u:02}"]["recip_rank"] for u in range(len(SIZES))]
    np.testing.assert_allclose(values, np.where(ours["mrr"] >= 1 / 20, ours["mrr"], 0.0), rtol=1e-6)


@pytest.mark.parametrize("k", CUTS)
def test_rectools_divides_ndcg_by_k_targets_and_map_by_all(ours, k):
    theirs = values_of("rectools")
    for name in ("recall", "precision", "f1", "hit_rate", "mrr"):
        np.testing.assert_allclose(theirs[f"{name}@{k}"], ours[f"{name}@{k}"], atol=1e-6)
    ndcg = ours[f"ndcg@{k}"]
    np.testing.assert_allclose(theirs[f"ndcg, achievable@{k}"], ndcg, atol=1e-6)
    ideal = IDEAL[np.minimum(SIZES, k)] / IDEAL[k]
    np.testing.assert_allclose(theirs[f"ndcg@{k}"], ndcg * ideal, atol=1e-6)
    average = ours[f"map@{k}"] * of_all_targets(k)
    np.testing.assert_allclose(theirs[f"map@{k}"], average, atol=1e-6)


@pytest.mark.parametrize("k", CUTS)
def test_ir_measures_divides_map_by_all_targets_and_agrees_in_the_rest(ours, k):
    for name, values in values_of("ir_measures").items():
        if name.endswith(f"@{k}"):
            factor = of_all_targets(k) if name.startswith("map") else 1.0
            np.testing.assert_allclose(values, ours[name] * factor, atol=1e-6, err_msg=name)


def test_the_second_place_is_discounted(ours):
    """1 / log2(3); with the discount of 2002, 1 / max(1, log2(rank)), it would count as 1."""
    assert GIVEN["lists"][0][1] == GIVEN["targets"][0][0] and SIZES[0] == 1
    assert ours["ndcg@10"][0] == pytest.approx(0.6309298)
