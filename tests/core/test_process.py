"""Start of a command."""

import os
import subprocess
import sys

import pytest

from helpers.runs import ROOT

CODE = """
import os
from importlib.metadata import version
import jax, jax.numpy as jnp
from kd_jax.core import process
process.compile_quickly()
assert jax.config.read("jax_disable_most_optimizations") == QUICK
own = "--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else ""
assert os.environ["XLA_FLAGS"] == own + GIVEN
assert float(jax.jit(lambda x: jnp.exp(x).sum())(jnp.zeros(3))) == 3
"""


@pytest.mark.parametrize("given", [None, "0"])
def test_programs_compile_quickly_and_what_the_environment_sets_is_kept(given):
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if given is not None:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = given
    code = CODE.replace("GIVEN", repr(flags)).replace("QUICK", str(given is None))
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
