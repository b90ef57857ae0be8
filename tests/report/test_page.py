"""The report: the page and the table show what metrics.json holds.

Missing, unknown and malformed values are included.
"""

from __future__ import annotations

import io
import json
import os
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_jax.core.errors import InputError
from kd_jax.evaluation.significance import Comparison
from kd_jax.experiment import roles
from kd_jax.report import html, page
from kd_jax.report.console import console_table
from kd_jax.report.headline import best_simple, headline
from kd_jax.report.legend import Appearance, Legend
from kd_jax.report.new_items import new_items_text
from kd_jax.report.new_users import new_users_table
from kd_jax.report.page import render, write
from kd_jax.report.plain import plain
from kd_jax.report.served import served
from kd_jax.report.summary import by_model, mean_std, shown_metrics
from kd_jax.report.tradeoff import Box, _free_place

LEGEND = roles.legend()

HOSTILE = "<script>alert(1)</script>\"'&$\\alpha$ ${x}"
NDCG = {
    "popularity": [0.0561],
    "control_teacher": [0.0622, 0.0628],
    "teacher": [0.0731, 0.0741],
    "student": [0.0591, 0.0603],
    "control": [0.0650, 0.0652],
    "distilled": [0.0734, 0.0738],
}
FACTORS = {"warm": 1.25, "cold": 0.11, "head": 1.7, "tail": 0.4, "short": 0.9, "cold_only": 1.6}
GAIN = {
    "student": 0.0597,
    "control": 0.0651,
    "distilled": 0.0736,
    "relative": 0.2328,
    "ci95": [0.181, 0.276],
    "p_value": 0.0021,
    "lm_share": {"relative": 0.1306, "ci95": [0.0881, 0.1714]},
}


def rank_metrics() -> dict[str, Any]:
    models = []
    for i, (name, values) in enumerate(NDCG.items()):
        for seed, value in enumerate(values):
            slices = {
                part: {"ndcg@10": value * f, "recall@20": value * f * 2}
                for part, f in FACTORS.items()
            }
            models.append(
                {
                    "name": name,
                    "seed": seed,
                    "params": 1234567 * i,
                    "bytes": 4938268 * i,
                    "users_per_second": 51234.0 / (i + 1),
                    "train_seconds": 83.0 * i,
                    "test": {"ndcg@10": value, "recall@20": value * 2, "novelty@10": 9.125},
                    "valid": {"ndcg@10": value},
                    "slices": slices,
                }
            )
            if name == "distilled":
                known = {"1": value / 4, "3": value / 2, "all": value * 0.9, "known": value}
                models[-1]["new_users"] = {"ndcg@10": known}
                models[-1]["new_items"] = {"ndcg@10": {"trained": 0.0812, "text": 0.0735}}
                models[-1]["served"] = {
                    "test": {"ndcg@10": value * 1.5},
                    "slices": {"cold": {"ndcg@10": value * 3.0, "recall@20": 0.125}},
                    "new_item_bias": 0.75,
                }
    return {
        "schema": 1,
        "task": "rank",
        "models": models,
        "gain": {"ndcg@10": GAIN, "ndcg@10/warm": GAIN},
        "dataset": {
            "name": "Films",
            "users": 8204,
            "items": 10506,
            "interactions": 89112,
            "split": "temporal",
        },
        "serving": [
            {
                "name": "reading text",
                "users_per_second": 3.21,
                "new_item_seconds": 0.0125,
                "note": "slow",
            }
        ],
    }


def rate_metrics() -> dict[str, Any]:
    test = {"auc": 0.8123, "log_loss": 0.4321, "rmse": 1.0456, "accuracy": 0.7654}
    models = [
        {"name": name, "seed": 0, "test": {key: value + shift for key, value in test.items()}}
        for name, shift in (("student", 0.0), ("distilled", 0.0111))
    ]
    return {
        "schema": 1,
        "task": "rate",
        "models": models,
        "dataset": {"name": "Stars"},
        "gain": {
            "auc": {
                "student": 0.8123,
                "distilled": 0.8234,
                "relative": 0.0137,
                "ci95": [0.001, 0.02],
            }
        },
    }


def make(workdir: Path, metrics: Any, events: str = "", **files: Any) -> Path:
    (workdir / "report").mkdir(parents=True)
    (workdir / "report/metrics.json").write_text(json.dumps(metrics))
    if events:
        (workdir / "metrics.jsonl").write_text(events)
    for name, content in files.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))
    return workdir


def learning_log() -> str:
    lines = []
    for seed in (0, 1):
        for step in range(0, 1000, 2):
            losses = {
                "loss": 9 - step / 500 + step // 2 % 2,
                "terms": {"soft": 2.0, "soft_lists": 0.5},
                "grad_norm": 1.0,
                "peak_bytes": 1e9,
            }
            lines.append(
                json.dumps(
                    {"time": 1.0, "model": "distilled", "seed": seed, "step": step, **losses}
                )
            )
        lines.append(
            json.dumps(
                {"model": "distilled", "seed": seed, "step": 999, "valid": {"ndcg@10": 0.0777}}
            )
        )
    return "\n".join(lines) + "\n"


class Page(HTMLParser):
    """A parser that checks the nesting of tags.

    It collects text, tables, figures and everything that a browser would load.
    """

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.ids: list[str | None] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "b":
            self.bold.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def full(tmp_path: Path) -> Page:
    config = {"data": {"source": "movietweetings"}}
    workdir = make(
        tmp_path / "run", rank_metrics(), learning_log(), config=config, manifest={"jax": "0.10.2"}
    )
    path = write(workdir, LEGEND)
    assert path == workdir / "report" / "index.html"
    return Page(path.read_text(encoding="utf-8"))


def test_results_hold_every_model_as_measured(full: Page) -> None:
    for name, values in NDCG.items():
        row = full.row(name.replace("_", " "))
        mean = f"{statistics.fmean(values):.4f}"[1:]
        spread = f"±{statistics.stdev(values):.4f}".replace("0.", ".") if len(values) > 1 else ""
        assert row[1] == mean + spread
        assert row[2].startswith(f"{statistics.fmean(values) * 1.25:.4f}"[1:])
        assert row[4].startswith(
            f"{statistics.fmean(values) * 1.6:.4f}"[1:]
        )  # cold among cold only
        assert row[5].startswith(f"{statistics.fmean(values) * 2:.4f}"[1:])
    assert full.row("distilled")[-4:] == ["6,172,835", "24.7 MB", "8,539", "6.9 min"]
    assert full.row("popularity")[-1] == "–"  # it was not trained
    assert [row[0] for row in full.rows[2:8]] == [name.replace("_", " ") for name in NDCG]


def test_gains_serving_dataset_config_and_manifest_are_shown(full: Page) -> None:
    interval, share = "+18.1 % to +27.6 %", "+8.8 % to +17.1 %"
    for metric in ("NDCG@10", "NDCG@10, warm items"):
        compared = [row[1:5] for row in full.rows if row[0] == metric and len(row) == 6]
        assert compared == [
            ["student", ".0597", ".0736", f"+23.3 %{interval}"],
            ["control", ".0651", ".0736", f"+13.1 %{share}"],
        ]
    assert [row[5] for row in full.rows if row[:2] == ["NDCG@10", "student"]] == [".0021"]
    assert full.row("reading text") == ["reading text", "3.21", "12.5 ms", "–", "slow"]
    for text in (
        "8,204",
        "10,506",
        "89,112",
        "temporal",
        '"source": "movietweetings"',
        '"jax": "0.10.2"',
        "9.1250",
    ):
        assert text in full.text


def test_headline_of_the_page_is_the_headline_function(full: Page) -> None:
    for sentence in re.split(r"(?<=\.) (?=[A-Z])", headline(rank_metrics(), LEGEND)):
        assert sentence in full.text.replace("\xa0", " ")


def test_page_loads_nothing_and_its_ids_are_unique(full: Page) -> None:
    for tag, attrs in full.tags:
        assert tag not in ("script", "link", "img", "iframe", "image", "object", "embed")
        for key in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert (attrs.get(key) or "#").startswith("#") or attrs[key] == "data.html"
    assert len(full.ids) == len(set(full.ids))
    references = [a["href"] for _, a in full.tags if a.get("href", "data.html") != "data.html"]
    references += [
        f"#{i}"
        for _, a in full.tags
        if a.get("aria-labelledby")
        for i in str(a["aria-labelledby"]).split()
    ]
    assert references and {str(reference)[1:] for reference in references} <= set(full.ids)


def test_styles_load_nothing_and_every_variable_has_a_light_and_a_dark_value(
    tmp_path: Path,
) -> None:
    html = render(make(tmp_path / "run", rank_metrics(), learning_log()), LEGEND)
    assert "http" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    light, dark = re.findall(r":root \{(.*?)\}", html, re.S)
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert {"ink", "distilled", "student"} <= used
    for palette in (light, dark):
        assert used <= set(re.findall(r"--(\w+):", palette))
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert (
        re.findall(r"#[0-9a-f]{6}\b", svg) == []
    )  # a fixed colour would vanish on one of the two backgrounds


def test_charts_and_tables_are_labelled(full: Page) -> None:
    assert full.count("svg") == full.count("desc") == full.count("figcaption") == 3 + 3 + 1 + 2 + 1
    assert full.count("caption") == full.count("table") == full.count("thead")
    assert all(a.get("scope") in ("row", "col", "colgroup") for tag, a in full.tags if tag == "th")
    assert (
        "At the last step: loss 8.0040; soft 2.0000; soft lists .5000; valid ndcg@10 .0777"
        in full.text
    )


def test_learning_curves_survive_kills_and_stay_small(tmp_path: Path) -> None:
    log = learning_log()
    cut = '{"model": "distilled", "seed": 0, "st\n[1, 2]\nnull\n{"stage": "data"}\n'
    again = "".join(
        f'{{"model": "distilled", "seed": {s}, "step": 998, "loss": 3.25,'
        ' "terms": {"soft": NaN}}\n'
        for s in (0, 1)
    )
    html = render(make(tmp_path / "run", {}, log + cut + again), LEGEND)
    assert (
        "loss 3.2500; soft 2.0000" in html
    )  # the step logged again replaces the first; NaN is no point
    path = max(re.findall(r'<path d="([^"]*)"', html), key=len)
    assert 100 < path.count("L") <= 250  # of 500 logged


def test_rate_task_shows_its_own_metrics_and_no_spread(tmp_path: Path) -> None:
    page = Page(render(make(tmp_path / "run", rate_metrics()), LEGEND))
    assert page.rows[0][:5] == ["Model", "AUC", "Log loss", "Accuracy", "RMSE"]
    assert page.row("distilled")[1:5] == [".8234", ".4432", ".7765", "1.0567"]
    assert "±" not in "".join("".join(row) for row in page.rows)
    assert "Distillation improves AUC by +1.4 %" in page.text.replace("\xa0", " ")
    assert page.bold[-4:] == [
        ".4321",
        "1.0456",
        ".8234",
        ".7765",
    ]  # lower is better for log loss and RMSE


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"models": []},
        {"models": [{"name": "student"}]},
        {"models": None, "gain": None, "dataset": None},
        {
            "models": [
                {
                    "name": "popularity",
                    "seed": 0,
                    "params": 0,
                    "users_per_second": None,
                    "test": {"ndcg@10": 0.0},
                }
            ]
        },
        {
            "models": [
                {
                    "name": "mine",
                    "seed": 0,
                    "params": 10,
                    "test": {"ndcg@10": float("nan"), "recall@20": 0.5},
                }
            ]
        },
        {
            "models": [{"name": "student", "test": {"hit_rate@5": 0.5}, "slices": None}],
            "gain": {"ndcg@10": {}},
        },
    ],
)
def test_missing_values_are_left_out(tmp_path: Path, metrics: dict[str, Any]) -> None:
    page = Page(render(make(tmp_path / "run", metrics), LEGEND))
    assert "Nothing to compare yet" in page.text
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    Console(file=io.StringIO()).print(console_table(metrics, LEGEND))


def test_unknown_numbers_are_a_dash(tmp_path: Path) -> None:
    models = [
        {"name": "student", "params": None, "test": {"ndcg@10": 0.5, "recall@20": float("nan")}},
        {"name": "distilled", "params": 7, "test": {"ndcg@10": float("inf"), "recall@20": "0.3"}},
        {"name": "teacher", "params": 9, "test": {"ndcg@10": None, "recall@20": 0.25}},
    ]
    page = Page(render(make(tmp_path / "run", {"models": models}), LEGEND))
    assert page.row("student")[1:4] == [".5000", "–", "–"]
    assert page.row("distilled")[1:4] == ["–", "–", "7"]


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    metrics = rank_metrics()
    metrics["dataset"] |= {"name": HOSTILE, "split": HOSTILE}
    metrics["serving"] = [{"name": HOSTILE, "note": HOSTILE}]
    metrics["models"].append({"name": "long_name_" * 20, "params": 5, "test": {"ndcg@10": 0.06}})
    metrics["models"].append(
        {
            "name": HOSTILE,
            "params": 5,
            "test": {"ndcg@10": 0.07, HOSTILE: 0.5},
            "slices": {"warm": {"ndcg@10": 0.07}},
        }
    )
    events = json.dumps({"model": HOSTILE, "step": 1, "loss": 1.0, HOSTILE: 2.0}) + "\n"
    page = Page(render(make(tmp_path / "run", metrics, events, config={HOSTILE: HOSTILE}), LEGEND))
    assert page.count("script") == 0
    assert page.text.count("<script>alert(1)</script>") > 8
    assert page.row(HOSTILE)[1] == ".0700"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.json is missing"),
        ("{", "not valid JSON"),
        ("[1]", "holds a list"),
    ],
)
def test_broken_input_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    (tmp_path / "report").mkdir()
    if content is not None:
        (tmp_path / "report/metrics.json").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        write(tmp_path, LEGEND)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "report/index.html").exists()


def change(relative: float, ci95: Any, /, **share: Any) -> dict[str, Any]:
    return {"gain": {"ndcg@10": {"relative": relative, "ci95": ci95, "lm_share": share}}}


@pytest.mark.parametrize(
    ("metrics", "phrases"),
    [
        (
            change(0.2, [0.1, 0.3], relative=0.1, ci95=[0.05, 0.15]),
            [
                "improves NDCG@10 by +20.0 %",
                "(95 % CI +10.0 % to +30.0 %)",
                (
                    "own share, over a control distilled from an ID-only teacher, is +10.0 % (95 %"
                    " CI +5.0 % to +15.0 %)"
                ),
            ],
        ),
        (
            change(0.02, [-0.01, 0.05], relative=0.01, ci95=[-0.02, 0.04]),
            [
                "no reliable difference to NDCG@10: +2.0 %",
                "includes zero (95 % CI −1.0 % to +5.0 %)",
                "is not significantly different from zero: +1.0 % (95 % CI −2.0 % to +4.0 %)",
            ],
        ),
        (
            change(-0.1, [-0.2, -0.05], relative=-0.03, ci95=[-0.05, -0.01]),
            [
                "makes NDCG@10 worse: −10.0 %",
                "(95 % CI −20.0 % to −5.0 %)",
                "no share in it",
                "−3.0 %",
            ],
        ),
        (change(0.2, None), ["changes NDCG@10 by +20.0 %", "may be chance", "Without a control"]),
        (
            change(0.2, [None, float("nan")], relative=0.1),
            ["may be chance", "is +10.0 %; no confidence interval"],
        ),
        (
            {"gain": {"log_loss": {"relative": -0.1, "ci95": [-0.2, -0.05]}}},
            ["lowers log loss by 10.0 %"],
        ),
        (
            {"gain": {"log_loss": {"relative": 0.1, "ci95": [0.05, 0.2]}}},
            ["makes log loss worse: +10.0 %"],
        ),
        (
            {"gain": {"ndcg@10/warm": GAIN, "ndcg@10": {"relative": 0.5, "ci95": [0.4, 0.6]}}},
            ["NDCG@10 by +50.0 %"],
        ),
        ({}, ["Nothing to compare yet"]),
    ],
)
def test_headline_follows_the_interval(metrics: dict[str, Any], phrases: list[str]) -> None:
    for phrase in phrases:
        assert phrase in headline(metrics, LEGEND)
    assert ("improves" in headline(metrics, LEGEND)) == (
        phrases[0].startswith(("improves", "NDCG@10 by"))
    )


@pytest.mark.parametrize("without", [0, 8, 9])
def test_a_share_of_the_language_model_is_missed_where_items_have_texts(without: int) -> None:
    metrics = change(0.2, [0.1, 0.3]) | {"dataset": {"items": 9, "items_without_text": without}}
    assert ("Without a control" in headline(metrics, LEGEND)) == (without < 9)


def against(name: str, base: float, found: float, change: Any, metric: str = "ndcg@10") -> Any:
    """Means of a simple baseline and of the distilled student, and the change between them."""
    models = [
        {"name": name, "test": {metric: base}},
        {"name": "distilled", "test": {metric: found}},
    ]
    field = f"over_{name}"
    gain = {"student": found / 1.2, "distilled": found, "relative": 0.2, "ci95": [0.1, 0.3]}
    return {"models": models, "gain": {metric: gain | ({field: change} if change else {})}}


@pytest.mark.parametrize(
    ("metrics", "first", "phrases"),
    [
        (
            against("popularity", 0.05, 0.06, {"relative": 0.2, "ci95": [0.1, 0.3]}),
            "Distillation improves",
            [
                "Over the popularity baseline, the same for every user, the distilled student is"
                " at +20.0 % (95 % CI +10.0 % to +30.0 %)."
            ],
        ),
        (
            against("trending", 0.08, 0.06, {"relative": -0.25, "ci95": [-0.3, -0.2]}),
            "The distilled student is worse than the recent-popularity baseline",
            ["NDCG@10 .0600 against .0800 (95 % CI −30.0 % to −20.0 %)", "Distillation improves"],
        ),
        (
            against("popularity", 0.08, 0.06, None),
            "The distilled student is worse than the popularity baseline",
            [".0600 against .0800 (no confidence interval was computed)"],
        ),
        (
            against("popularity", 0.2644, 0.5688, None, "log_loss"),
            "The distilled student is worse than the popularity baseline",
            ["log loss .5688 against .2644"],
        ),
        (
            against("ease", 0.08, 0.06, {"relative": -0.25, "ci95": [-0.3, -0.2]}),
            "The distilled student is worse than the EASE baseline, which is a linear model of",
            ["NDCG@10 .0600 against .0800 (95 % CI −30.0 % to −20.0 %)"],
        ),
        (
            against("item_knn", 0.05, 0.06, {"relative": 0.2, "ci95": [0.1, 0.3]}),
            "Distillation improves",
            ["Over the item-kNN baseline, a table of similar items, the distilled student is"],
        ),
        (
            against("popularity", 0.059, 0.06, {"relative": 0.017, "ci95": [-0.1, 0.1]}),
            "Distillation improves",
            ["The distilled student does not differ significantly from the popularity"],
        ),
    ],
)
def test_the_headline_names_the_best_simple_baseline(
    metrics: dict[str, Any], first: str, phrases: list[str]
) -> None:
    text = headline(metrics, LEGEND)
    assert text.startswith(first)
    for phrase in phrases:
        assert phrase in text


def test_the_best_simple_baseline_has_a_tile_and_limits_are_told(tmp_path: Path) -> None:
    metrics = rank_metrics()
    change = {"relative": 0.115, "ci95": [0.073, 0.16]}
    metrics["gain"]["ndcg@10"]["over_trending"] = change
    metrics["models"].append({"name": "trending", "seed": None, "test": {"ndcg@10": 0.066}})
    for row in metrics["models"]:
        if row["name"] == "distilled":
            row["test"]["coverage@10"] = 0.011
            row["slices"] |= {"cold": {"ndcg@10": 0.0001}, "tail": {"ndcg@10": 0.07}}
    assert best_simple(metrics, LEGEND, "ndcg@10", metrics["gain"]["ndcg@10"]) == (
        "trending",
        change,
    )
    words = plain(metrics, LEGEND)
    assert (
        "The student finds next to nothing among items that nobody had chosen before, and the lists"
        " of all users together show 1.1 % of the catalogue." in words
    )
    assert "seldom" not in words
    (tmp_path / "report").mkdir()
    (tmp_path / "report/metrics.json").write_text(json.dumps(metrics))
    page = write(tmp_path, LEGEND).read_text()
    assert "<dt>distilled over trending, the best simple baseline</dt><dd>+11.5" in page


@pytest.mark.parametrize(("metric", "plain", "worse"), [("ndcg@10", 0.04, True),
    ("ndcg@10", 0.055, False), ("log_loss", 0.055, True), ("log_loss", 0.04, False)])  # fmt: skip
def test_a_plain_student_below_the_simple_baseline_is_told(
    metric: str, plain: float, worse: bool
) -> None:
    metrics = against("trending", 0.05, 0.06, {"relative": 0.2, "ci95": [0.1, 0.3]}, metric)
    metrics["models"].append({"name": "student", "test": {metric: plain}})
    phrase = "The student trained on its own is behind that baseline:"
    assert (
        f"{phrase} .0{10_000 * plain:.0f} against .0500 (not tested)." in headline(metrics, LEGEND)
    ) == worse
    assert (phrase in headline(metrics, LEGEND)) == worse


def test_without_a_plain_student_the_simple_baseline_is_the_headline() -> None:
    metrics = against("trending", 0.05, 0.06, {"relative": 0.2, "ci95": [0.1, 0.3]})
    metrics["gain"]["ndcg@10"] = {"over_trending": metrics["gain"]["ndcg@10"]["over_trending"]}
    assert headline(metrics, LEGEND) == (
        "Over the recent-popularity baseline (trending), the same for every user, the distilled"
        " student is at +20.0 % (95 % CI +10.0 % to +30.0 %). Without a plain student in this run,"
        " the gain of distillation is not known."
    )


def with_transfer(metric: str, **found: Any) -> dict[str, Any]:
    gain = {"relative": 0.2, "ci95": [0.1, 0.3], "student": 0.5, "distilled": 0.6}
    return {"gain": {metric: gain | {"transfer": found}}}


@pytest.mark.parametrize(
    ("metric", "ratio", "lead", "ends", "phrase"),
    [
        (
            "ndcg@10",
            0.5,
            0.01,
            [0.005, 0.015],
            "50.0 % of the teacher’s lead over the plain student (transfer ratio, 95 % CI",
        ),
        ("ndcg@10", -0.5, 0.01, [0.005, 0.015], "has −50.0 % of the teacher’s lead"),
        ("log_loss", 0.5, -0.01, [-0.015, -0.005], "has 50.0 % of the teacher’s lead"),
        ("ndcg@10", 0.5, -0.01, [-0.02, -0.005], "the teacher is worse than the plain student"),
        ("log_loss", 0.5, 0.01, [0.005, 0.02], "the teacher is worse than the plain student"),
        ("ndcg@10", None, 0.01, [-0.01, 0.03], "the confidence interval of the teacher’s lead"),
    ],
)
def test_a_transfer_ratio_is_told_where_there_is_a_lead(
    tmp_path: Path, metric: str, ratio: float | None, lead: float, ends: Any, phrase: str
) -> None:
    ci95 = [None, None] if ratio is None else [ratio - 0.2, ratio + 0.2]
    metrics = with_transfer(metric, ratio=ratio, ci95=ci95, lead=lead, lead_ci95=ends)
    text = headline(metrics, LEGEND)
    assert phrase in text
    known = "% of the teacher’s lead" in phrase
    assert ("transfer ratio is not computed" in text) == (not known)
    page = Page(render(make(tmp_path / "run", metrics), LEGEND))
    (row,) = [row for row in page.rows if len(row) == 3 and row[0] in ("NDCG@10", "Log loss")]
    assert row[2].startswith("not computed") == (not known)
    tile = "transfer ratio: of the teacher’s lead over the student, what the distilled student has"
    assert (tile in page.text) == known


def test_gains_over_almost_nothing_are_told_as_values() -> None:
    gain = {"student": 0.0004, "distilled": 0.0055, "relative": 12.8877, "ci95": [3.66, None]}
    text = headline({"gain": {"ndcg@10": gain}}, LEGEND)
    assert "improves NDCG@10 from .0004 to .0055" in text
    assert "(95 % CI at least +366.0 %)" in text and "12" not in text


def test_a_simple_baseline_of_almost_nothing_is_told_as_a_value() -> None:
    metrics = against("trending", 0.0015, 0.1378, {"relative": 90.0, "ci95": [40.6, 421.4]})
    assert "the distilled student is at .1378 against .0015 (95 % CI" in headline(metrics, LEGEND)


def test_a_change_that_rounds_to_zero_has_no_sign() -> None:
    text = headline(change(0.2, [0.1, 0.3], relative=-8e-5, ci95=[-1e-4, -4e-5]), LEGEND)
    assert "is worse, 0.0 % (95 % CI 0.0 % to 0.0 %)" in text


def test_a_further_model_is_compared_drawn_and_described_as_its_legend_has_it(
    tmp_path: Path,
) -> None:
    wide = Appearance("#123456", "#abcdef", "v", "is twice as wide")
    legend = Legend(
        {**LEGEND.models, "wide": wide},
        (*LEGEND.comparisons, Comparison("wide", {"student": "wide_over_student"})),
        LEGEND.large,
        LEGEND.simple,
    )
    metrics = rank_metrics()
    change = {"relative": 0.4321, "ci95": [0.4, 0.45], "p_value": 0.01}
    metrics["gain"]["ndcg@10"] = GAIN | {"wide": 0.0855, "wide_over_student": change}
    metrics["models"].append({"name": "wide", "params": 5, "test": {"ndcg@10": 0.0855}})
    html = render(make(tmp_path / "run", metrics, learning_log()), legend)
    page = Page(html)
    assert "wide is twice as wide" in page.text
    assert "NDCG@10 wide over student: +43.2 %" in page.text
    assert [*page.rows[2:9]][-1][0] == "wide"
    row = ["NDCG@10", "student", ".0597", ".0855", "+43.2 %+40.0 % to +45.0 %", ".0100"]
    assert row in page.rows
    assert "--wide: #123456" in html and "--wide: #abcdef" in html and "var(--wide)" in html
    assert headline(metrics, legend) == headline(rank_metrics(), LEGEND)


def test_a_name_keeps_clear_of_whiskers_and_is_nearest_to_its_own_marker() -> None:
    own, other = (0.4, 0.3), (0.6, 0.35)
    whisker = [Box(0.59, 0.61, 0.2 + 0.05 * n) for n in range(8)]
    for taken in ([], whisker):
        box, side = _free_place(own, 6, taken, [other])
        assert not any(box.meets(part) for part in taken)
        assert box.distance(own) < box.distance(other)
        assert (box.left > own[0]) == (side > 0)


@pytest.mark.parametrize("width", [80, 120])
def test_console_table_fits(width: int) -> None:
    metrics = rank_metrics()
    for model in metrics["models"]:
        model |= {"params": 123_456_789, "bytes": 987_654_321, "users_per_second": 123_456.7}
    out = io.StringIO()
    Console(file=out, width=width).print(console_table(metrics, LEGEND))
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert "…" not in out.getvalue()
    rows = [line.split() for line in out.getvalue().splitlines() if line.strip()][3:]
    assert [row[0] for row in rows] == ["popularity", "teacher", "student", "control", "distilled"]
    assert rows[-1][1:] == [
        ".0736",
        ".0920",
        ".0081",
        ".1472",
        ".1840",
        ".0162",
        "123M",
        "988",
        "MB",
        "123k",
    ]


def test_console_table_of_the_rate_task() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(console_table(rate_metrics(), LEGEND))
    assert "AUC" in out.getvalue() and "Log loss" in out.getvalue() and "…" not in out.getvalue()
    assert ["student", ".8123", ".4321", ".7654", "1.0456", "–", "–", "–"] in [
        line.split() for line in out.getvalue().splitlines()
    ]


def test_nothing_is_written_outside_the_workdir_when_matplotlib_starts_here(tmp_path: Path) -> None:
    workdir, home = make(tmp_path / "run", rank_metrics()), tmp_path / "home"
    home.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MPL", "XDG"))
    }
    code = (
        "import sys; from pathlib import Path; from kd_jax.experiment import roles;"
        " from kd_jax.report import page; page.write(Path(sys.argv[1]), roles.legend())"
    )
    root = Path(page.__file__).parents[2]
    command = [sys.executable, "-c", code, str(workdir)]
    subprocess.run(command, check=True, cwd=root, env=environment | {"HOME": str(home)})
    assert list(home.rglob("*")) == []
    assert (workdir / "report/index.html").stat().st_size > 10_000


def test_new_items_are_one_sentence():
    metrics = rank_metrics()
    text = new_items_text(by_model(metrics, LEGEND))
    assert "NDCG@10" in text and ".0735 with vectors and biases from their texts" in text
    assert ".0812 with those that training gave" in text and text.count("<p>") == 1
    for row in metrics["models"]:
        row.pop("new_items", None)
    assert new_items_text(by_model(metrics, LEGEND)) == ""
    metrics["models"][0]["new_items"] = {}  # a student without a cold target
    assert new_items_text(by_model(metrics, LEGEND)) == ""


def test_the_exported_student_as_served_stands_beside_it_as_trained():
    metrics = rank_metrics()
    models = by_model(metrics, LEGEND)
    table = served(models, ["ndcg@10", "recall@20"])
    rows = re.findall(r'rowheader">(.*?)</th>', table)
    # what both have
    assert rows == ["NDCG@10", "NDCG@10, cold items", "Recall@20, cold items"]
    trained = mean_std(models["distilled"], "test", "ndcg@10")
    assert html.spread(*trained) in table
    assert html.spread(trained[0] * 1.5, trained[1] * 1.5) in table
    assert "biases of new items: 0.75." in table
    words = plain(metrics, LEGEND)
    assert "As it is served, with the newest clicks of known users, NDCG@10 is" in words
    assert "12.5 % of what users choose among new items is in their first twenty" in words
    for row in metrics["models"]:
        row.pop("served", None)
    assert served(by_model(metrics, LEGEND), ["ndcg@10"]) == ""
    assert "As it is served" not in plain(metrics, LEGEND)


def test_one_model_alone_is_shown_by_the_metric_that_selects():
    test = {"ndcg@10": 0.1, "recall@20": 0.2, "recall@50": 0.3}
    alone = {"task": "rank", "models": [{"name": "student", "test": test}], "gain": {}}
    assert shown_metrics(alone) == ["ndcg@10", "recall@20"]
    assert shown_metrics(alone | {"select": "recall@50"}) == ["recall@50", "recall@20"]


def test_a_run_on_a_part_of_the_users_is_a_trial():
    metrics = rank_metrics()
    assert "A trial" not in plain(metrics, LEGEND)
    metrics["dataset"] |= {"users": 100, "beyond_max_users": 59_123}
    words = plain(metrics, LEGEND)
    assert "data.max_users keeps 100 users, and 59,123 interactions of others" in words


def test_new_users_stand_beside_the_lists_that_are_the_same_for_everybody():
    metrics = rank_metrics()
    metrics["models"][0]["seed"] = None  # popularity: nothing was trained
    table = new_users_table(by_model(metrics, LEGEND), LEGEND)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)
    text = [re.sub(r"<[^>]*>", " ", row).lower() for row in rows]
    assert all(title in text[0] for title in ("1 item", "3 items", "all items", "known user"))
    (popularity,) = [row for row in text if "popularity" in row]
    (distilled,) = [row for row in text if "distilled" in row]
    assert popularity.count(".0561") == 4
    assert ".0184" in distilled and ".0368" in distilled and ".0662" in distilled
    assert not [row for row in text if "teacher" in row]  # it was not measured as new users
    for row in metrics["models"]:
        row.pop("new_users", None)
    assert new_users_table(by_model(metrics, LEGEND), LEGEND) == ""
