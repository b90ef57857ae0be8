"""benchmarks/peers.py without any peer.

The file of the split, the metrics, and contestants that cannot run are tested.
"""

import argparse
import sys

import numpy as np
import pytest

from benchmarks import peer_common, peers

pytestmark = pytest.mark.slow


def split(fit_valid=True) -> peer_common.Split:
    """Users 0 and 1 with 2 and 1 train interactions among 30 items."""
    numbers = (np.array(values, np.int32) for values in ([5, 6, 7], [8, 9], [10, 11]))
    return peer_common.Split(np.array([0, 2, 3]), *numbers, num_items=30, fit_valid=fit_valid)


@pytest.mark.parametrize("fit_valid", [False, True])
def test_the_split_is_read_as_it_was_written(tmp_path, fit_valid):
    written = split(fit_valid)
    written.save(tmp_path / "split.npz")
    read = peer_common.read_split(tmp_path / "split.npz")
    assert (read.num_items, read.num_users, read.fit_valid) == (30, 2, fit_valid)
    for name in ("indptr", "items", "valid", "test"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), strict=True)
    assert [part.tolist() for part in read.seen()] == [[0, 3, 5], [5, 6, 8, 7, 9]]
    assert read.fit()[1].tolist() == ([5, 6, 8, 7, 9] if fit_valid else [5, 6, 7])
    assert peer_common.users_of(read.seen()[0]).tolist() == [0, 0, 0, 1, 1]


def test_settings_are_chosen_a_step_earlier_without_test():
    earlier = split().earlier()
    assert [part.tolist() for part in earlier.fit()] == [[0, 2, 3], [5, 6, 7]], (
        "what was train, is learned from"
    )
    assert earlier.test.tolist() == [8, 9], "what was valid, is judged by"
    assert not np.isin([10, 11], np.concatenate([*earlier.seen(), earlier.test])).any()


def test_generated_data_keep_their_shape_and_leave_one_out():
    raw = peers.generate(users=60, items=40, rows=1500)
    found = peers.prepare(raw)
    assert (found.num_users, found.num_items) == (60, 40)
    newest = (
        raw.interactions.sort("timestamp").group_by("user", maintain_order=True).last().sort("user")
    )
    np.testing.assert_array_equal(found.test, newest["item"])
    assert len(found.items) == raw.interactions.height - 2 * 60


def test_hr_and_ndcg_by_hand():
    top = np.array([[3, 1, 2], [3, 1, 2], [3, 1, 2], [3, 1, 2]])
    hit, ndcg = peer_common.hit_ndcg(top, np.array([3, 1, 2, 0]))  # first, second, third, absent
    assert hit == 0.75
    assert ndcg == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 4)


def test_lists_are_judged_only_if_they_are_what_was_asked_for():
    top = np.arange(10, 20) + np.zeros((2, 1), int)
    assert peer_common.evaluate(top, split()) == (1.0, pytest.approx((1 + 1 / np.log2(3)) / 2))
    for user, item, message in (
        (0, 12, "twice"),
        (1, 9, "has seen"),
        (0, 30, "not 10 items"),
        (0, -1, "not 10 items"),
    ):
        wrong = top.copy()
        wrong[user, 3 if item != 12 else 5] = item
        with pytest.raises(ValueError, match=message):
            peer_common.evaluate(wrong, split())
    with pytest.raises(ValueError, match="not 10 items"):
        peer_common.evaluate(top[:, :9], split())


def test_epochs_are_counted_or_end_with_the_seconds():
    done = []
    assert (
        len(
            peer_common.timed_epochs(
                argparse.Namespace(epochs=3, seconds=None), lambda: done.append(1)
            )
        )
        == 3
    )
    assert (
        len(
            peer_common.timed_epochs(
                argparse.Namespace(epochs=3, seconds=1e-9), lambda: done.append(1)
            )
        )
        == 1
    )
    assert len(done) == 4


FIGURES = dict.fromkeys(peer_common.FIELDS, 1.0) | {"settings": "some"}


@pytest.mark.parametrize(
    "code, state",
    [
        ('raise SystemExit("not written yet")', {"skipped": "not written yet"}),
        ('raise ValueError("of no use")', {"failed": "exit status 1: ValueError: of no use"}),
        ("raise SystemExit(3)", {"failed": "exit status 3: no message"}),
        ("print('{}')", {"failed": "its last line is not the figures: KeyError('fit_s')"}),
        (
            f"import json; print('hello'); print(json.dumps({FIGURES | {'hr': -1.0}!r}))",
            {"failed": "not a sane figure: hr"},
        ),
        (f"import json; print('hello'); print(json.dumps({FIGURES!r}))", FIGURES),
        ("import time; time.sleep(9)", {"failed": "not done after 1 s"}),
    ],
)
def test_a_contestant_is_measured_skipped_or_failed(tmp_path, monkeypatch, code, state):
    (tmp_path / "script.py").write_text(code)
    monkeypatch.setattr(peers, "HERE", tmp_path)
    options = argparse.Namespace(threads=1, epochs=None, seconds=None, timeout=1.0)
    found = peers.run(
        peers.Contestant("", "script.py", "mf"), sys.executable, tmp_path / "split.npz", options
    )
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name] == value or str(found[name]).startswith(str(value))


def test_peers_that_are_not_installed_are_skipped(tmp_path, monkeypatch, capsys):
    small = peers.generate(users=60, items=40, rows=1500)
    monkeypatch.setattr(peers, "generate", lambda: small)
    monkeypatch.setattr(peers, "ceilings", lambda *_: {"numpy": 1.0})
    status = peers.main(
        [
            f"--implicit={tmp_path / 'absent'}",
            "--only",
            "als",
            "recbole",
            f"--out={tmp_path / 'out.json'}",
        ]
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert (
        f"| implicit ALS | skipped: {tmp_path / 'absent'}: No such file or directory |" in printed
    )
    assert "| RecBole BPR | skipped: no --recbole |" in printed
    assert "kd_jax" not in printed and (tmp_path / "out.json").exists()
