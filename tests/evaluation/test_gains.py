"""The comparisons and the serving table of report/metrics.json."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from kd_jax.evaluation import latency
from kd_jax.evaluation.latency import costs
from kd_jax.evaluation.significance import Comparison, gains, paired_bootstrap

MAIN = Comparison("distilled", {"student": "", "control": "lm_share", "trending": "over_trending"})
WIDE = Comparison("wide", {"distilled": "wide_over_distilled"})


def of_users(*means):
    rng = np.random.default_rng(0)
    base = rng.uniform(size=200)
    return [{"ndcg@10": (base * mean).astype(np.float32)} for mean in means]


def test_every_comparison_of_trained_models_is_in_its_own_field():
    per_user = {"student": of_users(1.0, 1.1), "distilled": of_users(1.3, 1.2)}
    per_user |= {"control": of_users(1.1, 1.1), "wide": of_users(1.5)}
    entry = gains(per_user, ("ndcg@10", "recall@10"), (MAIN, WIDE), 200)["ndcg@10"]
    assert list(entry) == [
        *("student", "distilled", "relative", "ci95", "p_value"),
        *("control", "lm_share", "wide", "wide_over_distilled"),
    ]
    stacked = {
        name: np.stack([seed["ndcg@10"] for seed in seeds]) for name, seeds in per_user.items()
    }
    for baseline, candidate, change in (
        ("student", "distilled", entry),
        ("control", "distilled", entry["lm_share"]),
        ("distilled", "wide", entry["wide_over_distilled"]),
    ):
        expected = paired_bootstrap(stacked[baseline], stacked[candidate], resamples=200)
        assert change["relative"] == expected.relative and change["ci95"] == expected.ci95
        assert change["p_value"] == expected.p_value
        assert entry[baseline] == expected.baseline and entry[candidate] == expected.candidate


def test_the_transfer_ratio_stands_beside_the_gain_where_there_is_a_teacher():
    per_user = {"student": of_users(1.0), "distilled": of_users(1.3, 1.2)}
    main = dataclasses.replace(MAIN, teacher="teacher")
    assert "transfer" not in gains(per_user, ("ndcg@10",), (main,), 100)["ndcg@10"]
    per_user["teacher"] = of_users(1.5)
    entry = gains(per_user, ("ndcg@10",), (main,), 100)["ndcg@10"]
    assert entry["transfer"]["ratio"] == pytest.approx(0.5, rel=1e-5)
    assert entry["transfer"].keys() == {"taught_by", "ratio", "ci95", "lead", "lead_ci95"}
    assert "transfer" not in gains(per_user, ("ndcg@10",), (MAIN,), 100)["ndcg@10"]


def test_a_model_is_compared_with_the_baselines_that_are_there():
    per_user = {"distilled": of_users(1.3), "control": of_users(1.1), "wide": of_users(1.5)}
    found = gains(per_user, ("ndcg@10",), (MAIN, WIDE), 100)["ndcg@10"]
    assert found.keys() == {"distilled", "control", "lm_share", "wide", "wide_over_distilled"}
    assert found["lm_share"]["relative"] == pytest.approx(0.2 / 1.1, rel=1e-5)
    assert gains({"control": of_users(1.1)}, ("ndcg@10",), (MAIN,), 100) == {}


def test_serving_costs_count_labels_and_reading():
    rows = [
        {"name": "teacher", "users_per_second": 50.0, "train_seconds": 90.0},
        {"name": "student", "users_per_second": 100.0, "train_seconds": 5.0},
        *(
            {"name": "distilled", "users_per_second": 100.0, "train_seconds": s, "label_seconds": 2}
            for s in (6.0, 8.0)
        ),
    ]
    students = {"wide": True, "distilled": True, "student": False}
    table = costs(rows, 0.02, 0.001, teacher="teacher", students=students)
    assert [(row["name"], row["users_per_second"], row["new_item_seconds"]) for row in table] == [
        ("distilled, trained again", 100.0, 9.0),
        ("student, trained again", 100.0, 5.0),
        ("teacher, item vectors cached", 50.0, 0.001),
        ("teacher, reading text", 25.0, 0.001),
    ]
    assert "labels included" in table[0]["note"] and "once they have clicks" in table[1]["note"]
    rows[2] |= {"new_item_seconds": 0.002, "new_user_seconds": 0.003}  # of the exported seed
    with_maps = costs(rows, 0.02, 0.001, teacher="teacher", students=students)
    (maps,) = [row for row in with_maps if row not in table]
    assert maps["name"] == "distilled, by its maps" and maps["users_per_second"] == 100.0
    assert (maps["new_item_seconds"], maps["new_user_seconds"]) == (0.002, 0.003)


def test_the_typical_time_is_the_median_without_the_first_call(monkeypatch):
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 30.0, 31.0])  # 9, 1, 3 and 1 seconds
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert latency.typical_seconds(str, range(4)) == 1
    assert latency.typical_seconds(len, []) == 0
