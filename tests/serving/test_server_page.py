"""The page of the server: its answers against the runtime, its files, and a real browser."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from benchmarks import page as page_benchmark
from helpers.browser import browser, needs_browser
from helpers.server import client_of, export_of, write, write_compared
from kd_jax.runtime import Runtime, compared
from kd_jax.serving.server import page, state

NAMES = ("student", "distilled")
TOKEN = {"Authorization": "Bearer secret"}
EVIL = '<img src=x onerror="document.title=`hacked`">'


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = write_compared(tmp_path_factory.mktemp("page"), "student", text_map=True)
    with client_of(folder) as client:
        yield client, folder


def runtimes(folder):
    main = Runtime(export_of(text_map=True))
    return {
        "student": compared.load(folder / "export", "student", main.export),
        "distilled": main,
    }


def lists(client, **body):
    answer = client.post("/v1/compare", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_lists_are_those_of_each_model(shared):
    client, folder = shared
    found = lists(client, user=101, history=[1030, 1031], k=7, diversity=0.4)
    assert [one["name"] for one in found["models"]] == list(NAMES)
    for one, runtime in zip(found["models"], runtimes(folder).values(), strict=True):
        want = runtime.recommend(101, history=[1030, 1031], k=7, diversity=0.4)
        assert [(row["rank"], row["item"], row["title"]) for row in one["items"]] == [
            (row.rank, row.item, row.title) for row in want
        ]
        assert one["milliseconds"] > 0 and one["bytes"] == 4000
    assert [one["item"] for one in found["history"]] == [1030, 1031]
    assert [one["item"] for one in found["known"]] == [1003, 1004, 1005]


def test_a_place_elsewhere_is_that_of_the_other_list(shared):
    client, _ = shared
    student, distilled = lists(client, history=[1030], k=40)["models"]
    places = {row["item"]: row["rank"] for row in distilled["items"]}
    assert {row["item"]: row["ranks"]["distilled"] for row in student["items"]} == places
    assert len(places) == 39  # without the one that was chosen


def test_parts_add_up_to_the_score(shared):
    client, folder = shared
    runtime = runtimes(folder)["distilled"]
    history = [1020 + n for n in range(6)]
    for row in lists(client, history=history)["models"][1]["items"]:
        total = math.fsum(part["share"] for part in row["parts"])
        assert total == pytest.approx(row["score"], abs=1e-3)
        want = runtime.explain(row["item"], history=history)
        assert row["parts"][0]["title"] == want[0].title
        assert [part["part"] for part in row["parts"]][:4] == [*["history"] * 3, "others"]


def test_a_disliked_item_counts_no_more_and_is_not_listed(shared):
    client, _ = shared
    plain = lists(client, history=[1030, 1031], k=40)["models"][1]["items"]
    without = lists(client, history=[1030, 1031], disliked=[1031], k=40)["models"][1]["items"]
    alone = lists(client, history=[1030], k=40)["models"][1]["items"]
    listed = [row["item"] for row in without]
    assert 1031 not in listed and plain != without
    assert listed == [row["item"] for row in alone if row["item"] != 1031]


def test_a_text_ranks_where_its_vector_does(shared):
    client, folder = shared
    found = lists(client, history=[1030], text="a red film")["models"]
    for one, runtime in zip(found, runtimes(folder).values(), strict=True):
        grown = runtime.add_items([9], ["New"], texts=["a red film"])
        rows = grown.recommend(history=[1030], k=41)
        (rank,) = [row.rank for row in rows if row.item == 9]
        assert one["text"]["rank"] == rank and one["text"]["of"] == len(rows) == 40
    assert lists(client, history=[1030])["models"][0]["text"] is None


def test_nobody_is_answered_and_nothing_is_stored(shared):
    client, folder = shared
    assert [len(one["items"]) for one in lists(client)["models"]] == [10, 10]
    assert not [path for path in (folder / "serving").iterdir() if path.stat().st_size]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"history": ["nothing"]}, 404),
        ({"user": "nobody"}, 404),
        ({"k": 101}, 400),
        ({"diversity": 2}, 400),
        ({"text": 3}, 400),
        ({"text": "x" * 20_001}, 400),
        ({"disliked": "all"}, 400),
        ({"colour": 1}, 400),
    ],
)
def test_bad_requests_are_refused(shared, body, status):
    answer = shared[0].post("/v1/compare", json=body)
    assert answer.status_code == status and answer.json().keys() == {"error"}


def test_an_added_item_is_unknown_to_the_other_models(tmp_path):
    with client_of(write_compared(tmp_path, "student", text_map=True)) as client:
        item = {"id": "7", "title": "New", "text": "a red film"}
        assert client.post("/v1/items", json=item).status_code == 200
        student, distilled = lists(client, history=[7, 1030], k=10)["models"]
        alone = lists(client, history=[1030], k=10)["models"]
        same = [[row["item"] for row in one["items"]] for one in (student, alone[0])]
        assert same[0] == same[1]
        assert distilled["items"][0]["score"] != alone[1]["items"][0]["score"]
        whole = lists(client, history=[1030], k=40)["models"][1]["items"]
        assert [row["ranks"]["student"] for row in whole if row["item"] == 7] == [None]


def test_an_export_alone_and_a_damaged_neighbour_are_shown_as_one_model(tmp_path, capsys):
    with client_of(write(tmp_path / "alone")) as client:
        (one,) = lists(client)["models"]
        assert one["name"] == "distilled" and len(one["items"]) == 10
    folder = write_compared(tmp_path / "damaged", "student")
    (folder / "export/compare/student.safetensors").write_bytes(b"no")
    with client_of(folder) as client:
        assert [one["name"] for one in lists(client)["models"]] == ["distilled"]
    assert "the page shows distilled alone" in capsys.readouterr().err


def test_a_new_export_is_served_after_one_whose_neighbours_cannot_be_read(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(state, "LOOK_EVERY", 0.02)

    def wait(words):
        log = ""
        for _ in range(1000):
            log += capsys.readouterr().err
            if words in log:
                return
            time.sleep(0.02)
        raise AssertionError(log)

    with client_of(write_compared(tmp_path, "student")) as client:
        old = lists(client)["model"]
        listed = tmp_path / "export" / compared.FOLDER / compared.LIST
        listed.unlink()
        listed.mkdir()
        wait("the old model is kept")
        assert len(lists(client)["models"]) == 2
        listed.rmdir()
        write(tmp_path, seed=1)
        wait("is served")
        assert lists(client)["model"] != old and len(lists(client)["models"]) == 1


def test_a_search_finds_words_the_most_chosen_first(shared):
    client, _ = shared

    def found(words):
        answer = client.get("/v1/search", params={"q": words})
        return [row["item"] for row in answer.json()["items"]]

    assert found("film 12") == [1012]
    assert found("FILM  1")[0] == 1001 and len(found("film")) == 20
    assert found("") == [1000 + n for n in range(20)]
    assert found("1017")[0] == 1017
    assert found("no such title") == []


def test_the_files_need_no_token_and_the_data_do(tmp_path):
    with client_of(write_compared(tmp_path, "student"), token="secret") as client:
        for path in page.FILES:
            answer = client.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "<script>" not in client.get("/").text and "style=" not in client.get("/").text
        assert client.get("/v1/search").status_code == 401
        assert client.post("/v1/compare", json={}).status_code == 401
        assert client.get("/v1/search", headers=TOKEN).status_code == 200


def test_the_benchmark_times_clicks(shared):
    assert len(page_benchmark.seconds(str(shared[0].base_url), 3)) == 3


@pytest.mark.slow
@needs_browser
def test_a_browser_runs_through_the_page(tmp_path):
    folder = write_compared(tmp_path / "run", "student", text_map=True, title=EVIL)
    with (
        client_of(folder, token="secret") as client,
        browser(tmp_path / "profile") as tab,
    ):
        url = str(client.base_url)
        tab.open(url)
        tab.wait("!document.getElementById('token-form').hidden")
        tab.run("document.getElementById('token').focus()")
        tab.type("secret")
        tab.key("Enter", 13)
        tab.wait("document.querySelectorAll('.model li').length == 20")
        # A click on what was found, by the keyboard.
        tab.run("document.querySelector('.found button').focus()")
        tab.key("Enter", 13)
        tab.wait("document.querySelectorAll('#history li').length == 1")
        tab.wait("location.hash == '#h=1000'")
        assert tab.run("document.querySelector('#history span').textContent") == EVIL
        tab.wait("document.getElementById('status').textContent.includes('New items')")
        tab.run("document.querySelector('.model button[aria-label^=Dislike]').click()")
        tab.wait("location.hash.includes('&d=')")
        tab.run("document.getElementById('text').focus()")
        tab.type("a red film")
        tab.wait("document.querySelectorAll('.newcomer').length == 2")
        shared_url = tab.run("location.href")
        listed = "[...document.querySelectorAll('.model .title')].map(one => one.textContent)"
        before = tab.run(listed)
        for width in (400, 1400):
            for dark in (False, True):
                tab.open(shared_url, width, dark)
                tab.wait("document.querySelectorAll('.newcomer').length == 2")
                assert tab.run(listed) == before
                assert tab.overflow() <= 0
                tab.run("document.querySelector('details').open = true")
                assert tab.violations() == []
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert tab.run("document.title") == "Compare recommendations"
        # the request without a token is an error in the console, which may tell of it late
        assert [problem for problem in tab.problems if "status of 401" not in problem] == []
        assert {one for one in tab.requests if not one.startswith((url, "about:"))} == set()


def test_the_values_of_the_first_page_are_finite(shared):
    for one in lists(shared[0])["models"]:
        assert np.isfinite([row["score"] for row in one["items"]]).all()
