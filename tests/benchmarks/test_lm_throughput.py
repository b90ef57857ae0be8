"""benchmarks/lm_throughput.py without any contestant.

Batches, groups, FLOPs, and the rates and shares computed from the times are tested.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lm_throughput
from benchmarks.peer_transformers import Tokens
from helpers.bert import small
from kd_jax.devices import profiling
from kd_jax.models.language.encoder import NativeEncoder

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    """Texts of 3, 1, 2, 3 and 2 tokens: 1 2 3, 4, 5 6, …"""
    indptr = np.array([0, 3, 4, 6, 9, 11])
    ids = np.arange(1, 12, dtype=np.int32)
    np.savez(
        tmp_path / "0.npz", ids=ids, indptr=indptr, pad_id=0, targets=np.zeros((5, 4), np.float32)
    )
    return str(tmp_path / "0.npz")


def test_batches_hold_every_text_once(path):
    tokens = Tokens(path)
    ids, mask = tokens.padded(np.array([1, 2]))
    assert ids.tolist() == [[4, 0], [5, 6]] and mask.tolist() == [[1, 0], [1, 1]]
    assert tokens.padded(np.array([1]), multiple=4)[0].tolist() == [[4, 0, 0, 0]]
    for batches in (tokens.as_they_come(2), tokens.by_length(2), tokens.of_one_length(2)):
        assert (
            sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4]
            and max(map(len, batches)) == 2
        )
    assert all(len(set(tokens.lengths[rows])) == 1 for rows in tokens.of_one_length(2))
    first = Tokens(path, 2)
    assert (
        first.lengths.tolist() == [3, 1]
        and first.ids.tolist() == [1, 2, 3, 4]
        and len(first.targets) == 2
    )


def test_every_batch_fits_in_its_groups_and_they_are_the_cheapest():
    lengths = -np.sort(-np.random.default_rng(0).poisson(9, (20, 32)) - 3, axis=1)
    found = lm_throughput.groups(lengths)
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])] and found[
        -1
    ][1] == 32
    assert all((lengths[:, start:stop] <= width).all() for start, stop, width in found)
    assert len(found) == 3 and sum((b - a) * width for a, b, width in found) < 32 * lengths.max()
    assert lm_throughput.groups(np.full((2, 16), 7)) == [(0, 16, 7)]


def test_flops_of_a_length_between_those_that_were_counted():
    encoder = NativeEncoder(small(max_position_embeddings=40))
    forward, step = lm_throughput.flops_by_length(encoder)
    ids = np.zeros((1, 11), np.int32)
    assert forward(11) == pytest.approx(
        profiling.matmul_flops(lambda ids: encoder(ids, jnp.ones_like(ids)), ids)
    )
    # Backward is twice forward, but for what is in front of the first product.
    assert 2.5 < step(11) / forward(11) < 3.1


def test_rates_shares_and_differences_by_hand(tmp_path):
    for name, value in (("ours", 1.0), ("theirs", 1.5)):
        np.save(tmp_path / f"{name}.npy", np.full(3, value))
    common = {
        "case": "films",
        "kind": "encoding",
        "how": "",
        "ceilings": [50.0, 100.0],
        "first": 5.0,
    }
    ours = common | {
        "library": "kd_jax",
        "seconds": [1.0, 2.0, 9.0],
        "computed": 12,
        "values": tmp_path / "ours.npy",
    }
    theirs = common | {
        "library": "PyTorch",
        "seconds": [4.0],
        "computed": 20,
        "values": tmp_path / "theirs.npy",
    }
    counts = {
        "films": {"lengths": [2, 3, 5], "encoding": [20, 30, 50], "fine-tuning": [60, 90, 150]}
    }
    rows = [theirs, ours]
    assert lm_throughput.add_rates(rows, counts, trained=2) == 100.0
    assert ours["texts_per_s"] == 1.5 and ours["tokens_per_s"] == 5.0 and ours["padding"] == 1.2
    assert (
        ours["of_ceiling"] == 0.5
        and ours["compile"] == 3.0
        and ours["ratio"] == 1.0
        and ours["difference"] == 0.0
    )
    assert theirs["ratio"] == 2.0 and theirs["difference"] == 0.5 and theirs["texts_per_s"] == 0.75
    assert "| films, encoding | kd_jax: " in lm_throughput.show(rows)
