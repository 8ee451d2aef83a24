"""The benchmarks: contenders of other environments, those that are not there, what a probe holds, and losses."""

import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers

from benchmarks import (
    contenders,
    drift,
    gpu,
    gpu_check,
    gpu_steps,
    losses,
    material,
    policy,
    probe,
    steppers,
    steps,
    turns,
)
from distill import divergence
from distill.teachers.protocol import Signal
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


SMALL = gpu_steps.Size(vocabulary=64, width=16, layers=2, heads=2, head_width=8, inner=24, teacher_width=12, rows=2,
                       tokens=8)  # fmt: skip


def test_the_whole_step_of_a_device_is_the_same_with_ours_and_with_whole_logits() -> None:
    steps_of = {
        name: gpu_steps.stepper(losses.CONTENDERS[name]("jensen_shannon"), SMALL, "cpu", torch.float32)
        for name in ("ours", "naive")
    }
    taken = {name: [once() for _ in range(3)] for name, once in steps_of.items()}
    assert taken["ours"] == pytest.approx(taken["naive"], rel=1e-4)
    assert taken["ours"][2] < taken["ours"][0]


def test_the_flop_of_a_step_are_six_a_weight_and_token() -> None:
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24}
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(vocab_size=64, hidden_size=16, num_hidden_layers=2, tie_word_embeddings=True, **config)
    )
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    attention, teacher = 6 * 2 * 16 * 8, 2 * 64 * 12
    assert SMALL.flops == 16 * (6 * matrices + attention + teacher)


def test_a_contender_that_does_not_run_on_a_device_is_said_in_its_table() -> None:
    ran = {"ms": 2.0, "extra_mb": 10.0, "tokens_per_second": 2048.0, "mfu": 0.5}
    ours, other = ({"divergence": "forward_kl", "contender": name, "tokens": 4} for name in ("ours", "TRL"))
    records = [{**ours, **ran}, {**other, "failed": "ImportError: no TRL"}]
    text = gpu.markdown("H", [], {"Loss alone": records})
    assert "| forward_kl | ours | 4 | 2.0 | 2,048 | 10 | 0.50 |" in text
    assert "| forward_kl | TRL | 4 | ImportError: no TRL | | | |" in text
    assert gpu.complaints([], {"Loss alone": records}) == []
    records[0]["failed"] = "RuntimeError: no such kernel"
    assert gpu.complaints([], {"Loss alone": records}) == [
        "did not run: Loss alone, forward_kl, ours: RuntimeError: no such kernel"
    ]


FEW = gpu_check.Size(tokens=30, vocabulary=61, width=8, teacher_width=12, kept=5)


def test_what_the_gpu_benchmark_checks_holds_on_a_cpu() -> None:
    found = gpu_check.checks("cpu", FEW)
    assert gpu.complaints(found, {}) == []
    assert len({check[:3] for check in found}) == 7 * 2 * 2
    assert [line.split(", relative")[1].split(":")[0] for line in gpu.said(found)] == [
        " to the norm, in float32",
        " to the norm, in bfloat16",
    ]


@pytest.mark.parametrize("fault", [0.0, 1.3, float("nan")])
def test_a_wrong_gradient_of_any_dtype_is_a_complaint_of_the_gpu_benchmark(
    fault: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, project = divergence._add_product, divergence._project

    def wrong(total: torch.Tensor, *given: torch.Tensor, first: bool) -> None:
        add(total, *given, first=first)
        total.mul_(fault)

    def not_as_wide(states: torch.Tensor, head: divergence.Head, out: torch.Tensor) -> torch.Tensor:
        return project(states, head, out).mul_(fault)

    for name, broken in (("_add_product", wrong), ("_project", not_as_wide)):
        with monkeypatch.context() as patch:
            patch.setattr(divergence, name, broken)
            assert len(gpu.complaints(gpu_check.checks("cpu", FEW), {})) == 7 * 2 * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_benchmark_says_so_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "sees no CUDA device: nothing was measured" in capsys.readouterr().out


@pytest.mark.sglang
@pytest.mark.integration
def test_the_teacher_benchmark_compares_both_ways_on_real_servers(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import teacher

    teacher.main(["--rows", "8", "--rounds", "1", "--width", "64", "--stored", "100"])
    told = capsys.readouterr().out
    for name in ("| top-64 |", "| hidden states, bfloat16 |", "Peak memory of the client", "100 stored rows"):
        assert name in told


def test_the_divergence_that_policies_are_compared_by_is_zero_between_equals_and_grows() -> None:
    def said(first: float) -> Signal:
        ids, logprobs = np.array([[5, 9]], np.int32), np.log([[first, 0.1]]).astype(np.float16)
        return Signal(np.array([5], np.int32), ids, logprobs, np.array([0.9 - first], np.float32))

    apart = [policy._divergence(said(0.8), said(first), 0) for first in (0.8, 0.6, 0.2)]
    assert apart[0] == pytest.approx(0, abs=1e-6)
    assert 0.05 < apart[1] < apart[2]
