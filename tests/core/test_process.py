"""Start of a command."""

import os
import subprocess
import sys

from helpers.runs import ROOT

CODE = """
import os
import jax, jax.numpy as jnp
from kd_jax.core import process
process.compile_quickly()
assert jax.config.read("jax_disable_most_optimizations")
assert os.environ["XLA_FLAGS"].endswith(GIVEN)
assert float(jax.jit(lambda x: jnp.exp(x).sum())(jnp.zeros(3))) == 3
"""


def test_programs_that_compile_quickly_compute_the_same_and_keep_flags_that_were_given():
    given = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"}
    code = CODE.replace("GIVEN", repr(given))
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
