"""The benchmarks: contenders of other environments, those that are not there, what a probe holds, and losses."""

import subprocess
import sys

import pytest
import torch

from benchmarks import contenders, drift, gpu, losses, probe
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


@pytest.mark.parametrize("kind", ["forward_kl", "jensen_shannon"])
def test_the_contenders_of_a_loss_work_out_the_same(kind: str) -> None:
    made = {"ours": losses.one_pass, "naive": losses.naive}
    if kind == "forward_kl":
        made["two passes"] = losses.two_passes
    found = {}
    for name, contender in made.items():
        given = losses.inputs(tokens=40, vocabulary=300, width=16)
        value = contender(kind)(*given)
        value.backward()  # type: ignore[no-untyped-call]
        found[name] = [value.detach(), given[0].grad, given[1].grad]
    for other in found.values():
        for ours, theirs in zip(found["ours"], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_benchmark_says_so_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "sees no CUDA device: nothing was measured" in capsys.readouterr().out
