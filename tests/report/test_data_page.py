"""The page about the data shows what report/data.json holds, and nothing of it is run."""

import json

import pytest

from helpers import toy
from kd_jax.core.errors import InputError
from kd_jax.data.statistics import statistics
from kd_jax.experiment import roles
from kd_jax.report.data_page import render

LEGEND = roles.legend()
HOSTILE = "<img src=x onerror=alert(1)> $name ${x}"


def written(folder, **changes):
    page = {"name": HOSTILE, "lines": [f"data: {HOSTILE}"], "warnings": [], "tokens": None}
    page |= statistics(toy.dataset()) | changes
    (folder / "report").mkdir()
    (folder / "report/data.json").write_text(json.dumps(page))
    return folder


def test_texts_of_the_data_are_not_read_as_html(tmp_path):
    page = render(written(tmp_path), LEGEND)
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt; $name ${x}") == 3  # title, kicker, line
    assert "src=" not in page.replace("src=x", "") and "http" not in page.replace(
        "http://www.w3.org", ""
    )


def test_each_chart_is_drawn_where_there_is_something_to_draw(tmp_path):
    times = {"edges": [1.6e9, 1.61e9, 1.62e9], "splits": {"train": [3, 0], "test": [0, 4]}}
    tokens = {"from": [1, 2], "width": 1, "count": [3, 1], "median": 1.0, "most": 2, "full": 1}
    page = render(written(tmp_path, time=times | {"cuts": [1.61e9]}, tokens=tokens), LEGEND)
    assert page.count("<figure>") == 4
    assert "cut after 2021-01-07 06:13 (UTC)" in page
    assert "train 3, test 4" in page
    assert "1 reach the limit of 2" in page


def test_times_that_are_no_dates_have_no_chart(tmp_path):
    times = {"edges": [1e30, 2e30], "splits": {"train": [3]}, "cuts": []}
    assert render(written(tmp_path, time=times), LEGEND).count("<figure>") == 2


@pytest.mark.parametrize("content", (None, "{", "{}", '{"history": 3}', "[]"))
def test_a_missing_or_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "report").mkdir()
    if content is not None:
        (tmp_path / "report/data.json").write_text(content)
    with pytest.raises(InputError, match="run the stage 'data' again"):
        render(tmp_path, LEGEND)


@pytest.mark.parametrize("seconds", (0.5, 90, 7e3, 2.5e5, 4e6, 9e7, 3e9))
def test_logs_of_any_length_have_dates_on_their_axis(tmp_path, seconds):
    edges = [1e9, 1e9 + seconds / 2, 1e9 + seconds]
    times = {"edges": edges, "splits": {"train": [3, 2]}, "cuts": []}
    assert render(written(tmp_path, time=times), LEGEND).count("<figure>") == 3
