"""One tile of the loss: from the logits of a few tokens to their loss and the gradient in those logits, in place.

Shapes: c tokens, V vocabulary, k kept tokens, D width of a model.
"""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from distill.loss.aligned import Aligned, by_name, by_rank
from distill.loss.formulas import Formula

_LEAST = -87.0  # log-probability of what float32 cannot hold: a teacher without tail mass costs no infinite loss
_UNDERFLOW = 1e-30  # a tail below it is worked out by itself, in logarithms


class Head(NamedTuple):
    """An output layer: logits = cap(states @ weight.T + bias), cap(x) = softcap * tanh(x / softcap)."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None


class TopK(NamedTuple):
    """A teacher's likeliest tokens; what lies outside is one further outcome, with its mass."""

    ids: Tensor  # (N, k) int64, different ones
    logprobs: Tensor  # (N, k)
    tail: Tensor  # (N,) probability of all others together


class Hidden(NamedTuple):
    """A teacher's states after its final norm, stored or just made, and its output layer over the same vocabulary."""

    states: Tensor  # (N, E)
    head: Head


Teacher: TypeAlias = TopK | Hidden | Aligned


class Work(NamedTuple):
    """What the tiles need beside the student's states; nothing of it takes a gradient."""

    head: Head
    teacher: Teacher | None
    divergence_weights: Tensor
    targets: Tensor | None
    target_weights: Tensor
    formula: Formula
    beta: float
    temperature: float


def loss_of_rows(work: Work, logits: list[Tensor], rows: slice) -> Tensor:
    """Turn the student's logits of some rows into their gradient; returns (divergence, cross entropy, ULD), (3,)."""
    scores, sums = logits[0], logits[0].new_zeros(3, dtype=torch.float64)
    slope = _cap(scores, work.head.softcap)
    q = _normalise(scores)  # from here on scores are log q
    weights = work.target_weights[rows]
    at = None if work.targets is None else work.targets[rows, None]
    if at is not None:
        sums[1] = -torch.dot(scores.gather(-1, at)[:, 0].double(), weights.double())
    if work.teacher is None:
        scores.zero_()
    elif isinstance(work.teacher, Aligned):
        sums[0], sums[2] = _against_aligned(work, work.teacher.part(rows), scores, q, rows)
    else:
        value, gradient = _against(work, work.teacher, scores, q, logits[-1], rows)
        sums[0] = torch.dot(value.double(), work.divergence_weights[rows].double())
        torch.mul(gradient, (work.divergence_weights[rows] / work.temperature)[:, None], out=scores)
    if at is not None:
        scores.addcmul_(q, weights[:, None]).scatter_add_(-1, at, -weights[:, None])
    if slope is not None:
        scores.mul_(slope)
    return sums


def _against_aligned(work: Work, teacher: Aligned, log_q: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return (divergence, ULD) of all the rows; log q becomes their gradient."""
    named, gradient = by_name(teacher, log_q, q, work.formula, work.beta)
    ranked, of_ranks = by_rank(teacher, q)
    weights, by_ranks = work.divergence_weights[rows], teacher.weights.to(q.dtype)
    torch.mul(gradient, weights[:, None], out=log_q).addcmul_(of_ranks, by_ranks[:, None])
    return torch.dot(named.double(), weights.double()), torch.dot(ranked.double(), by_ranks.double())


def _against(
    work: Work, teacher: TopK | Hidden, log_q: Tensor, q: Tensor, others: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """Return divergence (c,) and its gradient in the student's logits over the temperature (c, V); `q` stays."""
    if work.temperature != 1:
        log_q = log_q / work.temperature
        q = _normalise(log_q)
    if isinstance(teacher, TopK):
        return _against_topk(work, teacher, log_q, q, rows)
    _cap(others, teacher.head.softcap)
    if work.temperature != 1:
        others.div_(work.temperature)
    p = _normalise(others)
    return work.formula(q, p, log_q, others, work.beta)


def _against_topk(work: Work, teacher: TopK, log_q: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    ids, log_p = teacher.ids[rows], teacher.logprobs[rows].to(q.dtype)
    kept_q, kept_log_q = q.gather(-1, ids), log_q.gather(-1, ids)
    if ids.shape[-1] == q.shape[-1]:  # everything is kept: there is no tail
        p, log_p = _distribution(log_p)
        value, kept = work.formula(kept_q, p, kept_log_q, log_p, work.beta)
        return value, torch.empty_like(q).scatter_(-1, ids, kept)
    # The others are added up themselves: 1 - sum(kept) would cancel to noise where the student is sure.
    rest = q.scatter(-1, ids, 0.0)
    mass = rest.sum(-1, keepdim=True)  # (c, 1)
    log_mass, share = mass.log(), mass.clone()
    if (faint := mass[:, 0] < _UNDERFLOW).any():
        alone = log_q[faint].scatter(-1, ids[faint], float("-inf"))
        log_mass[faint], rest[faint], share[faint] = alone.logsumexp(-1, keepdim=True), alone.softmax(-1), 1.0
    p, log_p = _distribution(torch.cat([log_p, teacher.tail[rows, None].to(q.dtype).log()], -1))
    value, pull = work.formula(
        torch.cat([kept_q, mass], -1),
        p,
        torch.cat([kept_log_q, log_mass], -1),
        log_p,
        work.beta,
    )
    # What pulls at the tail as a whole pulls at each of its tokens by its share of it.
    return value, rest.mul_(pull[:, -1:] / share).scatter_(-1, ids, pull[:, :-1])


def _distribution(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and log p of log-probabilities that add up to 1 but for what rounding took, as float16 does."""
    log_p = log_p.log_softmax(-1)
    return log_p.exp(), log_p.clamp(min=_LEAST)


def _normalise(logits: Tensor) -> Tensor:
    """Return softmax over the last dimension; the logits become its logarithm."""
    probabilities = logits.softmax(-1)
    # By way of the largest, which cannot underflow: cheaper than a second sum of exponentials.
    logits.sub_(logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log_())
    return probabilities


def _cap(logits: Tensor, softcap: float | None) -> Tensor | None:
    """Cap the logits in place and return the slope of the cap there."""
    if softcap is None:
        return None
    tanh = logits.div_(softcap).tanh_()
    slope = 1 - tanh.square()
    logits.mul_(softcap)
    return slope
