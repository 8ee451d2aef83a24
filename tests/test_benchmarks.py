"""The benchmark of drift: contenders of other environments, and those that are not there."""

import subprocess
import sys

from benchmarks import contenders, drift


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
