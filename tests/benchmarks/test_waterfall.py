"""benchmarks/waterfall.py times functions by their names, which have to exist."""

import pytest

from benchmarks import waterfall


@pytest.mark.parametrize(("stage", "module", "name"), waterfall.STAGES)
def test_every_stage_has_its_function(stage, module, name):
    owner, last = waterfall.owner_of(module, name)
    assert callable(getattr(owner, last)), stage


def test_a_stage_is_without_those_inside_it():
    clock = waterfall.Clock()
    clock.open += [[0.0, 0.0], [0.0, 0.0]]
    clock.close("inner", 3.0, 2.0)
    clock.close("outer", 5.0, 4.5)
    assert clock.rows["inner"][:3] == [3.0, 2.0, 1]
    assert clock.rows["outer"][:3] == [2.0, 2.5, 1]
