"""benchmarks/hlo.py: collectives of real programs, and the ways in which XLA writes groups."""

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from benchmarks import hlo
from kd_jax.devices.sharding import make_mesh

# Texts as jaxlib 0.10 and 0.12 write them, with the devices in a group.
GROUPS = {
    "{{0,1,2,3},{4,5,6,7}}": 4,
    "{{0},{1},{2},{3},{4},{5},{6},{7}}": 1,
    "[4,2]<=[8]": 2,
    "[2,4]<=[4,2]T(1,0)": 4,
    "mesh['data'=2,'model'=4] {'model'}": 4,
    "mesh['data'=2,'model'=4] {'model','data'}": 8,
    "mesh['data'=8,'model'=1] {'model'}": 1,
    "mesh['data'=2,'model'=8] {'data','model':(2)4}": 8,
    "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}": 4,
}


@pytest.mark.parametrize("written", GROUPS)
def test_groups_are_read_in_every_form(written):
    text = f"""HloModule jit_f, num_partitions=8

ENTRY %main (x: f32[3,5]) -> f32[3,5] {{
  %x = f32[3,5] parameter(0)
  ROOT %psum.1 = f32[3,5] all-reduce(%x), replica_groups={written}, to_apply=%add
}}"""
    group = GROUPS[written]
    found = [(one["devices"], one["bytes"]) for one in hlo.collectives(text)]
    assert found == ([(group, 60 * 2 * (group - 1) / group)] if group > 1 else [])


@pytest.mark.parametrize(("axes", "group"), [("data", 2), ("model", 4), (("data", "model"), 8)])
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather"])
def test_programs_of_a_mesh(axes, group, kind):
    mesh = make_mesh(2, 4)
    spec = PartitionSpec("data", "model")
    function = {
        "all-reduce": lambda x: lax.psum(x, axes),
        "all-gather": lambda x: lax.all_gather(x, axes, tiled=True),
    }[kind]
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
    )
    values = jax.device_put(np.ones((8, 16), np.float32), jax.NamedSharding(mesh, spec))
    text = jax.jit(mapped).lower(values).compile().as_text()
    (found,) = hlo.collectives(text)
    part = 4 * 4 * 4  # bytes on a device
    sent = 2 * part * (group - 1) / group if kind == "all-reduce" else part * (group - 1)
    assert (found["kind"], found["devices"], found["times"]) == (kind, group, 1)
    assert found["bytes"] == pytest.approx(sent)


def test_a_sum_that_xla_shards_itself():
    mesh = make_mesh(2, 4)
    rows = jax.NamedSharding(mesh, PartitionSpec("model"))
    values = jax.device_put(np.ones((8, 16), np.float32), rows)
    whole = jax.jit(lambda x: x.sum(0), out_shardings=jax.NamedSharding(mesh, PartitionSpec()))
    (found,) = hlo.collectives(whole.lower(values).compile().as_text())
    assert (found["kind"], found["devices"]) == ("all-reduce", 4)
    assert found["bytes"] == pytest.approx(16 * 4 * 2 * 3 / 4)
