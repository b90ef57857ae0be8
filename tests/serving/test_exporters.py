"""Every export format holds what was trained: its files give the model's scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from safetensors import safe_open

import kd_jax
from configs import common
from helpers.marks import first_fast
from helpers.students import bundle_of, task
from helpers.toy import refused
from helpers.training import HISTORY
from kd_jax import runtime
from kd_jax.core.scores import Factors
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.runtime import quantized
from kd_jax.serving import exporters
from kd_jax.serving.exporters import EXPORTERS, compressed, safetensors

USERS = 5


def scores_of(model):
    """f32 [USERS, I] of the first users after all but their test interactions."""
    data = task().dataset
    windows = last_items(*data.history(TEST), HISTORY)[:USERS]
    batch = {"user": jnp.arange(USERS), "history": jnp.asarray(windows)}
    scores = model.scores(batch, model.catalogue())
    return np.asarray(scores.dense() if isinstance(scores, Factors) else scores)


def from_safetensors(folder: Path) -> np.ndarray:
    return scores_of(safetensors.read(folder, task().dataset)[0])


def from_runtime(folder: Path) -> np.ndarray:
    found = runtime.load(folder)
    data = task().dataset
    assert (found.num_users, found.num_items) == (data.num_users, data.num_items)
    return found.scores(found.export.user_vectors[:USERS])


def from_parquet(folder: Path) -> np.ndarray:
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


def from_npz(folder: Path) -> np.ndarray:
    data = task().dataset
    with np.load(folder / "vectors.npz", allow_pickle=False) as found:
        assert found["users"].tolist() == data.user_ids.to_list()
        assert found["items"].tolist() == data.item_ids.to_list()
        return found["user_vectors"][:USERS] @ found["item_vectors"].T + found["item_bias"]


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
    "safetensors": from_safetensors,
    "parquet": from_parquet,
    "npz": from_npz,
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
        lambda: exporters.write(bundle, folder, (form, "parqet")),
        "export.formats: 'parqet' is unknown",
        "did you mean 'parquet'?",
    )
    refused(
        lambda: exporters.write(bundle, folder, (form,), {form: {"colour": "red"}}),
        f"export.{form}: there is no field 'colour'",
    )
    assert not folder.exists()


def test_the_sections_of_configs_common_have_the_exporters_defaults():
    export = common.get_config().export
    assert export.formats == ("runtime", "safetensors", "parquet")
    for name in set(EXPORTERS) & set(export):
        assert export[name].to_dict() == exporters.exporter_section(name, {})


def test_a_workdir_without_the_runtime_is_refused_with_the_stage(tmp_path):
    bundle = bundle_of("mf")
    bundle.dataset.save(tmp_path / "dataset")
    exporters.write(bundle, tmp_path / "export", ("parquet",))
    refused(lambda: kd_jax.load(tmp_path), "runtime.safetensors is missing", "launch.py")


def test_a_description_of_another_version_is_refused(tmp_path):
    bundle = bundle_of("mf")
    bundle.description["spec"]["colour"] = "red"
    safetensors.write(bundle, tmp_path)
    refused(lambda: safetensors.read(tmp_path, bundle.dataset), "student.json", "export again")
