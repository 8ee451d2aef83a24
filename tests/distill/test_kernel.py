"""The loss's Triton kernel, run by Triton's interpreter, beside plain torch.

Triton decides for its interpreter when it is first imported: the claims below are tested in a process of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_check
from distill.divergence import Head, Hidden, TopK, losses
from distill.errors import InputError
from distill.loss.formulas import FORMULAS
from distill.settings import Divergence, LossKernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FEW = gpu_check.Size(tokens=11, vocabulary=149, width=8, teacher_width=12, kept=5)
KINDS = [kind for kind in FORMULAS if kind != "adaptive_kl"]  # whose head of the teacher is no matter of one reading


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module, with blocks that a row has several of; it keeps how often it ran."""
    from distill.loss import kernel

    monkeypatch.setattr(kernel, "BLOCK", 64)
    monkeypatch.setattr(kernel, "ran", [], raising=False)
    once = kernel.loss_of_rows

    def counted(*given: object) -> Tensor:
        kernel.ran.append(given)  # type: ignore[attr-defined]
        return once(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "loss_of_rows", counted)
    return kernel


def made(
    kernel: LossKernel,
    kind: Divergence,
    *,
    scale: float = 1.0,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, its gradient in the states, in the head), of a few tokens."""
    generator = torch.Generator().manual_seed(0)
    states, head, others, layer = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((11, 8), (149, 8), (11, 12), (149, 12))
    )
    states = (scale * states).requires_grad_()
    head.requires_grad_()
    teacher = Hidden(scale * others, Head(layer))
    found = losses(states, Head(head, bias), teacher, kind=kind, kernel=kernel, **options)  # type: ignore[arg-type]
    found.total.backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert head.grad is not None
    return found.total.detach(), states.grad, head.grad


@pytest.mark.skipif(not INTERPRETED, reason="run by the test below with TRITON_INTERPRET=1")
@pytest.mark.usefixtures("kernel")
class TestKernel:
    def test_loss_and_gradients_are_those_of_float64_for_every_divergence_and_dtype(self, kernel: ModuleType) -> None:
        found = [check for check in gpu_check.checks("cpu", FEW, kernels=["triton"]) if "hidden" in check.teacher]
        assert len(found) == 2 * len(FORMULAS)
        assert [str(check) for check in found if not check.right] == []
        assert len(kernel.ran) == 2 * len(KINDS)

    @pytest.mark.parametrize("beta", [0.0, 0.3])
    @pytest.mark.parametrize("kind", KINDS)
    def test_temperature_divides_the_divergence_and_not_the_cross_entropy(self, kind: Divergence, beta: float) -> None:
        if kind == "jensen_shannon" and not beta:
            pytest.skip("is 0 always")
        targets = torch.arange(11) * 7
        options = {"temperature": 2.0, "beta": beta, "targets": targets, "target_weights": torch.linspace(0, 1, 11)}
        for ours, plain in zip(made("triton", kind, **options), made("torch", kind, **options), strict=True):
            torch.testing.assert_close(ours, plain, rtol=2e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_extreme_logits_and_tokens_that_are_never_said_stay_numbers(self, kind: Divergence) -> None:
        never = torch.zeros(149)
        never[::3] = float("-inf")
        exact = made("torch", kind, scale=40.0, bias=never.double(), dtype=torch.float64)
        by = {name: made(name, kind, scale=40.0, bias=never) for name in ("torch", "triton")}  # type: ignore[arg-type]
        for ours, plain, right in zip(by["triton"], by["torch"], exact, strict=True):
            assert (ours - right).norm() <= 2 * (plain - right).norm() + 1e-6 * right.norm() + 1e-9

    def test_cross_entropy_alone_and_no_token_at_all(self, kernel: ModuleType) -> None:
        for tokens in (3, 0):
            states, head = torch.ones(tokens, 8, requires_grad=True), torch.arange(149 * 8.0).view(149, 8) / 1000
            by = {
                name: losses(
                    states, Head(head), None, targets=torch.zeros(tokens, dtype=torch.int64), kernel=name
                ).total
                for name in ("torch", "triton")
            }  # type: ignore[arg-type]
            torch.testing.assert_close(by["triton"], by["torch"])
        assert len(kernel.ran) == 1

    def test_what_it_does_not_cover_is_worked_out_by_torch(self, kernel: ModuleType) -> None:
        states, head = torch.ones(2, 8, requires_grad=True), torch.arange(149 * 8.0).view(149, 8) / 1000
        kept = TopK(torch.tensor([[1, 2], [3, 4]]), torch.full((2, 2), -1.0), torch.full((2,), 0.26))
        for layer, teacher in ((Head(head), kept), (Head(head, None, 30.0), Hidden(states.detach(), Head(head)))):
            by = {name: losses(states, layer, teacher, kernel=name).total for name in ("torch", "triton")}  # type: ignore[arg-type]
            assert by["triton"] == by["torch"]
        assert not kernel.ran


@pytest.mark.skipif(INTERPRETED or not find_spec("triton"), reason="this is that run, or Triton is not installed")
def test_every_claim_above_holds_in_a_process_with_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_the_kernel_without_a_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r'training.loss_kernel = "triton" on .cpu.: it needs a CUDA device'):
        made("triton", "forward_kl")
