"""The exported files are read without kd_jax: same scores and lists as those of the runtime.

The examples that docs/serving.md links are run in the same way.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.marks import first_fast
from helpers.students import bundle_of
from kd_jax import runtime
from kd_jax.runtime.contexts import PAD
from kd_jax.serving import exporters

EXAMPLES = Path(__file__).parents[2] / "examples"
FORMATS = ("runtime", "weights", "vectors", "numpy", "jax_export", "onnx")
HISTORIES = ([3], [1, 2, 5], [7, 1, 9, 2, 4], [*range(12)])

# Refuses kd_jax, also where the environment has it installed.
WITHOUT_KD_JAX = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kd_jax":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
try:
    import kd_jax
except ModuleNotFoundError:
    pass
else:
    sys.exit("kd_jax was imported")
"""
READER = """
import json
import numpy as np
import onnxruntime
from jax import export

found, user, history = {}, np.load("users.npy"), np.load("histories.npy")
for name, value in (("user", user), ("history", history)):
    described = json.load(open("export/jax_export.json"))
    shape = described["programs"][f"{name}_scores.jax_export"]["inputs"][name]["shape"]
    assert shape[1:] == list(value.shape[1:]) and value.dtype == np.int32
    content = open(f"export/{name}_scores.jax_export", "rb").read()
    found[f"jax_export.{name}"] = np.asarray(export.deserialize(bytearray(content)).call(value))
    session = onnxruntime.InferenceSession(f"export/{name}_scores.onnx")
    asked = {name: value, "k": np.array([10])}
    scores, items = session.run(["scores", "top_items"], asked)
    found[f"onnx.{name}"], found[f"onnx.{name}.items"] = scores, items
try:
    with np.load("export/vectors.npz", allow_pickle=False) as file:
        scores = file["user_vectors"] @ file["item_vectors"].T + file["item_bias"]
        found["numpy.vectors"] = scores[user]
except FileNotFoundError:
    pass
np.savez("found.npz", **found)
"""


def outside(code, folder):
    """Runs code in ``folder``, isolated from the environment's variables and from kd_jax."""
    script = folder / "script.py"
    script.write_text(WITHOUT_KD_JAX + code)
    command = [sys.executable, "-I", str(script)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lists(scores):
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]


@pytest.mark.parametrize("name", first_fast(["mf", "mlp", "sasrec", "two_tower"]))
def test_the_files_give_the_scores_and_lists_of_the_runtime(name, tmp_path):
    written = exporters.write(bundle_of(name), tmp_path / "export", FORMATS)
    found = runtime.load(tmp_path / "export")
    users = np.array([4, 0, 17, 4], np.int32)
    padded = np.full((len(HISTORIES), found.export.context.length), PAD, np.int32)
    for row, history in zip(padded, HISTORIES, strict=True):
        newest = history[-len(row) :]
        row[-len(newest) :] = newest
    np.save(tmp_path / "users.npy", users)
    np.save(tmp_path / "histories.npy", padded)
    outside(READER, tmp_path)
    known = found.vectors(users.tolist(), [found.seen(user) for user in users])
    want = {
        "user": found.scores(known),
        "history": found.scores(found.contexts([np.array(history) for history in HISTORIES])),
        "vectors": found.scores(found.export.user_vectors[users]),
    }
    with np.load(tmp_path / "found.npz") as answers:
        keys = {f"{form}.{kind}" for form in ("jax_export", "onnx") for kind in ("user", "history")}
        keys |= {"numpy.vectors"} if written["numpy"] else set()
        assert answers.keys() == keys | {"onnx.user.items", "onnx.history.items"}
        for key in keys:
            scores = want[key.rpartition(".")[2]]
            np.testing.assert_allclose(answers[key], scores, rtol=1e-5, atol=1e-4, err_msg=key)
            np.testing.assert_array_equal(lists(answers[key]), lists(scores), err_msg=key)
        for kind in ("user", "history"):
            np.testing.assert_array_equal(answers[f"onnx.{kind}.items"], lists(want[kind]))
    assert bool(written["numpy"]) == (name != "mlp")


@pytest.mark.parametrize(
    ("example", "package"),
    [("score_jax.py", "jax"), ("score_torch.py", "torch"), ("score_tensorflow.py", "tensorflow")],
)
def test_the_examples_print_the_best_items(example, package, tmp_path):
    code = (EXAMPLES / example).read_text()
    assert len([line for line in code.splitlines() if line and line[0] != "#"]) <= 14
    if importlib.util.find_spec(package) is None:
        compile(code, example, "exec")
        pytest.skip(f"{package} is not installed")
    exporters.write(bundle_of("mf"), tmp_path / "runs/quickstart/export", ("runtime", *FORMATS[2:]))
    found = runtime.load(tmp_path / "runs/quickstart/export")
    filters = runtime.Filters(include_seen=True)
    want = found.recommend(user=found.export.user_ids[0], k=10, filters=filters)
    assert outside(code, tmp_path).strip() == str([row.item for row in want])
