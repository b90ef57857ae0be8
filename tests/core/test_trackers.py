"""Trackers get the events of metrics.jsonl."""

from __future__ import annotations

import json
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from helpers.runs import config, run
from helpers.toy import refused
from kd_jax.core.logging import Log
from kd_jax.core.trackers import TRACKERS, check, scalars


def events(path):
    """The events of a TFRecord file: length, its checksum, the message, its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + size])
        place += 12 + size + 4


def test_numbers_of_nested_sections_are_scalars_with_a_path():
    event = {"loss": 1, "terms": {"soft": 0.5, "note": "x"}, "on": True, "step_ms": {"wait": 2.0}}
    assert scalars(event) == {"loss": 1.0, "terms/soft": 0.5, "step_ms/wait": 2.0}


def test_event_files_of_tensorboard_hold_what_metrics_jsonl_holds(world, tmp_path):
    stages = {"stages": ("data", "student"), "student.optimizer.steps": 20}
    run(config(world, trackers=("tensorboard",), **stages), tmp_path / "run")
    (folder,) = (tmp_path / "run/tensorboard").iterdir()
    (path,) = folder.iterdir()
    assert folder.name.startswith("student.seed")
    found = {
        (value.tag, event.step): value.simple_value
        for event in events(path)
        for value in event.summary.value
    }
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {("loss", line["step"]): line["loss"] for line in lines if "loss" in line}
    assert losses
    for key, value in losses.items():
        assert found[key] == pytest.approx(value, rel=1e-6)
    assert any(tag.startswith("valid/") for tag, _ in found)


def test_a_run_of_wandb_gets_the_scalars_of_every_model(tmp_path, monkeypatch):
    calls = []
    one = types.SimpleNamespace(
        define_metric=lambda *names, **how: calls.append((names, how)),
        log=lambda values: calls.append(values),
        finish=lambda: calls.append("finished"),
    )
    fake = types.SimpleNamespace(init=lambda **how: calls.append(how) or one)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = TRACKERS["wandb"](tmp_path / "run", {"seeds": (0,)})
    with Log(tmp_path / "metrics.jsonl", "ndcg@10", trackers=(tracker,)) as log:
        log.write(model="student", seed=0, step=10, loss=2.0, terms={"clicks": 2.0})
        log.write(model="student", seed=0, step=20, loss=1.0)
    assert calls[0]["config"] == {"seeds": (0,)} and calls[0]["dir"] == str(tmp_path / "run")
    name = "student.seed0"
    logged = {f"{name}/loss": 2.0, f"{name}/terms/clicks": 2.0, f"{name}/step": 10}
    assert calls[3:] == [logged, {f"{name}/loss": 1.0, f"{name}/step": 20}, "finished"]


def test_what_is_unknown_or_not_installed_is_refused(tmp_path, monkeypatch):
    refused(lambda: check(("tensorbord",)), "trackers: 'tensorbord' is unknown", "'tensorboard'")
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        refused(lambda name=name: TRACKERS[name](tmp_path, {}), f"needs {module}", "pip install")
