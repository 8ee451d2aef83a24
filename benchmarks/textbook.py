"""The divergences as a textbook writes them, over whole log-probabilities, for autograd: what ours is measured by."""

import torch
from torch import Tensor

from distill.settings import Divergence


def divergence_of(kind: Divergence, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Return the divergence of each token, (N,), of a teacher's log-probabilities and a student's, each (N, V)."""
    p, q = log_p.exp(), log_q.exp()

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a > 0, a * (a.log() - b.log()), 0).sum(-1)

    forward, reverse = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
    if kind == "forward_kl":
        return forward
    if kind == "reverse_kl":
        return reverse
    if kind == "jensen_shannon":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    if kind == "skewed_forward_kl":
        return kl(p, beta * p + (1 - beta) * q)
    if kind == "skewed_reverse_kl":
        return kl(q, beta * q + (1 - beta) * p)
    if kind == "total_variation":
        return (p - q).abs().sum(-1) / 2
    gap, order = (p - q).abs().detach(), p.argsort(-1, descending=True)
    before = p.gather(-1, order).cumsum(-1) - p.gather(-1, order)
    in_head = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < 0.5)
    head, tail = (gap * in_head).sum(-1), (gap * ~in_head).sum(-1)
    weight = head / (head + tail)
    return weight * forward + (1 - weight) * reverse


def outcomes(log_probabilities: Tensor, ids: Tensor) -> Tensor:
    """Return the kept tokens' log-probabilities and that of all others together, (N, k + 1)."""
    rest = log_probabilities.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([log_probabilities.gather(-1, ids), rest], -1)
