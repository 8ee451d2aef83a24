"""The benchmarks: contenders of other environments, those that are not there, and what a probe holds."""

import subprocess
import sys

from benchmarks import contenders, drift, probe
from monitoring.settings import ProbeSettings


def test_a_contender_is_measured_by_another_interpreter_from_its_file_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-I", contenders.__file__, "numpy + scipy", "500"], capture_output=True, text=True, check=True
    )
    assert 0 < float(done.stdout) < 60


def test_a_contender_that_is_not_installed_has_a_row_that_says_so() -> None:
    measured = {name: [0.5, 2.0] for name in contenders.CONTENDERS if name != "NannyML"}
    lines = drift.section([10, 20], measured, "nannyml not installed").splitlines()
    assert "| ours | 0.500 (1.0) | 2.000 (1.0) |" in lines
    assert "| NannyML | not installed | not installed |" in lines
    assert any("nannyml not installed" in line for line in lines[:3])


def test_the_probe_holds_more_where_less_was_lost_and_hardly_at_the_margin() -> None:
    shares = [probe.held(0.9, 0.9 - lost, 300, 0, ProbeSettings()) for lost in (0.0, 0.05, 0.1)]
    assert shares[0] > 0.4 > shares[1] > shares[2]
    assert shares[2] <= 0.08
