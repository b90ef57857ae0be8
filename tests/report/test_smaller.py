"""The part of the report about smaller vectors, and what terms and costs mean in words."""

from __future__ import annotations

import re
from html import unescape

from matplotlib.figure import Figure

from kd_jax.experiment import roles
from kd_jax.report.plain import plain
from kd_jax.report.slices import slices
from kd_jax.report.smaller import Size, _labels, smaller
from kd_jax.report.summary import by_model
from kd_jax.report.terms import METRICS, SLICES, meanings
from kd_jax.report.tradeoff import Point

LEGEND = roles.legend()
SIZES = ((32, 64, 3932712), (8, 64, 1024080), (4, 64, 687888), (32, 16, 1014696))


def metrics(values=((0.08, 0.081, 0.0795, 0.076), (0.082, 0.081, 0.0805, 0.078))):
    """A distilled student of two seeds, with ``values`` of ``SIZES``."""
    rows = [{"bits": bits, "dim": dim, "bytes": size} for bits, dim, size in SIZES]
    models = [
        {
            "name": "distilled",
            "seed": seed,
            "bytes": 3932712,
            "test": {"ndcg@10": of_seed[0], "coverage@10": 0.0107},
            "slices": {"tail": {"ndcg@10": 0.0003}, "warm": {"ndcg@10": 0.1}},
            "smaller": {
                "users": 2189,
                "sizes": [
                    row | {"ndcg@10": value} for row, value in zip(rows, of_seed, strict=True)
                ],
            },
        }
        for seed, of_seed in enumerate(values)
    ]
    student = {"name": "student", "seed": 0, "test": {"ndcg@10": 0.07, "coverage@10": 0.5}}
    return {"models": [*models, student]}


def words(html):
    return " ".join(unescape(re.sub("<[^>]*>", " ", html)).replace("\xa0", " ").split())


def test_a_chart_a_sentence_and_a_table_have_the_means_over_seeds():
    html = smaller(by_model(metrics(), LEGEND), LEGEND)
    said = words(html)
    assert html.count("<svg") == 1 and "2,189 users" in said
    # 4 bits have .0800 of .0810, 98.8 %: below 99 %; 8 bits have .0810, 16 numbers .0770.
    assert (
        "With 8 bits per number instead of 32, the vectors of the distilled student take 1.02 MB"
        " instead of 3.93 MB and keep 100.0 % of its NDCG@10."
    ) in said
    assert "4 bits, 64 numbers 688 kB .0800 ±.0007 98.8 %" in said
    assert "32 bits, 16 numbers 1.01 MB .0770 ±.0014 95.1 %" in said
    assert "16 of 64 numbers .0770 at 1.01 MB" in said  # for screen readers
    assert "var(--student)" in html and "var(--distilled)" in html


def test_where_every_size_loses_the_sentence_says_so():
    worse = ((0.08, 0.07, 0.06, 0.05),)
    said = words(smaller(by_model(metrics(worse), LEGEND), LEGEND))
    assert "Every smaller size loses more than 1 % of NDCG@10." in said and "±" not in said
    alike = ((0.08, 0.07, 0.06, 0.0799),)
    said = words(smaller(by_model(metrics(alike), LEGEND), LEGEND))
    assert "With 16 of 64 numbers per vector, the vectors" in said


def test_nothing_measured_is_no_part():
    found = metrics()
    for row in found["models"]:
        row["smaller"] = {}
    assert smaller(by_model(found, LEGEND), LEGEND) == ""
    unknown = metrics()
    for row in unknown["models"][:2]:
        row["smaller"]["sizes"][0]["ndcg@10"] = None
    assert smaller(by_model(unknown, LEGEND), LEGEND) == ""
    assert smaller({}, LEGEND) == ""


def test_labels_are_beyond_all_whiskers():
    points = {
        Size(32, 64): Point(4e6, 0.08, 0.004),
        Size(8, 64): Point(1e6, 0.075, 0.001),
        Size(32, 16): Point(1e6, 0.07, 0.002),
    }
    axes = Figure().subplots()
    _labels(axes, points, Size(32, 64))
    placed = {text.get_text(): (*text.xy, text.xyann[1]) for text in axes.texts}
    assert placed == {
        "32": (4e6, 0.084, 21),
        "8": (1e6, 0.084, 21),
        "16": (1e6, 0.084, 7),
        "bits": (0, 0.084, 21),
        "numbers": (0, 0.084, 7),
    }


def test_terms_are_told_where_they_are_shown():
    said = meanings(("ndcg@10", "recall@20", "nothing"), ("warm", "cold", "cold_only", "warm"))
    assert said.startswith("NDCG@10 is 1 if what a user chose later comes first in the list of 10")
    assert "Recall@20 is the share of what a user chose later that is in the list of 20" in said
    assert said.count(SLICES["warm"]) == 1 and "cold among cold" in said
    assert "called good" in meanings(("recall",), ())  # of task 'rate'
    assert meanings(METRICS, SLICES).count("{") == 0


def test_nothing_and_coverage_are_told_in_words():
    found = metrics()
    said = words(slices(found, by_model(found, LEGEND), ["ndcg@10"], LEGEND))
    assert "judged" not in said
    assert (
        "No model finds tail items (NDCG@10 at most .0003)." in said and "warm items (" not in said
    )
    assert "in anybody’s list of 10: student 50.0 %, distilled 1.1 %." in said
    judged = {"targets": 6866, "targets/warm": 5500, "targets/cold": 1366}
    found["dataset"] = {"judged": {"test": judged}}
    said = words(slices(found, by_model(found, LEGEND), ["ndcg@10"], LEGEND))
    assert "6,866 test interactions are judged: 5,500 of warm items, 1,366 of cold items." in said


def test_costs_of_the_opening_are_those_of_metrics_json():
    found = metrics()
    assert plain(found, LEGEND) == "The parameters of the distilled student take 3.93 MB."
    found["models"][0] |= {"users_per_core_second": 5100.0, "users_per_second": 9000.0}
    found["models"][1] |= {"users_per_core_second": 5300.0}
    assert plain(found, LEGEND).endswith("one core makes the lists of 5.2 thousand users a second.")
    found["models"][0] |= {"new_item_seconds": 0.00021, "new_user_seconds": 0.00004}
    assert plain(found, LEGEND).endswith(
        "A new item costs 210 µs, by the words of its text, and a new user costs 40 µs, by what"
        " they chose; nothing is trained for that."
    )
    found["dataset"] = {"items": 9, "items_without_text": 9}  # no text to read
    assert plain(found, LEGEND).endswith(
        "A new user costs 40 µs, by what they chose; nothing is trained for that."
    )
