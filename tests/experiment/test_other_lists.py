"""Lists of other systems in the report, against values that follow from where the targets are."""

import json

import numpy as np
import pytest

from helpers import runs
from kd_jax.data import dataset as datasets
from kd_jax.evaluation.significance import Comparison
from kd_jax.experiment import pipeline
from kd_jax.report.legend import Appearance, Legend

STAGES = ("data", "teacher", "student", "labels", "distilled", "evaluate", "report")


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lists") / "run"
    runs.run(runs.config(world, stages=STAGES), workdir)
    return workdir


def write(path, lists):
    path.write_text("".join(json.dumps(line) + "\n" for line in lists))
    return str(path)


def test_they_are_evaluated_like_models(run, world, tmp_path, capsys):
    data = datasets.load(run / "dataset")
    users, items = data.user_ids.to_list(), data.item_ids.to_list()
    (starts, seen), (ends, chosen) = data.history(2), data.targets(2)
    first, third, half = [], [], []
    for user in range(data.num_users):
        history = seen[starts[user] : starts[user + 1]].tolist()
        (target,) = chosen[ends[user] : ends[user + 1]].tolist()
        others = [item for item in range(data.num_items) if item not in {*history, target}]
        # what the user chose before is left out of a list, so the target is at its first place
        first.append((user, [*history, target, *others]))
        third.append((user, [others[0], history[0], others[1], target]))
        if user % 2:
            half.append((user, [target]))
    paths = [
        write(
            tmp_path / f"{name}.jsonl",
            [{"user": users[u], "items": [items[i] for i in found]} for u, found in lists],
        )
        for name, lists in (("first", first), ("third", third), ("half", half))
    ]
    c = runs.config(world, stages=("data", "evaluate", "report"))
    c.eval.lists = tuple(paths)
    runs.run(c, run)
    metrics = runs.metrics_of(run)
    rows = {row["name"]: row for row in metrics["models"]}
    judged = np.arange(data.num_users)
    assert rows["first"]["test"]["ndcg@10"] == pytest.approx(1.0)
    assert rows["third"]["test"]["ndcg@10"] == pytest.approx(1 / np.log2(4))
    assert rows["third"]["test"]["mrr"] == pytest.approx(1 / 3)
    share = float(np.mean(judged % 2))
    assert rows["half"]["test"]["ndcg@10"] == pytest.approx(share)
    assert metrics["lists"] == ["first", "third", "half"]
    gain = metrics["gain"]["ndcg@10"]
    assert gain["over_third"]["relative"] == pytest.approx(gain["distilled"] / gain["third"] - 1)
    page = (run / "report/index.html").read_text()
    assert page.count(">third<") >= 2  # the results, and what distilled is compared with

    missing = "test users have no list, which counts as 0"
    assert any(missing in note for note in rows["half"]["notes"])
    capsys.readouterr()
    runs.run(c, run)  # the notes come at every start
    assert missing in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("student", [{"user": 100, "items": [500]}], "that no other model has"),
        ("lm_share", [{"user": 100, "items": [500]}], "that no other model has"),
        ("over_x", [{"user": 100, "items": [500]}], "that no other model has"),
        ("a b", [{"user": 100, "items": [500]}], "letters, digits"),
        ("gone", None, "does not exist"),
        ("old", [{"history": [ITEM], "items": [ITEM]} for ITEM in ("film 0",)], "of users"),
        ("bad", [{"user": 100}], "'items'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(
    world, tmp_path, capsys, name, lines, message
):
    path = tmp_path / f"{name}.jsonl"
    if lines is not None:
        write(path, lines)
    c = runs.config(world, stages=STAGES)
    c.eval.lists = (str(path),)
    assert pipeline.main(c, tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/student").exists()


def test_the_report_compares_the_candidate_with_them():
    legend = Legend(
        {"popularity": Appearance(), "new": Appearance()},
        (Comparison("new", {"old": ""}),),
    )
    found = legend.with_lists(["theirs"])
    assert found.comparisons[0].over == {"old": "", "theirs": "over_theirs"}
    assert "theirs" in found.models and legend.with_lists([]) is legend
