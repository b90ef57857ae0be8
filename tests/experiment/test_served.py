"""What new items get on top of their biases when they are served."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from helpers import runs
from kd_jax import runtime
from kd_jax.core.logging import Log
from kd_jax.data import dataset as datasets
from kd_jax.evaluation.evaluator import chosen_users, eval_users
from kd_jax.experiment import roles
from kd_jax.experiment.new_items import HALVINGS, MOST, Biases, NewItems, biases_of, most_added
from kd_jax.experiment.served import for_texts
from kd_jax.experiment.trained import open_workdir
from kd_jax.runtime.text_map import TextMap

DAY, START = 24 * 3600, 1_600_000_000
STEP = MOST / 2**HALVINGS


def test_the_most_is_added_that_costs_no_more_than_allowed():
    for limit in (0.1, 1.0, 3.3, 7.9):
        found = most_added(lambda more, limit=limit: (1.0 - 0.005 * more / limit, more), 0.005)
        assert found <= limit < found + STEP
        assert found % STEP == 0
    assert most_added(lambda more: (1.0, more), 0.005) == MOST - STEP


def test_nothing_is_added_where_cold_targets_do_not_gain_or_others_lose_at_once():
    assert most_added(lambda more: (1.0, 0.2), 0.005) == 0.0
    assert most_added(lambda more: (float(more == 0), more), 0.005) == 0.0
    assert most_added(lambda more: (1.0, -more), 0.005) == 0.0
    assert most_added(lambda more: (float("nan"), more), 0.005) == 0.0


def test_the_text_map_of_the_export_gives_new_items_more_bias():
    draw = np.random.default_rng(0).normal
    plain = TextMap(
        np.arange(3, dtype=np.uint64),
        np.ones(3, np.float32),
        draw(size=(3, 5)).astype(np.float32),
        draw(size=5).astype(np.float32),
    )
    assert for_texts(None, Biases("", 0.0, 1.5)) is None
    assert for_texts(plain, Biases("", 1.0, 0.0)) is plain
    found = for_texts(plain, Biases("", 0.0, 1.5))
    assert found is not None
    (vectors, biases), (others, more) = plain(["a b"]), found(["a b"])
    np.testing.assert_array_equal(vectors, others)
    assert more[0] - biases[0] == pytest.approx(1.5)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A plain student of items that come and go, whose new items may cost half of the quality."""
    folder = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(0)
    rows = [
        (user, 500 + day // 4 + int(rng.integers(8)), START + day * DAY + user)
        for user in range(60)
        for day in rng.choice(40, 12, replace=False)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    table.write_csv(folder / "interactions.csv")
    fields = {
        "data.files.path": str(folder / "interactions.csv"),
        "data.split": "temporal",
        "stages": ("data", "student", "evaluate", "export", "report"),
        "eval.metrics": ("ndcg", "recall"),
        "export.new_items": 0.5,
    }
    runs.run(runs.config(world, **fields), folder / "run")
    return folder / "run"


def quality(data, scores, split):
    """NDCG@10 of warm targets and recall@10 of cold ones, without the code of the evaluation."""
    kept, found = data.split < split, {"warm": [], "cold": []}
    for user in range(data.num_users):
        mine = data.user == user
        seen, targets = set(data.item[mine & kept]), set(data.item[mine & (data.split == split)])
        targets -= seen
        if not (mine & (data.split == 0)).any():
            continue
        order = [item for item in np.argsort(-scores[user], kind="stable") if item not in seen]
        for name, chosen in (("warm", data.warm), ("cold", ~data.warm)):
            wanted = {item for item in targets if chosen[item]}
            if not wanted:
                continue
            hits = np.array([item in wanted for item in order[:10]])
            discount = 1 / np.log2(np.arange(10) + 2)
            ideal = discount[: len(wanted)].sum()
            values = {"warm": (hits @ discount[: len(hits)]) / ideal,
                      "cold": hits.sum() / len(wanted)}  # fmt: skip
            found[name].append(values[name])
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_new_items_get_the_most_that_validation_allows_and_the_export_has_it(run):
    data = datasets.load(run / "dataset")
    trained = load_file(run / "export/student.safetensors")
    assert (~data.warm[data.item[data.split == 1]]).any()

    def reached(more, split=1):
        scores = trained["user"] @ trained["item"].T + trained["bias"] + more * ~data.warm
        return quality(data, scores, split)

    (row,) = [row for row in runs.metrics_of(run)["models"] if row.get("served")]
    more = row["served"]["new_item_bias"]
    before, after = reached(0.0), reached(more)
    assert more > 0 and after["cold"] > before["cold"]
    assert after["warm"] >= 0.5 * before["warm"] > reached(more + STEP)["warm"]
    exported = runtime.load(run).export
    np.testing.assert_allclose(exported.item_bias, trained["bias"] + more * ~data.warm, rtol=1e-6)
    assert row["served"]["slices"]["cold"]["recall@10"] > row["slices"]["cold"]["recall@10"]
    assert "As served" in (run / "report/index.html").read_text()


def test_new_items_are_judged_by_a_sample_of_users_and_all_who_chose_one(run):
    role, found = roles.plain_student(), {}
    for most in (0, 4):
        with Log(run / "unused", "ndcg@10", silent=True) as log:
            models = open_workdir(run, log)
        models.experiment.config.eval.valid_users = most
        items = NewItems(models.open(role, 0))
        (users, contexts), slices = items._contexts("valid"), items._slices(items._rows, "valid")
        found[most] = users, contexts, slices
        data = models.experiment.dataset
        np.testing.assert_array_equal(items._contexts("test")[0], eval_users(data, 2))
    cold = np.unique(data.user[(data.split == 1) & ~data.warm[data.item]])
    (whole, contexts, slices), (users, some, sampled) = found.values()
    sample = chosen_users(whole, 4)
    assert set(users) == set(sample) | (set(cold) & set(whole)) and len(users) < len(whole)
    np.testing.assert_allclose(some, contexts[np.searchsorted(whole, users)], rtol=1e-6)
    assert sampled["cold"] == slices["cold"] and sampled["cold_only"] == slices["cold_only"]
    assert sampled["warm"] != slices["warm"]


def test_a_newer_value_of_the_field_is_selected_anew(run, tmp_path):
    found = json.loads((run / "student/new_items.json").read_text())
    assert found["judged_by"] == "0.5 of ndcg@10 for recall@10" and found["trained"] > 0
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["eval"]["metrics"] = ("ndcg",)
    runs.run(ConfigDict(config), folder)
    again = json.loads((folder / "student/new_items.json").read_text())
    assert again["judged_by"] == "0.5 of ndcg@10 for ndcg@10"
    config["export"]["new_items"] = 0.0
    runs.run(ConfigDict(config), folder)
    with Log(folder / "unused", "ndcg@10", silent=True) as log:
        models = open_workdir(folder, log)
    assert biases_of(models, roles.plain_student(), 0) == Biases("")  # of the compared models
    plain = load_file(folder / "export/student.safetensors")["bias"]
    np.testing.assert_array_equal(runtime.load(folder).export.item_bias, plain)
