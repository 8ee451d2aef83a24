"""The losses against plain torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from distill import divergence
from distill.divergence import answer_losses, prompt_loss, topk_forward_kl

TOKENS, VOCABULARY, WIDTH = 37, 50, 8


@pytest.fixture
def case() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.log_softmax(2 * torch.randn(TOKENS, VOCABULARY, generator=generator), -1)
    return {
        "hidden": torch.randn(TOKENS, WIDTH, generator=generator),
        "head": torch.randn(VOCABULARY, WIDTH, generator=generator),
        "teacher": teacher,
        "answer": teacher.argmax(-1),
    }


def kept(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs, ids = teacher.topk(k)
    return ids, logprobs, (1 - logprobs.exp().sum(-1)).clamp(min=0)


def test_with_the_whole_vocabulary_kept_it_is_the_full_forward_kl(case: dict[str, torch.Tensor]) -> None:
    logits = case["hidden"] @ case["head"].T
    full = F.kl_div(torch.log_softmax(logits, -1), case["teacher"], log_target=True, reduction="sum")
    torch.testing.assert_close(topk_forward_kl(logits, *kept(case["teacher"], VOCABULARY)), full)


def test_the_tail_counts_as_one_more_outcome(case: dict[str, torch.Tensor]) -> None:
    logits = (case["hidden"] @ case["head"].T).double()
    ids, logprobs, tail = kept(case["teacher"].double(), 5)
    student = torch.softmax(logits, -1)
    inside = student.gather(-1, ids)
    outcomes_p = torch.cat([logprobs.exp(), tail[:, None]], -1)
    outcomes_q = torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1)
    expected = (outcomes_p * (outcomes_p.log() - outcomes_q.log())).sum()
    torch.testing.assert_close(topk_forward_kl(logits, ids, logprobs, tail).double(), expected, rtol=1e-6, atol=1e-6)


def test_it_is_zero_when_the_student_is_the_teacher(case: dict[str, torch.Tensor]) -> None:
    loss = topk_forward_kl(case["teacher"], *kept(case["teacher"], 5))
    assert abs(float(loss)) < 1e-4


def test_an_empty_tail_gives_finite_gradients() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    certain = torch.tensor([[0.0, -30.0]])
    topk_forward_kl(logits, torch.tensor([[2, 1]]), certain, torch.zeros(1)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("block", [VOCABULARY * 64, 2**24])
def test_blocks_change_neither_loss_nor_gradient(
    case: dict[str, torch.Tensor], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "BLOCK", block)
    repeat = 5  # 185 tokens: three blocks of 64
    hidden = case["hidden"].repeat(repeat, 1).double().requires_grad_()
    head = case["head"].double().requires_grad_()
    answer = case["answer"].repeat(repeat)
    signal = [part.repeat(repeat, *[1] * (part.dim() - 1)) for part in kept(case["teacher"].double(), 5)]
    kl, ce = answer_losses(hidden, lambda h: h @ head.T, answer, *signal)
    (kl + ce + prompt_loss(hidden, lambda h: h @ head.T, answer)).backward()

    plain = hidden.detach().clone().requires_grad_()
    logits = plain @ head.detach().T
    expected = F.cross_entropy(logits, answer, reduction="sum")
    (topk_forward_kl(logits, *signal) + 2 * expected).backward()
    torch.testing.assert_close(ce, expected, rtol=1e-6, atol=1e-6)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=1e-6, atol=1e-6)
