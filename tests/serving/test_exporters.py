"""Every export format holds what was trained: its files give the model's scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import polars as pl
import pytest
from flax import nnx
from safetensors import safe_open

import kd_jax
from configs import common
from helpers.marks import first_fast
from helpers.students import bundle_of, task
from helpers.toy import refused
from helpers.training import HISTORY
from kd_jax import runtime
from kd_jax.core.scores import Factors
from kd_jax.core.types import PAD
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.runtime import quantized
from kd_jax.serving import exporters
from kd_jax.serving.exporters import EXPORTERS, compressed, programs, weights

USERS = 5


def scores_of(model):
    """f32 [USERS, I] of the first users after all of their interactions."""
    data = task().dataset
    windows = last_items(*data.history(TEST + 1), HISTORY)[:USERS]
    batch = {"user": jnp.arange(USERS), "history": jnp.asarray(windows)}

    def dense(model, batch):
        scores = model.scores(batch, model.catalogue())
        return scores.dense() if isinstance(scores, Factors) else scores

    return np.asarray(nnx.jit(dense)(model, batch))


def from_weights(folder: Path) -> np.ndarray:
    return scores_of(weights.read(folder, task().dataset)[0])


def from_runtime(folder: Path) -> np.ndarray:
    found = runtime.load(folder)
    data = task().dataset
    assert (found.num_users, found.num_items) == (data.num_users, data.num_items)
    return found.scores(found.export.user_vectors[:USERS])


def from_vectors(folder: Path) -> np.ndarray:
    data = task().dataset
    users, items = (
        pl.read_parquet(folder / f"{kind}_vectors.parquet") for kind in ("user", "item")
    )
    assert users["user"].equals(data.user_ids.rename("user"))
    assert items["item"].equals(data.item_ids.rename("item"))
    assert items["title"].to_list() == data.titles
    return (
        users["vector"].to_numpy()[:USERS] @ items["vector"].to_numpy().T + items["bias"].to_numpy()
    )


def from_numpy(folder: Path) -> np.ndarray:
    data = task().dataset
    with np.load(folder / "vectors.npz", allow_pickle=False) as found:
        assert found["users"].tolist() == data.user_ids.to_list()
        assert found["items"].tolist() == data.item_ids.to_list()
        return found["user_vectors"][:USERS] @ found["item_vectors"].T + found["item_bias"]


def given(folder: Path, form: str) -> dict[str, np.ndarray]:
    """The input of a program: users, or the histories that ``scores_of`` reads."""
    data = task().dataset
    found = json.loads((folder / f"{form}.json").read_text())
    assert found["users"] == data.user_ids.to_list() and found["items"] == data.item_ids.to_list()
    if found["model"]["student"] == "sasrec":
        return {"history": last_items(*data.history(TEST + 1), HISTORY)[:USERS].astype(np.int32)}
    return {"user": np.arange(USERS, dtype=np.int32)}


def from_jax_export(folder: Path) -> np.ndarray:
    ((name, value),) = given(folder, "jax_export").items()
    program = jax.export.deserialize(bytearray((folder / f"{name}_scores.jax_export").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    return np.asarray(program.call(value))


def from_onnx(folder: Path) -> np.ndarray:
    inputs = given(folder, "onnx")
    (name,) = inputs
    session = onnxruntime.InferenceSession(folder / f"{name}_scores.onnx")
    asked = ["scores", "top_items", "top_scores"]
    scores, items, best = session.run(asked, inputs | {"k": np.array([7])})
    np.testing.assert_array_equal(items, np.argsort(-scores, axis=1, kind="stable")[:, :7])
    np.testing.assert_array_equal(best, np.take_along_axis(scores, items, axis=1))
    return scores


def from_compressed(folder: Path) -> np.ndarray:
    with safe_open(folder / compressed.VECTORS, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        dim = int(file.metadata()["dim"])
        bits = {name: int(file.metadata()[f"{name}_bits"]) for name in ("user", "item")}
    users, items = (
        quantized.from_tensors(found, name, bits[name], dim) for name in ("user", "item")
    )
    return users[:USERS] @ items.T + found["item_bias"]


# Format -> the scores of the first users, from the files alone.
SCORES: dict[str, Callable[[Path], np.ndarray]] = {
    "runtime": from_runtime,
    "weights": from_weights,
    "vectors": from_vectors,
    "numpy": from_numpy,
    "jax_export": from_jax_export,
    "onnx": from_onnx,
    "compressed": from_compressed,
}
# Of 8 bits: at most half of a scale of max / 127 per number, on both sides of the product.
TOLERANCE = {"compressed": 0.02}
SEARCHED = ("ann",)  # without users in its files; tests/serving/test_ann.py reads them


@pytest.fixture(params=sorted(EXPORTERS))
def form(request):
    if request.param not in (*SCORES, *SEARCHED):
        pytest.fail(f"the format {request.param!r} is not read here: add a line to SCORES")
    return request.param


@pytest.mark.parametrize("name", first_fast(["mf", "sasrec"]))
def test_the_files_give_the_scores_of_the_model(form, name, tmp_path):
    bundle = bundle_of(name)
    files = exporters.write(bundle, tmp_path / "export", (form,))[form]
    assert sorted(files) == sorted((tmp_path / "export").iterdir())
    if form in SEARCHED:
        return
    found, scores = SCORES[form](tmp_path / "export"), scores_of(bundle.model)
    tolerance = TOLERANCE.get(form, 1e-5)
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=tolerance * np.abs(scores).max())


@pytest.mark.parametrize(("name", "section"), [("gru4rec", {}), ("sasrec", {"block": "ligr"})])
def test_onnx_computes_the_contexts_of(name, section, tmp_path):
    bundle = bundle_of(name, **section)
    exporters.write(bundle, tmp_path, ("onnx",))
    history = last_items(*task().dataset.history(TEST), HISTORY)[:USERS].astype(np.int32)
    for row, length in enumerate((0, 1, 3)):
        history[row, : HISTORY - length] = PAD
    vectors, bias = bundle.model.items()
    scores = bundle.model.context({"history": history}, vectors) @ vectors.T + bias[None]
    session = onnxruntime.InferenceSession(tmp_path / "history_scores.onnx")
    (found,) = session.run(["scores"], {"history": history, "k": np.array([7])})
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-5 * np.abs(scores).max())


@pytest.mark.parametrize(("name", "task_name"), [("mlp", "rank"), ("mf", "rate")])
def test_a_model_without_vectors_is_written_whole_or_skipped(form, name, task_name, tmp_path):
    bundle = bundle_of(name, task_name)
    assert bundle.vectors is None
    files = exporters.write(bundle, tmp_path, (form,))[form]
    assert sorted(files) == sorted(tmp_path.iterdir())
    if files:
        np.testing.assert_allclose(SCORES[form](tmp_path), scores_of(bundle.model), rtol=1e-5)


def test_a_file_is_whole_or_absent(form, tmp_path, monkeypatch):
    """A process that is stopped before a file is complete leaves none, or the one before."""
    bundle = bundle_of("mf")

    def stopped(self, target):
        raise OSError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopped)
        with pytest.raises(OSError, match="stopped"):
            exporters.write(bundle, tmp_path, (form,))
    assert not list(tmp_path.iterdir())
    exporters.write(bundle, tmp_path, (form,))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopped)
        with pytest.raises(OSError, match="stopped"):
            exporters.write(bundle_of("mf"), tmp_path, (form,))
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_an_unknown_format_or_field_is_refused_before_anything_is_written(form, tmp_path):
    bundle, folder = bundle_of("mf"), tmp_path / "export"
    refused(
        lambda: exporters.write(bundle, folder, (form, "vectorz")),
        "export.formats: 'vectorz' is unknown",
        "did you mean 'vectors'?",
    )
    refused(
        lambda: exporters.write(bundle, folder, (form,), {form: {"colour": "red"}}),
        f"export.{form}: there is no field 'colour'",
    )
    assert not folder.exists()


def test_the_sections_of_configs_common_have_the_exporters_defaults():
    export = common.get_config().export
    assert export.formats == ("runtime", "weights", "vectors")
    for name in set(EXPORTERS) & set(export):
        assert export[name].to_dict() == exporters.exporter_section(name, {})


def test_a_workdir_without_the_runtime_is_refused_with_the_stage(tmp_path):
    bundle = bundle_of("mf")
    bundle.dataset.save(tmp_path / "dataset")
    exporters.write(bundle, tmp_path / "export", ("vectors",))
    refused(lambda: kd_jax.load(tmp_path), "runtime.safetensors is missing", "launch.py")


def test_a_description_of_another_version_is_refused(tmp_path):
    bundle = bundle_of("mf")
    bundle.description["spec"]["colour"] = "red"
    weights.write(bundle, tmp_path)
    refused(lambda: weights.read(tmp_path, bundle.dataset), "student.json", "export again")


def test_a_missing_package_is_refused_with_the_extra_before_anything_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    folder = tmp_path / "export"
    refused(
        lambda: exporters.write(bundle_of("mf"), folder, ("vectors", "onnx")),
        "export.formats: 'onnx' needs the package onnx",
        "pip install 'kd_jax[onnx]'",
    )
    assert not folder.exists()


def test_vectors_of_more_than_two_gigabytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MAX_BYTES", 100)
    for form in ("jax_export", "onnx"):
        refused(
            lambda form=form: exporters.write(bundle_of("mf"), tmp_path, (form,)),
            f"export.formats: '{form}' holds at most 2 GB",
        )
    assert not list(tmp_path.iterdir())


def test_a_user_out_of_range_gets_no_scores_of_another_user(tmp_path):
    exporters.write(bundle_of("mf"), tmp_path, ("jax_export",))
    program = jax.export.deserialize(bytearray((tmp_path / "user_scores.jax_export").read_bytes()))
    scores = np.asarray(program.call(np.array([-1, 0, task().dataset.num_users], np.int32)))
    assert np.isnan(scores[[0, 2]]).all() and not np.isnan(scores[1]).any()
