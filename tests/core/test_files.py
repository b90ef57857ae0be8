"""Files: tensors are written as they are, whatever their memory layout; what differs is named."""

from __future__ import annotations

import numpy as np

from kd_jax.core.files import difference, read_tensors, write_tensors


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


def test_of_two_configurations_the_fields_that_both_have_are_named_first():
    old = {"student": {"mf": {"a": 1, "b": 2}, "name": "mf"}}
    new = {"student": {"name": "sasrec", "sasrec": {"history": 5}}}
    named = difference(old, new)
    assert named.startswith("student.name: mf there, sasrec here; student.mf: ")
    assert difference(old, old) == ""
    four = difference({"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 2, "b": 2, "c": 2, "d": 2}, "x")
    assert four == "x.a: 1 there, 2 here; x.b: 1 there, 2 here; x.c: 1 there, 2 here; and 1 more"
