import os
import sys
from importlib.metadata import version
from pathlib import Path

# Before numpy starts: waiting threads of its BLAS keep a core busy that the other worker needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before jax starts: eight virtual devices for the sharding tests; the other tests use the first
# one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # as kd_jax.core.process does
# Programs are compiled once for all tests and the processes they start; most of the time here is
# compilation.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Tests compile for longer than they compute: without optimisation a whole run of the toy data takes
# half of the time.
# XLA ends the process at a flag that it does not know: jaxlib 0.12 has not the last one.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

import absl.logging
import jax
import pytest

from helpers import toy

jax.config.update("jax_numpy_rank_promotion", "raise")

# uvicorn configures logging, which closes all handlers that there are, and absl's handler closes
# its stream with it if that is not the stderr of that moment: under capsys, pytest's own capture.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Fixtures of a module that run the pipeline. One worker runs all tests of the module that use them.
RUNS = {"big", "finished", "measured", "run", "trained"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if RUNS & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """interactions.csv, items.csv and a tiny BERT folder. Tests only read it."""
    folder = tmp_path_factory.mktemp("world")
    toy.write_csv(folder, ratings=True)
    toy.tiny_bert(folder / "bert")
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_programs_of_other_modules():
    """Compiled programs of a module take memory, and are not used by the next one."""
    yield
    jax.clear_caches()
