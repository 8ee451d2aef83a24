"""The loss of a tile in one Triton kernel: its logits are read three times and written once, whatever the divergence.

Does what distill.loss.tile.loss_of_rows does, which stays the reference, for final states of a teacher or none, in
float32. One program a row goes over the vocabulary in blocks: first the logarithms of the sums of exponentials
(online), then the divergence and what its gradient needs of the whole row, then the gradient, in place of the student's
logits.

Shapes: c tokens, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Arguments of Triton's functions are pointers and blocks, which Python has no types for.

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill.loss.tile import Hidden, Work
from distill.settings import Divergence

BLOCK = 4096  # of the vocabulary, in a program's registers at once
_WARPS = 8
_KINDS: dict[Divergence, int] = {
    "forward_kl": 0,
    "reverse_kl": 1,
    "jensen_shannon": 2,
    "skewed_forward_kl": 3,
    "skewed_reverse_kl": 4,
    "total_variation": 5,
}
_PLAIN: dict[Divergence, Divergence] = {"skewed_forward_kl": "forward_kl", "skewed_reverse_kl": "reverse_kl"}


def takes(work: Work, kind: Divergence, dtype: torch.dtype) -> bool:
    """Return whether there is a kernel for this; what there is none for is worked out by plain torch."""
    teacher = work.teacher
    whole = teacher is None or (isinstance(teacher, Hidden) and teacher.head.softcap is None)
    return whole and kind in _KINDS and work.head.softcap is None and dtype == torch.float32


def loss_of_rows(work: Work, kind: Divergence, logits: list[Tensor], rows: slice) -> Tensor:
    """Turn the student's logits (c, V) of some rows into the gradient; returns (divergence, cross entropy, 0), (3,)."""
    scores, others = logits[0], logits[-1]
    targets = work.target_weights if work.targets is None else work.targets  # not read where there are none
    found = scores.new_zeros(3, len(scores))
    if len(scores):
        _row[(len(scores),)](
            scores,
            others,
            found,
            work.divergence_weights[rows],
            targets[rows],
            work.target_weights[rows],
            scores.shape[1],
            scores.stride(0),
            others.stride(0),
            1 / work.temperature,
            work.beta,
            KIND=_KINDS[kind if work.beta else _PLAIN.get(kind, kind)],
            TAUGHT=work.teacher is not None,
            TARGETS=work.targets is not None,
            WARM=work.temperature != 1,
            BLOCK=min(BLOCK, triton.next_power_of_2(scores.shape[1])),
            num_warps=_WARPS,
        )
    return found.double().sum(1)


@triton.jit
def _row(
    scores,  # (c, V) logits of the student, in place of which the gradient comes
    others,  # (c, V) logits of the teacher
    found,  # (3, c) divergence, cross entropy, each with its weight, and 0
    weights,  # (c,) of the divergence
    targets,  # (c,)
    target_weights,  # (c,)
    vocabulary,
    stride,
    stride_of_others,
    inverse,  # of the temperature
    beta,
    KIND: tl.constexpr,
    TAUGHT: tl.constexpr,
    TARGETS: tl.constexpr,
    WARM: tl.constexpr,  # the temperature is not 1
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    mine, theirs = scores + row * stride, others + row * stride_of_others
    at = tl.arange(0, BLOCK)
    most_q, sum_q = _normaliser(mine, vocabulary, inverse, BLOCK)
    most_q1, sum_q1 = most_q, sum_q
    if TARGETS and WARM:  # cross entropy is at temperature 1
        most_q1, sum_q1 = _normaliser(mine, vocabulary, 1.0, BLOCK)
    if TAUGHT:
        most_p, sum_p = _normaliser(theirs, vocabulary, inverse, BLOCK)
        values, pulls = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for first in range(0, vocabulary, BLOCK):
            inside = first + at < vocabulary
            log_q = tl.load(mine + first + at, mask=inside, other=0.0) * inverse - most_q - sum_q
            log_p = tl.load(theirs + first + at, mask=inside, other=0.0) * inverse - most_p - sum_p
            value, pull = _element(log_q, log_p, beta, KIND)
            values += tl.where(inside, value, 0.0)
            pulls += tl.where(inside, pull, 0.0)
        whole = tl.sum(pulls, 0)
        if KIND == 0:  # p adds up to 1
            whole = -1.0
        weight = tl.load(weights + row)
        tl.store(found + row, tl.sum(values, 0) * weight)
    if TARGETS:
        target = tl.load(targets + row)
        weight_of_target = tl.load(target_weights + row)
        log_q1 = tl.load(mine + target) - most_q1 - sum_q1
        tl.store(found + tl.num_programs(0) + row, -log_q1 * weight_of_target)
    tl.debug_barrier()  # the target's logit is read before a neighbour overwrites it
    for first in range(0, vocabulary, BLOCK):
        inside = first + at < vocabulary
        logits = tl.load(mine + first + at, mask=inside, other=0.0)
        gradient = tl.zeros([BLOCK], tl.float32)
        if TAUGHT:
            log_q = logits * inverse - most_q - sum_q
            log_p = tl.load(theirs + first + at, mask=inside, other=0.0) * inverse - most_p - sum_p
            value, pull = _element(log_q, log_p, beta, KIND)
            gradient += (pull - tl.exp(log_q) * whole) * (weight * inverse)
        if TARGETS:
            said = tl.where(first + at == target, 1.0, 0.0)
            gradient += (tl.exp(logits - most_q1 - sum_q1) - said) * weight_of_target
        tl.store(mine + first + at, gradient, mask=inside)


@triton.jit
def _normaliser(logits, vocabulary, inverse, BLOCK: tl.constexpr):
    """Return (largest, log sum exp(logits * inverse - largest)), apart: their sum would lose what is near 0.

    Each lane keeps its own largest and its own sum until the end.
    """
    at = tl.arange(0, BLOCK)
    largest, total = tl.full([BLOCK], -float("inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + at < vocabulary
        here = tl.load(logits + first + at, mask=inside, other=0.0) * inverse
        larger = tl.where(inside, tl.maximum(largest, here), largest)
        # A lane that has seen nothing yet has a sum of 0, which stays.
        kept = total * tl.exp(tl.where(total > 0, largest - larger, 0.0))
        total = tl.where(inside, kept + tl.exp(tl.where(inside, here - larger, 0.0)), total)
        largest = larger
    most = tl.max(largest, 0)
    return most, tl.log(tl.sum(total * tl.exp(tl.where(total > 0, largest - most, 0.0)), 0))


@triton.jit
def _element(log_q, log_p, beta, KIND: tl.constexpr):
    """Return (what adds up to the divergence, q * dD/dq but for what is the same in all of a row times q)."""
    q, p = tl.exp(log_q), tl.exp(log_p)
    if KIND == 0:
        value = p * (log_p - log_q)
        pull = -p
    elif KIND == 1:
        value = q * (log_q - log_p)
        pull = value
    elif KIND == 2:
        log_m = tl.log(tl.maximum(beta * p + (1 - beta) * q, 1.1754944e-38))
        pull = (1 - beta) * q * (log_q - log_m)
        value = beta * p * (log_p - log_m) + pull
    elif KIND == 3:
        m = tl.maximum(beta * p + (1 - beta) * q, 1.1754944e-38)
        value = p * (log_p - tl.log(m))
        pull = (beta - 1) * (p / m) * q
    elif KIND == 4:
        m = tl.maximum(beta * q + (1 - beta) * p, 1.1754944e-38)
        ratio = log_q - tl.log(m)
        value = q * ratio
        pull = q * (ratio - beta * (q / m))
    else:
        gap = q - p
        value = tl.abs(gap) / 2
        pull = tl.where(gap > 0, q, tl.where(gap < 0, -q, 0.0)) / 2
    return value, pull
