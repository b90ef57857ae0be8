"""The format 'compressed', and 'runtime' with packed vectors."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from helpers.exports import WITHOUT_KD_JAX, given, program_in_docs
from helpers.students import bundle_of
from helpers.toy import refused
from kd_jax import runtime
from kd_jax.core.files import write_tensors
from kd_jax.runtime import quantized, store
from kd_jax.serving import exporters
from kd_jax.serving.exporters import compressed


@pytest.mark.parametrize("bits", quantized.BITS)
@pytest.mark.parametrize("width", [5, 16])
def test_the_decoder_in_the_docs_reads_what_was_packed(width, bits, tmp_path):
    """It runs in a process that cannot import kd_jax."""
    bundle = given(width)
    files = exporters.write(
        bundle, tmp_path / "export", ("compressed",), {"compressed": {"bits": bits}}
    )["compressed"]
    assert sorted(files) == sorted((tmp_path / "export").iterdir())
    save = "\nnp.savez('decoded.npz', users=users, items=items, bias=bias, scores=scores)\n"
    program = WITHOUT_KD_JAX + program_in_docs(compressed.VECTORS) + save
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    found, vectors = np.load(tmp_path / "decoded.npz"), bundle.vectors
    for name, rows, wanted in (
        ("items", vectors.items, bits),
        ("users", vectors.contexts, max(8, bits)),
    ):
        decoded = quantized.unpack(quantized.pack(rows, wanted))
        np.testing.assert_array_equal(found[name], decoded)
    np.testing.assert_array_equal(found["bias"], vectors.bias.astype(np.float16))
    user = found["users"][0]
    np.testing.assert_allclose(found["scores"], found["items"] @ user + found["bias"], atol=1e-5)
    ids = json.loads((tmp_path / "export" / compressed.IDS).read_text())
    assert ids["items"] == bundle.dataset.item_ids.to_list()
    assert ids["users"] == bundle.dataset.user_ids.to_list()


@pytest.mark.parametrize(("bits", "share"), [(16, 0.501), (8, 0.27), (4, 0.15), (1, 0.05)])
def test_bytes_of_an_item_of_64_dimensions(bits, share, tmp_path):
    """Measured without the file's header of at most 500 bytes, which is less than 1e-5 of 1M."""
    vectors = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    tensors = quantized.tensors(quantized.pack(vectors, bits), "item")
    write_tensors(tmp_path / "packed", tensors | {"item_bias": vectors[:, 0].astype(np.float16)})
    size = (tmp_path / "packed").stat().st_size
    assert size <= share * len(vectors) * (64 * 4 + 4) + 500
    assert sum(value.nbytes for value in tensors.values()) + 2000 <= share * 260_000


@pytest.mark.parametrize("part", ["contexts", "items", "bias"])
def test_vectors_that_are_not_finite_are_refused(part, tmp_path):
    bundle = given(5)
    getattr(bundle.vectors, part)[2] = np.nan
    for bits in quantized.BITS:
        refused(
            lambda bits=bits: compressed.write(bundle, tmp_path, bits),
            str(tmp_path / compressed.VECTORS),
            "not finite",
        )
    assert not list(tmp_path.iterdir())


def test_one_item(tmp_path):
    bundle = given(7, items=1)
    compressed.write(bundle, tmp_path, 1)
    with safe_open(tmp_path / compressed.VECTORS, framework="numpy") as file:
        shapes = {name: file.get_tensor(name).shape for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"dim": "7", "item_bits": "1", "user_bits": "8"}
    users = bundle.dataset.num_users
    assert shapes == {
        "item_codes": (1, 1),
        "item_scales": (1,),
        "item_bias": (1,),
        "user_codes": (users, 7),
        "user_scales": (users,),
    }


@pytest.mark.parametrize("form", ["compressed", "runtime"])
@pytest.mark.parametrize("bits", [2, 64, True])
def test_an_unknown_number_of_bits_is_refused_before_anything_is_written(form, bits, tmp_path):
    folder = tmp_path / "export"
    refused(
        lambda: exporters.write(bundle_of("mf"), folder, (form,), {form: {"bits": bits}}),
        f"export.{form}.bits={bits}",
    )
    assert not folder.exists()


@pytest.mark.parametrize("bits", quantized.BITS)
@pytest.mark.parametrize("name", ["mf", "mlp"])
def test_the_runtime_serves_packed_vectors(name, bits, tmp_path):
    bundle = bundle_of(name)
    for folder, chosen in (("full", {}), ("packed", {"bits": bits})):
        exporters.write(bundle, tmp_path / folder, ("runtime",), {"runtime": chosen})
    full, packed = (runtime.load(tmp_path / folder).export for folder in ("full", "packed"))
    for part, wanted in (("item_vectors", bits), ("user_vectors", max(8, bits))):
        decoded = quantized.unpack(quantized.pack(getattr(full, part), wanted))
        np.testing.assert_array_equal(getattr(packed, part), decoded)
        assert getattr(packed, part).dtype == np.float32
    np.testing.assert_array_equal(packed.item_bias, full.item_bias)
    assert packed.description == full.description
    assert len(runtime.load(tmp_path / "packed").recommend(history=[full.item_ids[0]], k=3)) == 3
    sizes = [(tmp_path / folder / store.FILE).stat().st_size for folder in ("full", "packed")]
    assert sizes[1] < sizes[0]


def test_a_runtime_of_32_bits_is_written_as_before(tmp_path):
    bundle = bundle_of("mf")
    for folder, chosen in (("default", {}), ("bits", {"bits": 32})):
        exporters.write(bundle, tmp_path / folder, ("runtime",), {"runtime": chosen})
    first, second = ((tmp_path / folder / store.FILE) for folder in ("default", "bits"))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, framework="numpy") as file:
        assert "bits" not in json.loads(file.metadata()["description"])
        assert file.get_tensor("item_vectors").dtype == np.float32
