"""What the student minimises: forward KL to the teacher's top-k, and cross entropy, summed over tokens.

Shapes: A answer tokens, P prompt tokens, N either of them, k kept tokens, V vocabulary, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 2**24  # logits in memory at once: tokens are projected onto the vocabulary in blocks of BLOCK // V
Head = Callable[[Tensor], Tensor]  # (N, D) -> (N, V)


def topk_forward_kl(logits: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """Return sum over tokens of KL(teacher || student) on the teacher's k likeliest tokens and the tail as one.

    logits (A, V), ids and logprobs (A, k), tail (A,). The tail is one further outcome, with the teacher's
    probability `tail` and the student's remaining mass: dropping it would bias the student towards the top-k.
    """
    student = torch.log_softmax(logits.float(), -1)  # (A, V)
    kept = student.gather(-1, ids)  # (A, k)
    loss = (logprobs.exp() * (logprobs - kept)).sum()
    if ids.shape[-1] == logits.shape[-1]:
        return loss  # everything is kept: there is no tail
    # The student's mass outside the k, as a log-sum-exp over the others: 1 - sum(exp(kept)) would cancel.
    rest = student.scatter(-1, ids, float("-inf")).logsumexp(-1)  # (A,)
    return loss + (torch.xlogy(tail, tail) - tail * rest).sum()


def answer_losses(
    hidden: Tensor, head: Head, answer: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (forward KL, cross entropy), each summed over the answer tokens; hidden (A, D), answer (A,)."""

    def losses(h: Tensor, y: Tensor, i: Tensor, lp: Tensor, r: Tensor) -> Tensor:
        logits = head(h)
        return torch.stack([topk_forward_kl(logits, i, lp, r), F.cross_entropy(logits.float(), y, reduction="sum")])

    kl, cross_entropy = _in_blocks(losses, head, hidden, answer, ids, logprobs, tail)
    return kl, cross_entropy


def prompt_loss(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Return cross entropy summed over the prompt tokens; hidden (P, D), labels (P,)."""

    def loss(h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), y, reduction="sum")[None]

    return _in_blocks(loss, head, hidden, labels)[0]


def _in_blocks(losses: Callable[..., Tensor], head: Head, hidden: Tensor, *rest: Tensor) -> Tensor:
    vocabulary = head(hidden[:1].detach()).shape[-1]
    size = max(64, BLOCK // vocabulary)
    if len(hidden) <= size:
        return losses(hidden, *rest)
    # The logits of a block are made again in the backward pass instead of being kept for every block.
    parts = zip(*(torch.split(tensor, size) for tensor in (hidden, *rest)), strict=True)
    blocks: list[Tensor] = [checkpoint(losses, *part, use_reentrant=False) for part in parts]
    return torch.stack(blocks).sum(0)
