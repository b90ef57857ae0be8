"""Several processes divide the texts; all get the vectors and states that one process computes."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from helpers.bert import small
from helpers.runs import ROOT
from kd_jax.data.text import TokenTable
from kd_jax.models.language import batching, encoding
from kd_jax.models.language.encoder import NativeEncoder

TEXTS = 60


def encoded(cache):
    """Vectors and frozen states of random texts, some of them equal, by a random encoder."""
    encoder = NativeEncoder(small())
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 20, TEXTS)
    texts = [rng.integers(1, 40, length).astype(np.int32) for length in lengths]
    texts += texts[:7]
    indptr = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    table = TokenTable(np.concatenate(texts), indptr, 0)
    vectors = encoding.encode(encoder, table, batch_tokens=8, cache=cache, shared=True)
    encoder.freeze_below(1)
    return vectors, np.array(encoding.frozen_states(encoder, table, cache))


def test_every_text_is_in_the_batches_of_one_process():
    plan = batching.plan_batches(np.random.default_rng(1).integers(1, 30, 100), 64, shared=True)
    for parts in (1, 2, 4):
        divided = batching.Plan(plan.batches, 0, parts).rows_by_part()
        assert len(divided) == parts
        assert sorted(np.concatenate(divided)) == list(range(100))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_share_the_texts_get_the_bits_of_one(tmp_path, count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; sys.path.insert(0, 'tests/models/language')\n"
        "from pathlib import Path; import numpy as np\n"
        "from kd_jax.devices import processes\n"
        "number, out = int(sys.argv[1]), Path(sys.argv[2])\n"
        f"processes.initialize('localhost:{port}', {count}, number)\n"
        "import test_shared_encoding as own\n"
        "from kd_jax.models.language import batching\n"
        "computed = []\n"
        "run = batching.Runs.__call__\n"
        "def counted(self, batches):\n"
        "    computed.extend(len(batch.rows) for batch in batches)\n"
        "    return run(self, batches)\n"
        "batching.Runs.__call__ = counted\n"
        "vectors, states = own.encoded(out / 'cache')\n"
        "np.savez(out / f'{number}.npz', vectors=vectors, states=states, computed=sum(computed))\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number), str(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        )
        for number in range(count)
    ]  # fmt: skip
    printed = [child.communicate(timeout=240)[0] for child in children]
    assert not any(child.returncode for child in children), printed
    vectors, states = encoded(tmp_path / "alone")
    computed = []
    for number in range(count):
        with np.load(tmp_path / f"{number}.npz") as found:
            np.testing.assert_array_equal(found["vectors"], vectors)
            np.testing.assert_array_equal(found["states"], states)
            computed.append(int(found["computed"]))
    assert sum(computed) == TEXTS + TEXTS + 7, "every distinct text once, and every text's states"
    assert max(computed) < 0.9 * sum(computed), "the states are one batch, vectors are several"
