"""The page of several runs, the plain words, and the lists of users."""

from __future__ import annotations

import io
import json
import re
from html import unescape

import pytest
from rich.console import Console

from helpers.browser import browser, needs_browser
from helpers.toy import refused
from kd_jax.experiment import roles
from kd_jax.experiment.examples import _agreement
from kd_jax.report import __main__ as command
from kd_jax.report import page, runs
from kd_jax.report.console import console_table
from kd_jax.report.examples import FILE, examples
from kd_jax.report.headline import claim, headline
from kd_jax.report.plain import plain
from kd_jax.report.summary import by_model, decimals, mean_std

LEGEND = roles.legend()
HOSTILE = '<img src=x onerror="alert(1)">'
SHARES = {"popularity": 0.204, "teacher": 0.262, "student": 0.234, "distilled": 0.2716}


def metrics(shift=0.0, name="Films"):
    models = [
        {
            "name": model,
            "seed": None if model == "popularity" else 0,
            "bytes": 90e6 if model == "teacher" else 3.93e6,
            "users_per_second": 8730.0,
            "test": {"ndcg@10": share / 3 + shift, "hit_rate@10": share, "hit_rate@20": 0.4},
        }
        for model, share in SHARES.items()
    ]
    gain = {"relative": 0.2, "ci95": [0.1, 0.3], "student": 0.078, "distilled": 0.09}
    gain["transfer"] = {
        "ratio": 1.3429,
        "ci95": [1.0, 1.7],
        "lead": 0.0093,
        "lead_ci95": [0.008, 0.01],
    }
    return {
        "task": "rank",
        "models": models,
        "gain": {"ndcg@10": gain},
        "dataset": {"name": name, "users": 4692, "judged": {"test": {"users": 2189}}},
    }


def workdir(path, found, **files):
    (path / "report").mkdir(parents=True)
    (path / "report/metrics.json").write_text(json.dumps(found))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def words_of(text):
    return " ".join(unescape(re.sub("<[^>]*>", " ", text)).replace("\xa0", " ").split())


def test_plain_words_have_no_name_of_a_metric_and_the_numbers_of_metrics_json():
    said = plain(metrics(), LEGEND)
    assert said == (
        "27 of 100 users find something that they chose later among the first ten of the distilled"
        " student (2,189 of 4,692 users were judged). It is 23 with the same student trained on its"
        " own, 26 with the teacher and 20 with the popularity baseline. The parameters"
        " of the distilled student take 3.93 MB (the teacher’s: 90 MB), and this machine ranked"
        " 8.73 thousand users a second."
    )
    with_knn = metrics()
    with_knn["models"] += [
        {"name": name, "seed": None, "test": {"hit_rate@10": share}}
        for name, share in (("item_knn", 0.221), ("ease", 0.219))
    ]
    assert "and 22 with the item-kNN baseline. The parameters of" in plain(with_knn, LEGEND)
    close = metrics()  # whole numbers would be the same
    close["models"] += [{"name": "item_knn", "seed": None, "test": {"hit_rate@10": 0.2312}}]
    assert "and 23.1 with the item-kNN baseline. The parameters of" in plain(close, LEGEND)
    few = metrics()
    few["models"][-1]["test"]["hit_rate@10"] = 0.0312
    assert plain(few, LEGEND).startswith("3.1 of 100 users")
    assert plain({"models": []}, LEGEND) == ""


def test_terminal_report_and_metrics_agree(tmp_path):
    found = metrics()
    shown = words_of(page.render(workdir(tmp_path, found), LEGEND))
    console = Console(file=io.StringIO(), width=160)
    console.print(console_table(found, LEGEND))
    printed = console.file.getvalue()
    assert headline(found, LEGEND) == " ".join(claim(found, LEGEND))
    assert (
        "134.3 % of the teacher’s lead over the plain student (transfer ratio, 95 % CI 100.0 % to"
        " 170.0 %)" in headline(found, LEGEND)
    )
    assert shown.count("134.3 %") == 3  # the headline, a tile and the table
    assert "100 % where the student is as good as its teacher" in shown
    for sentence in (*claim(found, LEGEND), plain(found, LEGEND)):
        assert words_of(sentence) in shown
    for name, entries in by_model(found, LEGEND).items():
        value = decimals(mean_std(entries, "test", "ndcg@10")[0])
        assert value in shown and value in printed, name


LISTS = {
    "reference": "teacher",
    "agreement": {"student": {"1": 0.4, "50": 0.656}, "distilled": {"1": 0.8, "50": 0.81}},
    "agreement_users": 1131,
    "users": [
        {
            "user": "7",
            "history": ["Old", HOSTILE],
            "earlier": 3,
            "chosen": ["Hit", *(f"Later {n}" for n in range(9))],
            "lists": {"popularity": ["Common"], "distilled": ["Hit", "Miss"]},
        }
    ],
}


def test_lists_stand_side_by_side_and_hits_are_marked(tmp_path):
    folder = workdir(tmp_path, metrics())
    assert examples(folder, LEGEND) == ""
    (folder / "report" / FILE).write_text(json.dumps(LISTS))
    shown = examples(folder, LEGEND)
    assert "<b>Hit <small>chosen</small></b>" in shown and "<b>Miss" not in shown
    assert "<img" not in shown and HOSTILE in unescape(shown)
    said = words_of(shown)
    assert "and 3 earlier" in said and "and 2 more" in said
    assert "student 66 % of the 50 best; distilled 81 % of the 50 best" in said
    assert shown in page.render(folder, LEGEND)


@pytest.mark.parametrize("content", ["[]", "{}", '{"users": [{}], "agreement": {}}'])
def test_damaged_lists_are_refused(tmp_path, content):
    folder = workdir(tmp_path, metrics())
    (folder / "report" / FILE).write_text(content)
    refused(lambda: examples(folder, LEGEND), FILE, "run the stage 'report' again")


def test_agreement_is_the_share_in_common():
    import numpy as np

    one, other = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 2, 9], [4, 7, 8]])
    assert _agreement(one, other, 3) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert _agreement(one, other, 1) == 0.5


def test_several_runs_are_one_page(tmp_path, capsys):
    config = {
        "student": {"name": "sasrec", "optimizer": {}},
        "distill": {"terms": {"soft": {"loss": "rrd"}}},
    }
    one = workdir(tmp_path / "a", metrics(), config=config)
    two = workdir(tmp_path / "b", metrics(0.01, HOSTILE))
    out = tmp_path / "page/runs.html"
    assert command.main([str(one), str(two), f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    shown, said = out.read_text(), words_of(out.read_text())
    for value in (0.2716 / 3, 0.2716 / 3 + 0.01):
        assert decimals(value) in said
    assert "sasrec" in said and "rrd" in said and "+20.0 %" in said
    assert "<img" not in shown and HOSTILE in unescape(shown)


def test_runs_with_the_same_name_are_told_apart(tmp_path):
    one, two = (workdir(tmp_path / name / "run", metrics()) for name in "ab")
    runs.write([one, two], LEGEND, tmp_path / "runs.html")
    said = words_of((tmp_path / "runs.html").read_text())
    assert "a/run" in said and "b/run" in said
    refused(lambda: runs.write([one, one], LEGEND, tmp_path / "x.html"), "given twice")


def test_other_libraries_have_rows_where_they_were_measured(tmp_path):
    row = {"settings": "64 factors", "ndcg": 0.0712, "hr": 0.13, "fit_s": 3.0, "users_per_s": 9e3}
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"contestants": {"implicit": row, "other": {"failed": "why"}}}))
    folder = workdir(tmp_path / "a", metrics())
    runs.write([folder], LEGEND, tmp_path / "runs.html", peers)
    said = words_of((tmp_path / "runs.html").read_text())
    assert "implicit 64 factors .0712 .1300 3 s 9,000" in said and "why" not in said
    peers.write_text("[]")
    refused(lambda: runs.write([folder], LEGEND, tmp_path / "x.html", peers), "has no contestants")


def test_what_is_missing_is_one_line(tmp_path, capsys):
    one = workdir(tmp_path / "a", metrics())
    assert command.main([str(one), str(tmp_path / "none"), f"--out={tmp_path / 'x.html'}"]) == 2
    assert "metrics.json is missing; run the 'evaluate' stage first" in capsys.readouterr().err
    assert command.main([str(one), str(one)]) == 2
    assert "--out=FILE" in capsys.readouterr().err


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_pages_without_a_problem(tmp_path):
    folder = workdir(tmp_path / "a", metrics(), config={"student": {"name": "mf"}})
    (folder / "report" / FILE).write_text(json.dumps(LISTS))
    other = workdir(tmp_path / "b", metrics())
    files = [page.write(folder, LEGEND)]
    files.append(runs.write([folder, other], LEGEND, tmp_path / "r.html"))
    with browser(tmp_path / "profile") as tab:
        for file in files:
            for width in (400, 1400):
                for dark in (False, True):
                    tab.open(file.as_uri(), width, dark)
                    tab.run("document.querySelectorAll('details').forEach(o => o.open = true)")
                    assert tab.overflow() <= 0
                    assert tab.violations() == []
        assert tab.problems == []
        assert {one for one in tab.requests if not one.startswith(("file:", "about:"))} == set()
