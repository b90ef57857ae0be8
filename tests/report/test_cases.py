"""Reports that misled once, where they are at hand; test_page.py has some of each kind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax.experiment import roles
from kd_jax.report.headline import headline
from kd_jax.report.page import write

CASES = Path(__file__).parents[3] / "shared" / "cases"
LEGEND = roles.legend()
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")


def of(case, name):
    return json.loads((CASES / case / name).read_text())


def test_every_headline_names_popularity():
    rate = headline(of("headline-silent-on-popularity", "rate-metrics.json"), LEGEND)
    assert rate.startswith("The distilled student is worse than the popularity baseline")
    assert "log loss .5688 against .2644" in rate
    assert "lowers log loss by 0.9 %" in rate and "0.0 % (95 % CI 0.0 % to 0.0 %)" in rate
    tiny = headline(of("headline-silent-on-popularity", "tiny-base-metrics.json"), LEGEND)
    assert "opular" in tiny and "from .0004 to .0055" in tiny
    assert "at least +366.0 %" in tiny and "1,288" not in tiny


def test_no_name_crosses_the_whisker_of_another_model(tmp_path):
    (tmp_path / "report").mkdir()
    shutil.copy(CASES / "cost-plot-label/metrics.json", tmp_path / "report")
    script = CASES / "cost-plot-label/repro.py"
    done = subprocess.run(
        [sys.executable, str(script), str(write(tmp_path, LEGEND))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "crossed names: 0" in done.stdout
