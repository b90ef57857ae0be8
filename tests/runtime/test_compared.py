"""The models beside an export: what they share with it, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers.server import DIM, USERS, described, export_of, write_compared
from helpers.toy import refused
from kd_jax.runtime import Runtime, compared


@pytest.mark.parametrize("tower", [False, True])
def test_a_compared_model_answers_as_its_whole_export(tmp_path, tower):
    main = export_of(tower=tower)
    write_compared(tmp_path, "student", tower=tower)
    found = compared.load(tmp_path / "export", "student", main)
    whole = Runtime(export_of(seed=1, tower=tower))
    for user in main.user_ids:
        here, there = found.recommend(user, k=5), whole.recommend(user, k=5)
        assert [row.item for row in here] == [row.item for row in there]
        # The vectors are stored in float16.
        np.testing.assert_allclose([r.score for r in here], [r.score for r in there], atol=0.02)
    assert found.export.user_vectors.shape == (USERS, DIM)


def test_a_list_of_another_data_set_is_refused(tmp_path):
    write_compared(tmp_path, "student")
    folder = tmp_path / "export"
    assert compared.described(folder, export_of()) == described("student", "distilled")
    other = dataclasses.replace(export_of(), description={"dataset": {"name": "b", "checksum": 1}})
    refused(lambda: compared.described(folder, other), "another data set")
    smaller = dataclasses.replace(export_of(), user_ids=[1])
    refused(lambda: compared.load(folder, "student", smaller), "5 users and 40 items")
    assert compared.load(folder, "absent", export_of()) is None


@pytest.mark.parametrize("content", ["[]", '{"models": [{"nom": 1}]}', "{"])
def test_a_damaged_list_is_refused(tmp_path, content):
    write_compared(tmp_path, "student")
    (tmp_path / "export" / compared.FOLDER / compared.LIST).write_text(content)
    refused(lambda: compared.described(tmp_path / "export", export_of()), "export")
