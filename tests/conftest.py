import os

# Before jax starts: eight virtual devices for the sharding tests; the other tests use the first one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
import toy

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def no_global_cache():
    """A run sets the compilation cache to its workdir, which is gone after the test."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """interactions.csv, items.csv and a tiny BERT folder. Tests only read it."""
    folder = tmp_path_factory.mktemp("world")
    toy.write_csv(folder, ratings=True)
    toy.tiny_bert(folder / "bert")
    return folder
