"""The benchmarks: contenders of other environments, those that are not there, what a probe holds, and losses."""

import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import contenders, drift, gpu, losses, material, probe, steppers, steps, turns
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


@pytest.fixture(scope="module")
def rows_to_step_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny models and rows of several lengths, 4 a step."""
    folder = tmp_path_factory.mktemp("material")
    lengths = [12, 30, 17, 9] * 2
    material.make(folder, lengths, material.Size(vocabulary=320, student=(64, 96, 1), teacher=(64, 128, 2)))
    return folder


def test_a_packed_step_of_ours_and_a_padded_one_of_plain_torch_learn_the_same(rows_to_step_on: Path) -> None:
    losses_of = {}
    for name in ("ours, live", "plain torch"):
        with closing(steppers.CONTENDERS[name](rows_to_step_on, 4)) as work:  # type: ignore[type-var]
            losses_of[name] = list(islice(work, 3))
    dist.destroy_process_group()
    ours, plain = losses_of.values()
    assert ours == pytest.approx(plain, rel=1e-4)  # the third after two updates
    assert ours[0] != pytest.approx(ours[2], rel=1e-6)  # on the same rows


def test_delivery_makes_the_batches_of_all_steps(rows_to_step_on: Path) -> None:
    assert list(islice(steppers.delivery(rows_to_step_on, 4), 2)) == [2, 2]


def test_contenders_take_turns_and_those_that_do_not_run_are_named_with_the_reason() -> None:
    sizes = ["forward_kl", "8", "50", "4"]
    commands = {"naive": ["benchmarks.losses", "naive", *sizes], "unheard of": ["benchmarks.nowhere"]}
    with turns.in_turns(commands, 2) as (found, absent):
        assert "nowhere" in absent["unheard of"]
        assert len(found["naive"].rounds) == 2
        assert found["naive"].ratio(found["naive"]) == 1
        assert found["naive"].first["value"] == pytest.approx(found["naive"].rounds[1]["value"])
    assert found["naive"].process.returncode is not None


def test_a_tail_of_long_rows_costs_who_pads_more_than_twice_the_tokens() -> None:
    lengths = steps.long_tail(8 * 100)
    padded = sum(8 * max(lengths[row] for row in rows) for rows in steppers.groups(len(lengths), 8))
    assert 2 < padded / sum(lengths) < 4
    assert min(lengths) > material.PROMPT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_benchmark_says_so_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "sees no CUDA device: nothing was measured" in capsys.readouterr().out
