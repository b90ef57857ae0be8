"""The HTTP server: answers, refusals, durability and replacement, on an export without JAX."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from benchmarks import serving_kills, serving_process
from helpers.server import DIM, ITEMS, SEEN, client_of, served, write
from kd_jax import runtime, serve
from kd_jax.core.errors import InputError
from kd_jax.runtime import Filters, store
from kd_jax.serving.server import answers
from kd_jax.serving.server.feedback import Feedback
from kd_jax.serving.server.requests import Recommend
from kd_jax.serving.server.state import State

ROOT = Path(__file__).parents[2]
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def workdir(tmp_path):
    return write(tmp_path)


@pytest.fixture
def client(workdir):
    with client_of(workdir) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server that several tests send bad requests to, and its workdir."""
    folder = write(tmp_path_factory.mktemp("shared"))
    with client_of(folder) as client:
        yield client, folder


def same(answer, expected):
    assert answer.status_code == 200, answer.text
    found = answer.json()["items"]
    assert [(row["rank"], row["item"], row["title"]) for row in found] == [
        (row.rank, row.item, row.title) for row in expected
    ]
    np.testing.assert_allclose(
        [row["score"] for row in found], [row.score for row in expected], rtol=1e-4, atol=1e-5
    )


def ids(client, **body):
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [row["item"] for row in answer.json()["items"]]


def send(client, user, item, event):
    answer = client.post("/v1/feedback", json={"user": user, "item": item, "event": event})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("tower", [False, True])
def test_answers_are_those_of_the_runtime(tmp_path, tower):
    direct = runtime.load(write(tmp_path, tower=tower))
    history = ["Film 3 é", 1007, "id:1009"]
    with client_of(tmp_path) as client:

        def post(**body):
            return client.post("/v1/recommend", json=body)

        same(post(user=102, k=5), direct.recommend(102, k=5))
        same(post(user="102"), direct.recommend(102))
        same(post(history=history, k=1000), direct.recommend(history=history, k=1000))
        same(post(user=101, history=history), direct.recommend(101, history))
        same(post(user=101, diversity=0.4), direct.recommend(101, diversity=0.4))
        filters = Filters(direct.items([1030]), direct.items([1001, 1030, 1031, 1032]), True)
        same(
            post(user=100, exclude=[1030], only=[1001, 1030, 1031, 1032], include_seen=True),
            direct.recommend(100, filters=filters),
        )
        same(
            client.get("/v1/recommend?history=Film 3 é&history=1007&k=4&diversity=0.1"),
            direct.recommend(history=["Film 3 é", "1007"], k=4, diversity=0.1),
        )
        same(client.post("/v1/similar", json={"item": 1004, "k": 6}), direct.similar(1004, 6))


def test_requests_at_the_same_time_get_their_own_answers(client, workdir):
    direct = runtime.load(workdir)
    histories = [[1000 + (7 * n + m) % 38 for m in range(1 + n % 9)] for n in range(60)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = pool.map(lambda one: client.post("/v1/recommend", json={"history": one}), histories)
        for history, answer in zip(histories, found, strict=True):
            same(answer, direct.recommend(history=history))


def test_a_request_that_leaves_no_item_is_refused_alone(workdir):
    direct = runtime.load(workdir)
    asks = [Recommend.of({"user": 100, "k": 3}), Recommend.of({"user": 101, "only": []})]
    listed, refused = answers.answer(direct, Feedback(), asks)
    assert [row["item"] for row in listed] == [one.item for one in direct.recommend(100, k=3)]
    assert isinstance(refused, InputError) and "leave no item" in str(refused)


BAD = {
    "no item left": ("/v1/recommend", b'{"user": 100, "only": []}', 400),
    "malformed": ("/v1/recommend", b"{", 400),
    "no object": ("/v1/recommend", b"[1]", 400),
    "not UTF-8": ("/v1/recommend", b'{"user": "\xff"}', 400),
    "deep": ("/v1/recommend", b"[" * 30_000, 400),
    "empty": ("/v1/recommend", b"", 400),
    "nothing asked": ("/v1/recommend", b"{}", 400),
    "empty history": ("/v1/recommend", b'{"history": []}', 400),
    "text as history": ("/v1/recommend", b'{"history": "Film 1"}', 400),
    "long history": ("/v1/recommend", json.dumps({"history": [1000] * 1001}).encode(), 400),
    "object in history": ("/v1/recommend", b'{"history": [{}]}', 400),
    "unknown field": ("/v1/recommend", b'{"user": 100, "top": 3}', 400),
    "unknown user": ("/v1/recommend", b'{"user": 7}', 404),
    "unknown item": ("/v1/recommend", b'{"history": ["Nothing"]}', 404),
    "two of a title": ("/v1/recommend", b'{"history": ["Twice"]}', 400),
    "unknown excluded": ("/v1/recommend", b'{"user": 100, "exclude": [5]}', 404),
    "great k": ("/v1/recommend", b'{"user": 100, "k": 1000000000}', 400),
    "k of 0": ("/v1/recommend", b'{"user": 100, "k": 0}', 400),
    "true k": ("/v1/recommend", b'{"user": 100, "k": true}', 400),
    "NaN": ("/v1/recommend", b'{"user": 100, "diversity": NaN}', 400),
    "diversity of 2": ("/v1/recommend", b'{"user": 100, "diversity": 2}', 400),
    "long diverse list": ("/v1/recommend", b'{"user": 100, "k": 500, "diversity": 0.5}', 400),
    "surrogate": ("/v1/recommend", b'{"user": "\\ud800"}', 400),
    "digits": ("/v1/recommend", b'{"user": ' + b"9" * 5000 + b"}", 400),
    "infinite": ("/v1/recommend", b'{"user": 100, "diversity": 1e999}', 400),
    "path": ("/v1/similar", b'{"item": "../../etc/passwd"}', 404),
    "no item": ("/v1/similar", b"{}", 400),
    "event": ("/v1/feedback", b'{"user": 1, "item": 1000, "event": "view"}', 400),
    "event list": ("/v1/feedback", b'{"user": 1, "item": 1000, "event": ["click"]}', 400),
    "feedback item": ("/v1/feedback", b'{"user": 1, "item": 5, "event": "click"}', 404),
    "no user": ("/v1/feedback", b'{"item": 1000, "event": "click"}', 400),
    "no vector": ("/v1/items", b'{"id": 1, "title": "New", "text": "A film"}', 501),
    "no text": ("/v1/items", b'{"id": 1, "title": "New", "text": " "}', 400),
    "bias alone": ("/v1/items", b'{"id": 1, "title": "New", "text": "A film", "bias": 1}', 400),
    "long text": (
        "/v1/items",
        b'{"id": 1, "title": "New", "text": "' + b"a " * 10_001 + b'"}',
        400,
    ),
    "short vector": ("/v1/items", b'{"id": 1, "title": "New", "vector": [1.0]}', 400),
    "vector of texts": ("/v1/items", b'{"id": 1, "title": "New", "vector": ["1"]}', 400),
    "great vector": ("/v1/items", b'{"id": 1, "title": "New", "vector": [1e39]}', 400),
    "existing": ("/v1/items", b'{"id": 1000, "title": "N", "vector": [1,1,1,1,1,1,1,1]}', 409),
    "text id": ("/v1/items", b'{"id": "a", "title": "N", "vector": [1,1,1,1,1,1,1,1]}', 400),
    "no route": ("/v2", b"{}", 404),
    "method": ("/metrics", b"{}", 405),
    "10 MB": ("/v1/recommend", b" " * 10_000_000, 413),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_one_clear_line(shared, case):
    client, workdir = shared
    path, body, status = BAD[case]
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    line = answer.json()["error"]
    assert 10 < len(line) < 400 and "\n" not in line and "Traceback" not in line
    assert client.get("/healthz").status_code == 200
    assert (workdir / "serving/feedback.jsonl").read_bytes() == b""


def test_only_json_bodies_are_read(client):
    answer = client.post("/v1/recommend", content=b'{"user": 100}')
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]
    for query in ("k=ten&user=100", "user=100&exclude=1000", "diversity=nan&user=100", ""):
        answer = client.get(f"/v1/recommend?{query}")
        assert answer.status_code == 400 and answer.json().keys() == {"error"}


def test_a_fault_of_the_server_is_not_shown(workdir, monkeypatch, capsys):
    state = State(workdir)
    monkeypatch.setattr(state, "answer", lambda asks: 1 / 0)
    with served(state) as client:
        for answer in (
            client.post("/v1/recommend", json={"user": 100}),
            client.get("/v1/recommend?user=100"),
        ):
            assert answer.status_code == 500 and "ZeroDivision" not in answer.text
            assert answer.json()["error"].startswith("internal error")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_token_opens_all_but_healthz(workdir):
    with client_of(workdir, token="secret") as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff"}):
            for path in ("/metrics", "/openapi.json", "/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and "token" in answer.json()["error"]
            answer = client.post("/v1/recommend", json={"user": 100}, headers=headers)
            assert answer.status_code == 401
        assert client.get("/metrics", headers=TOKEN).status_code == 200
        assert client.post("/v1/recommend", json={"user": 100}, headers=TOKEN).is_success


def test_other_hosts_need_a_token(workdir, tmp_path, capsys):
    arguments = [f"--workdir={workdir}", "--host=0.0.0.0"]
    assert serve.main(arguments) == 2
    assert "--token-file" in capsys.readouterr().err
    (tmp_path / "token").write_text("\n")
    for name in ("token", "missing"):
        assert serve.main([*arguments, f"--token-file={tmp_path / name}"]) == 2
        assert "--token-file" in capsys.readouterr().err
    assert serve.main([f"--workdir={tmp_path / 'none'}", "--port=0"]) == 2
    assert "is missing" in capsys.readouterr().err


def test_the_rate_of_a_client_is_limited(workdir):
    with client_of(workdir, rate=3) as client:
        statuses = [client.get("/metrics").status_code for _ in range(5)]
        assert statuses == [200] * 3 + [429] * 2
        assert client.get("/healthz").status_code == 200
        time.sleep(0.5)
        assert client.get("/metrics").status_code == 200


def test_feedback_changes_the_next_answer(client, workdir):
    direct = runtime.load(workdir)
    for user, known in (("ann", None), (102, 102)):
        send(client, user, "Film 30 é", "click")
        send(client, user, 1031, "like")
        same(
            client.post("/v1/recommend", json={"user": user}),
            direct.recommend(known, history=[1030, 1031]),
        )
        disliked = ids(client, user=user)[0]
        send(client, user, disliked, "dislike")
        send(client, user, 1031, "dislike")
        everything = ids(client, user=user, k=1000, include_seen=True)
        assert disliked not in everything and 1031 not in everything
        query = direct.query(known, history=[1030])
        np.testing.assert_allclose(
            client.post("/v1/recommend", json={"user": user}).json()["items"][0]["score"],
            np.delete(
                direct.scores(query.contexts)[0], [*query.seen[0], 31, disliked - 1000]
            ).max(),
            rtol=1e-4,
        )
        send(client, user, 1031, "like")  # the newest event counts
        assert 1031 in ids(client, user=user, k=1000, include_seen=True)


def test_a_dislike_takes_an_item_of_the_data_set_out_of_the_history(client, workdir):
    send(client, 100, 1001, "dislike")
    direct = runtime.load(workdir)
    vector = direct.export.user_vectors[0] - direct.contexts([np.arange(3)])[0]
    vector += direct.contexts([np.array([0, 2])])[0]
    scores = direct.scores(vector[None])[0]
    scores[:3] = -np.inf
    assert ids(client, user=100, k=5) == (1000 + np.argsort(-scores)[:5]).tolist()


def test_dislikes_alone_make_a_user(client):
    send(client, "carl", 1000, "dislike")
    assert len(ids(client, user="carl", k=1000)) == ITEMS - 1


def test_the_feedback_file_outlives_the_server(workdir):
    path = workdir / "serving/feedback.jsonl"
    with client_of(workdir) as client:
        stored = send(client, "ann", "Film 30 é", "click")
        send(client, 101, 1031, "dislike")
        before = ids(client, user="ann")
    table = pl.read_ndjson(path)
    assert table.columns == ["user", "item", "event", "timestamp"]
    assert table.rows()[0] == ("ann", "1030", "click", stored["timestamp"])
    with client_of(workdir) as client:
        assert ids(client, user="ann") == before
        assert 1031 not in ids(client, user=101, k=1000)
        assert 'kd_jax_events_total{event="click"} 1' in client.get("/metrics").text


def test_damaged_feedback_is_repaired_and_reported(workdir, capsys):
    path = workdir / "serving/feedback.jsonl"
    path.parent.mkdir()
    good = '{"user": "ann", "item": "1030", "event": "click", "timestamp": 1}\n'
    bad = ["\0\0\n", "[]\n", '{"user": "ann"}\n', '{"user": 1, "item": 2, "event": "click"}\n']
    path.write_text(good + "".join(bad) + good.replace("1030", "77") + good[:-9])
    with client_of(workdir) as client:
        reported = capsys.readouterr().err
        assert [int(n) for n in re.findall(r"line (\d+) is damaged", reported)] == [2, 3, 4, 5]
        assert "the last line was not whole" in reported
        assert path.read_text().endswith("}\n") and len(path.read_text().splitlines()) == 6
        direct = runtime.load(workdir)
        same(client.post("/v1/recommend", json={"user": "ann"}), direct.recommend(history=[1030]))
        send(client, "ann", 1031, "click")
    assert json.loads(path.read_text().splitlines()[-1])["item"] == "1031"


def test_a_full_disk_is_no_acknowledgement(workdir, monkeypatch):
    def full(file):
        raise OSError(28, os.strerror(28))

    with client_of(workdir) as client:
        send(client, "ann", 1030, "click")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            body = {"user": "ann", "item": 1031, "event": "click"}
            answer = client.post("/v1/feedback", json=body)
            assert answer.status_code == 503 and "not stored" in answer.json()["error"]
        assert len((workdir / "serving/feedback.jsonl").read_text().splitlines()) == 1
        assert 1031 in ids(client, user="ann", k=1000)
        send(client, "ann", 1031, "click")


def test_concurrent_events_share_a_sync(workdir, monkeypatch):
    calls = []
    sync = os.fdatasync

    def slow(file):
        calls.append(file)
        time.sleep(0.05)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    with client_of(workdir) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: send(client, f"user {n}", 1000, "click"), range(16)))
    assert len((workdir / "serving/feedback.jsonl").read_text().splitlines()) == 16
    assert len(calls) < 10


def test_one_server_holds_a_workdir(workdir):
    with client_of(workdir), pytest.raises(ValueError, match="in use by another server"):
        State(workdir)


@pytest.mark.parametrize("texts", [False, True])
def test_a_new_item_is_recommended_at_once(tmp_path, texts):
    write(tmp_path, texts=texts)
    first, new = ("film/1", "../new é") if texts else (1001, 5000)
    vector = (100 * runtime.load(tmp_path).contexts([np.array([1])])[0]).tolist()
    item = {"id": new, "title": "New é", "text": "A film", "vector": vector, "bias": 1.0}
    with client_of(tmp_path) as client:
        answer = client.post("/v1/items", json=item)
        assert answer.status_code == 200 and answer.json()["title"] == "New é"
        assert ids(client, history=[first])[0] == new
        assert new not in ids(client, history=["New É"], k=1000)  # found by its title
        send(client, "ann", new, "click")
        again = client.post("/v1/items", json=item)
        assert again.status_code == 409 and "exists" in again.json()["error"]
        assert f"kd_jax_items {ITEMS + 1}" in client.get("/metrics").text
        assert client.post("/v1/similar", json={"item": new, "k": 3}).status_code == 200
    with client_of(tmp_path) as client:  # and after a restart
        assert ids(client, history=[first])[0] == new
        assert new not in ids(client, user="ann", k=1000)


def test_a_new_item_is_recommended_from_its_text(tmp_path, capsys):
    write(tmp_path, text_map=True)
    path = tmp_path / "export" / store.FILE
    item = {"id": 5000, "title": "New é", "text": "A red film"}
    known = {"id": 5001, "title": "Vector", "text": "film", "vector": [1.0] * DIM, "bias": 2.0}

    def score(client, key):
        asked = {"user": 100, "only": [f"id:{key}"], "k": 1}
        (row,) = client.post("/v1/recommend", json=asked).json()["items"]
        return row["score"]

    def expected(text):
        direct = runtime.load(tmp_path)
        vectors, biases = direct.export.text_map([text])
        return float((direct.export.user_vectors[0] @ vectors[0]) + biases[0])

    with client_of(tmp_path) as client:
        for body in (item, known):
            assert client.post("/v1/items", json=body).status_code == 200
        assert score(client, 5000) == pytest.approx(expected("A red film"), rel=1e-5)
        again = client.post("/v1/items", json=item)
        assert again.status_code == 409 and "exists" in again.json()["error"]
        given = runtime.load(tmp_path).export.user_vectors[0].sum() + 2
        assert score(client, 5001) == pytest.approx(given, rel=1e-5)
    (first, _) = (tmp_path / "serving/items.jsonl").read_text().splitlines()
    assert "vector" not in json.loads(first)
    with client_of(tmp_path) as client:  # after a restart
        assert score(client, 5000) == pytest.approx(expected("A red film"), rel=1e-5)
    write(tmp_path, seed=1, text_map=True)  # a new export reads the texts with its own map
    with client_of(tmp_path) as client:
        assert score(client, 5000) == pytest.approx(expected("A red film"), rel=1e-5)
        assert score(client, 5001) == pytest.approx(expected("film"), rel=1e-5)
    grown = runtime.load(tmp_path).add_items([5000], ["In the data now"], texts=["red"])
    store.write(path, grown.export)  # the new export has the item
    with client_of(tmp_path) as client:
        assert score(client, 5000) == pytest.approx(expected("red"), rel=1e-5)
    assert "1 added items are in the export now" in capsys.readouterr().err
    write(tmp_path, seed=1)  # and one without a map leaves texts out
    with client_of(tmp_path) as client:
        assert f"kd_jax_items {ITEMS}" in client.get("/metrics").text
    assert "2 added items are left out" in capsys.readouterr().err


def test_a_damaged_item_does_not_keep_the_others_out(tmp_path, capsys):
    write(tmp_path, text_map=True)
    with client_of(tmp_path) as client:
        client.post("/v1/items", json={"id": 5000, "title": "New", "text": "A red film"})
    path = tmp_path / "serving/items.jsonl"
    line = path.read_text()
    path.write_text(line.replace("5000", "no number") + line.replace('"A', "5") + line)
    with client_of(tmp_path) as client:
        assert f"kd_jax_items {ITEMS + 1}" in client.get("/metrics").text
    found = capsys.readouterr().err
    assert "line 2 is damaged" in found and "'no number' is left out" in found


def test_adding_items_leaves_the_runtime_as_it_was(workdir):
    before = runtime.load(workdir)
    vectors, biases = np.ones((2, DIM)), np.zeros(2)
    after = before.add_items([7, 8], ["Seven", "Twice"], vectors, biases)
    assert (before.num_items, after.num_items) == (ITEMS, ITEMS + 2)
    assert not before.lookup.items("seven") and after.lookup.items("seven") == [ITEMS]
    assert after.lookup.items("Twice") == [ITEMS - 2, ITEMS - 1, ITEMS + 1]
    assert len(after.recommend(100, k=1000)) == ITEMS + 2 - SEEN
    for ids_, wrong in ([[7, 7], vectors], [[7, 1000], vectors], [[7, 8], vectors * np.nan]):
        with pytest.raises(ValueError, match="add_items"):
            before.add_items(ids_, ["a", "b"], wrong, biases)


def test_openapi_describes_the_routes_and_loads_nothing(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/v1/recommend"]["post"]["requestBody"] and "/v1/items" in paths
    assert client.get("/docs").status_code == 404 and client.get("/redoc").status_code == 404
    text = client.get("/metrics").text
    assert 'kd_jax_requests_total{route="/openapi.json",status="200"} 1' not in text
    assert 'kd_jax_requests_total{route="other",status="404"} 2' in text
    assert re.search(r"kd_jax_model_loaded_seconds \d+", text)


def test_the_server_imports_no_jax():
    code = (
        "import sys, kd_jax.serve, kd_jax.core.process\n"
        "import kd_jax.serving.server.app, kd_jax.serving.server.command\n"
        "print([name for name in ('jax', 'flax', 'polars') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stdout + found.stderr


def test_what_is_not_installed_is_named(workdir):
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        f"from kd_jax import serve; sys.exit(serve.main(['--workdir={workdir}']))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "fastapi" in found.stderr and "[serve]" in found.stderr


class Process:
    """A server process; ``url`` once it answers."""

    def __init__(self, workdir, *arguments):
        command = [sys.executable, "-m", "kd_jax.serve", f"--workdir={workdir}", "--port=0"]
        self.log = (workdir / "log").open("w")
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.process.stdout.readline()
        assert "serving" in line, (workdir / "log").read_text()
        self.url = line.split()[-1]
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                assert self.client.get("/healthz").status_code == 200
                return
            time.sleep(0.05)
        raise AssertionError("no answer")

    def stop(self, number=signal.SIGTERM):
        self.client.close()
        self.process.send_signal(number)
        self.process.wait(20)
        self.process.stdout.close()
        self.log.close()


def in_threads(count, body):
    """Runs ``body(n, client, stop)`` in threads until the block ends; raises what they raise."""

    @contextlib.contextmanager
    def running(url):
        stop = threading.Event()

        def run(n):
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                body(n, client, stop)

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            tasks = [pool.submit(run, n) for n in range(count)]
            try:
                yield
            finally:
                stop.set()
            for task in tasks:
                task.result()

    return running


def test_a_process_serves_with_a_token_and_ends_on_a_signal(workdir, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    process = Process(workdir, f"--token-file={tmp_path / 'token'}", "--host=localhost")
    try:
        assert process.client.get("/v1/recommend?user=100").status_code == 401
        assert process.client.get("/v1/recommend?user=100", headers=TOKEN).status_code == 200
        answer = process.client.post("/v1/recommend", content=b" " * 10_000_000, headers=TOKEN)
        assert answer.status_code == 413
    finally:
        process.stop(signal.SIGINT)
    assert process.process.returncode == 0
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.slow
def test_acknowledged_events_survive_sigkill(workdir):
    found = serving_kills.measure(workdir, kills=5)
    assert found.kills == 5 and found.acknowledged > 0
    assert found.lost == found.unknown == 0
    with serving_process.ours(workdir) as server:  # which has none of these events
        events = Counter([("ann", "1030", "click", "1"), ("bob", "1031", "dislike", "1")])
        assert serving_kills.not_known(server, events) == {"ann": 1, "bob": 1}


@pytest.mark.slow
def test_a_new_export_is_served_without_an_error(workdir, tmp_path):
    process = Process(workdir)
    models = set()

    def load(n, client, stop):
        while not stop.is_set():
            answer = client.post("/v1/recommend", json={"user": "ann", "k": 3})
            assert answer.status_code == 200, answer.text
            models.add(answer.json()["model"])

    def wait(condition):
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError("not in time")

    try:
        send(process.client, "ann", 1030, "like")
        send(process.client, "ann", 1031, "dislike")
        with in_threads(3, load)(process.url):
            for seed in (1, 2):
                write(workdir, seed=seed)
                wait(lambda count=seed + 1: len(models) == count)
            direct = runtime.load(workdir)
            file = workdir / "export" / store.FILE
            good = file.read_bytes()
            file.write_bytes(good[: len(good) // 2])
            wait(lambda: "is damaged" in (tmp_path / "log").read_text())
            time.sleep(1.2)
            assert len(models) == 3
            file.unlink()
            wait(lambda: "is missing" in (tmp_path / "log").read_text())
        found = ids(process.client, user="ann", k=1000)
        expected = [row.item for row in direct.recommend(history=[1030], k=1000)]
        assert found == [item for item in expected if item != 1031]
        assert (tmp_path / "log").read_text().count("the old model is kept") == 2
    finally:
        process.stop()
