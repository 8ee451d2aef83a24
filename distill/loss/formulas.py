"""Divergences between a teacher's distribution p and a student's q, each with its gradient in the student's logits.

Every function takes (q, p, log_q, log_p, beta), all (rows, outcomes) but beta, and returns (value (rows,), gradient
(rows, outcomes)). With g = dD/dq the gradient is q * (g - sum(q * g)). The logarithms may be overwritten.

    forward_kl          KL(p || q)
    reverse_kl          KL(q || p)
    jensen_shannon      b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q        (Agarwal et al. 2024, GKD)
    skewed_forward_kl   KL(p || b p + (1 - b) q)                                      (Ko et al. 2024, DistiLLM)
    skewed_reverse_kl   KL(q || b q + (1 - b) p)                                      (Ko et al. 2024, DistiLLM)
    adaptive_kl         forward and reverse KL, weighted by the gap on p's head and on its tail  (Wu et al. 2025, AKL)
    total_variation     half of sum |p - q|                                           (Wen et al. 2023, f-distill)
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from distill.settings import Divergence

Formula: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

_TINY = torch.finfo(torch.float32).tiny  # below it a mixture of p and q has no logarithm, and both are as good as 0
_HEAD = 0.5  # of the teacher's mass is its head


def forward_kl(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return KL(p || q), its gradient q - p."""
    return torch.linalg.vecdot(p, log_p.sub_(log_q)), q - p


def reverse_kl(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return KL(q || p)."""
    ratio = log_q.sub_(log_p)
    value = torch.linalg.vecdot(q, ratio)
    return value, ratio.sub_(value[:, None]).mul_(q)


def jensen_shannon(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the generalised Jensen-Shannon divergence, 0 < beta < 1."""
    log_m = (beta * p).add_(q, alpha=1 - beta).clamp_(min=_TINY).log_()
    of_p = torch.linalg.vecdot(p, log_p.sub_(log_m))
    ratio = log_q.sub_(log_m)
    of_q = torch.linalg.vecdot(q, ratio)
    return beta * of_p + (1 - beta) * of_q, ratio.sub_(of_q[:, None]).mul_(q).mul_(1 - beta)


def skewed_forward_kl(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return KL(p || m) with m = beta p + (1 - beta) q."""
    if not beta:  # m would lose what q cannot hold, and forward_kl keeps it in logarithms
        return forward_kl(q, p, log_q, log_p, beta)
    m = (beta * p).add_(q, alpha=1 - beta).clamp_(min=_TINY)
    value = torch.linalg.vecdot(p, log_p.sub_(torch.log(m, out=log_q)))
    pulled = (p / m).mul_(q).mul_(beta - 1)  # q * g
    return value, pulled.sub_(q * pulled.sum(-1, keepdim=True))


def skewed_reverse_kl(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return KL(q || m) with m = beta q + (1 - beta) p."""
    if not beta:
        return reverse_kl(q, p, log_q, log_p, beta)
    m = (beta * q).add_(p, alpha=1 - beta).clamp_(min=_TINY)
    ratio = log_q.sub_(torch.log(m, out=log_p))
    value = torch.linalg.vecdot(q, ratio)
    pulled = ratio.sub_(torch.div(q, m, out=m), alpha=beta).mul_(q)
    return value, pulled.sub_(q * pulled.sum(-1, keepdim=True))


def adaptive_kl(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return forward and reverse KL, weighted by sum |p - q| over the teacher's head and over its tail.

    The head is the smallest set of the likeliest outcomes with half of the mass; the weights carry no gradient.
    """
    gap = (p - q).abs_()
    head = torch.where(p >= _head(p), gap, 0).sum(-1)
    tail = gap.sum(-1) - head
    weight = torch.where(head + tail > 0, head / (head + tail).clamp(min=_TINY), 0.5)
    ratio = log_q.sub_(log_p)
    of_p, of_q = -torch.linalg.vecdot(p, ratio), torch.linalg.vecdot(q, ratio)
    gradient = ratio.sub_(of_q[:, None]).mul_(q).mul_((1 - weight)[:, None])
    return weight * of_p + (1 - weight) * of_q, gradient.add_(torch.sub(q, p, out=gap).mul_(weight[:, None]))


def total_variation(q: Tensor, p: Tensor, log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return half of the L1 distance; its gradient takes the sign of 0 as 0."""
    difference = torch.sub(q, p, out=log_q)
    value = difference.abs().sum(-1) / 2
    pulled = difference.sign_().mul_(q).div_(2)
    return value, pulled.sub_(q * pulled.sum(-1, keepdim=True))


FORMULAS: dict[Divergence, Formula] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "adaptive_kl": adaptive_kl,
    "total_variation": total_variation,
}


def _head(p: Tensor) -> Tensor:
    """Return the smallest probability that belongs to the head, (rows, 1)."""
    likeliest = p.topk(min(64, p.shape[-1]), -1).values
    short = likeliest.sum(-1) < _HEAD
    if not short.any():
        return _where_reached(likeliest)
    least = torch.empty_like(p[:, :1])
    least[~short] = _where_reached(likeliest[~short])
    least[short] = _where_reached(p[short].sort(-1, descending=True).values)
    return least


def _where_reached(descending: Tensor) -> Tensor:
    before = (descending.cumsum(-1) < _HEAD).sum(-1, keepdim=True)
    return descending.gather(-1, before.clamp(max=descending.shape[-1] - 1))
