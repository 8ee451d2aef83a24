"""One loss by one contender, in a process of its own; `benchmarks.distill` starts these and lets them take turns.

    python -m benchmarks.losses CONTENDER DIVERGENCE TOKENS VOCABULARY WIDTH

Makes the inputs and prints "ready"; then for each line of its input works out loss and gradients once and prints CPU
seconds, extra peak memory [MB] and the loss as JSON. From hidden states and output layers of student and teacher to
the gradients in the student's: the same work for all.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # hidden, head, teacher's hidden, teacher's head

TOP_K, CHUNK, BETA = 64, 4096, 0.5


def one_pass(kind: str) -> Loss:
    """Ours."""
    from distill.divergence import Head, Hidden, losses

    return lambda h, w, ht, wt: losses(h, Head(w), Hidden(ht, Head(wt)), kind=kind, beta=BETA).total / len(h)  # type: ignore[arg-type]


def top_64(kind: str) -> Loss:
    """Ours, from a teacher's stored top 64 (which are looked up outside of what is measured)."""
    from distill.divergence import Head, TopK, losses

    signals: list[TopK] = []

    def loss(h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        if not signals:
            parts = []
            for states in torch.split(ht, 256):
                logprobs, ids = torch.log_softmax(states @ wt.T, -1).topk(TOP_K, -1)
                parts.append(TopK(ids, logprobs, (1 - logprobs.exp().sum(-1)).clamp(min=0)))
            signals.append(TopK(*(torch.cat(part) for part in zip(*parts, strict=True))))
        return losses(h, Head(w), signals[0], kind=kind, beta=BETA).total / len(h)  # type: ignore[arg-type]

    return loss


def of_logits(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The textbook loss over whole logits."""

    def forward_kl(s: Tensor, t: Tensor) -> Tensor:
        log_p, log_q = torch.log_softmax(t, -1), torch.log_softmax(s, -1)
        return (log_p.exp() * (log_p - log_q)).sum() / len(s)

    def jensen_shannon(s: Tensor, t: Tensor) -> Tensor:
        log_p, log_q = torch.log_softmax(t, -1), torch.log_softmax(s, -1)
        log_m = torch.log(BETA * log_p.exp() + (1 - BETA) * log_q.exp())
        kl = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
        return (BETA * kl + (1 - BETA) * F.kl_div(log_m, log_q, reduction="sum", log_target=True)) / len(s)

    return {"forward_kl": forward_kl, "jensen_shannon": jensen_shannon}[kind]


def naive(kind: str) -> Loss:
    """Plain torch."""
    return lambda h, w, ht, wt: of_logits(kind)(h @ w.T, ht @ wt.T)


def compiled(kind: str) -> Loss:
    """Whole logits with a compiled loss, as KDFlow computes it."""
    loss = torch.compile(of_logits(kind))
    return lambda h, w, ht, wt: loss(h @ w.T, ht @ wt.T)


class _TwoPasses(torch.autograd.Function):
    """Online softmax over chunks of the vocabulary; the logits are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        lse_s, lse_t = (torch.full((len(h),), float("-inf")) for _ in range(2))
        mean = torch.zeros(len(h))  # of t - s under the teacher, as far as the vocabulary has been seen
        for rows in torch.split(torch.arange(len(w)), CHUNK):
            s, t = h @ w[rows[0] : rows[-1] + 1].T, ht @ wt[rows[0] : rows[-1] + 1].T
            here = torch.logsumexp(t, -1)
            both = torch.logaddexp(lse_t, here)
            part = (torch.exp(t - both[:, None]) * (t - s)).sum(-1)
            mean, lse_t = mean * torch.exp(lse_t - both) + part, both
            lse_s = torch.logaddexp(lse_s, torch.logsumexp(s, -1))
        ctx.save_for_backward(h, w, ht, wt, lse_s, lse_t)
        return (mean - lse_t + lse_s).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        h, w, ht, wt, lse_s, lse_t = ctx.saved_tensors
        of_h, of_w = torch.zeros_like(h), torch.empty_like(w)
        for rows in torch.split(torch.arange(len(w)), CHUNK):
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            g = torch.exp(h @ w[at].T - lse_s[:, None]).sub_(torch.exp(ht @ wt[at].T - lse_t[:, None]))
            g.mul_(upstream / len(h))
            of_h.addmm_(g, w[at])
            torch.mm(g.T, h, out=of_w[at])
        return of_h, of_w, None, None


def two_passes(kind: str) -> Loss:
    """The vocabulary in chunks, recomputed in the backward pass."""
    if kind != "forward_kl":
        raise NotImplementedError("written for the forward KL alone")
    return lambda h, w, ht, wt: _TwoPasses.apply(h, w, ht, wt)  # type: ignore[no-untyped-call]


def trl(kind: str) -> Loss:
    """TRL's chunked divergence."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": BETA}[kind]

    def loss(h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        mask = torch.ones(1, len(h), dtype=torch.int64)
        return _chunked_divergence_loss(h[None], ht[None], w, wt, mask, beta)[0]  # type: ignore[no-any-return]

    return loss


def liger(kind: str) -> Loss:
    """Liger's fused linear layer and Jensen-Shannon divergence."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": BETA}[kind]
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)

    def loss(h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        return fused(h, w, ht, wt, torch.zeros(len(h), dtype=torch.int64))  # type: ignore[no-any-return]

    return loss


CONTENDERS: dict[str, Callable[[str], Loss]] = {
    "ours": one_pass,
    "ours, top 64": top_64,
    "naive": naive,
    "compiled": compiled,
    "two passes": two_passes,
    "TRL": trl,
    "Liger": liger,
}


def inputs(tokens: int, vocabulary: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden (N, D), head (V, D) of a student, and of a teacher."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(tokens, width, generator=generator) for _ in range(2)]
    heads = [torch.randn(vocabulary, width, generator=generator).mul_(width**-0.5) for _ in range(2)]
    return hidden[0].requires_grad_(), heads[0].requires_grad_(), hidden[1], heads[1]


def measured(loss: Loss, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Return CPU seconds, extra peak memory [MB] and value of the loss with its gradients."""
    given[0].grad = given[1].grad = None
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    began = time.process_time()
    found = loss(*given)
    found.backward()  # type: ignore[no-untyped-call]
    cpu = time.process_time() - began
    return {"cpu": cpu, "extra_mb": (_status("VmHWM") - before) / 2**10, "loss": float(found.detach())}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def main() -> None:
    """Take turns."""
    name, kind = sys.argv[1:3]
    tokens, vocabulary, width = map(int, sys.argv[3:6])
    loss = CONTENDERS[name](kind)
    given = inputs(tokens, vocabulary, width)
    measured(loss, given)  # compiles, looks up, and fills the caches
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(loss, given)), flush=True)


if __name__ == "__main__":
    main()
