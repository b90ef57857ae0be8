"""Files: tensors are written as they are, whatever their memory layout."""

from __future__ import annotations

import numpy as np

from kd_jax.core.files import read_tensors, write_tensors


def test_transposed_and_strided_arrays_are_read_as_they_were(tmp_path):
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {
        "plain": plain,
        "transposed": plain.T,
        "strided": plain[:, ::2],
        "reversed": plain[::-1],
        "fortran": np.asfortranarray(plain),
        "scalar": np.asarray(3),
        "empty": np.zeros((0, 4), np.float32).T,
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors", "fix")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value, err_msg=name)
