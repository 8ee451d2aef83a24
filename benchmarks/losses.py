"""The loss alone: from hidden states and output layers of student and teacher to the gradients in the student's.

    python -m benchmarks.losses CONTENDER DIVERGENCE TOKENS VOCABULARY WIDTH

is one contender, which works loss and gradients out whenever it is asked (benchmarks.turns).
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.turns import in_turns, serve
from distill.settings import LossKernel

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # hidden, head, teacher's hidden, teacher's head

TOP_K, CHUNK, BETA = 64, 4096, 0.5
WIDTH = 1024
WHOLE_LOGITS = {"naive", "compiled"}  # of these a larger size would not fit beside the others
LARGEST_WHOLE = 4096 * 32_000  # elements of one [tokens, vocabulary]


def one_pass(kind: str, kernel: LossKernel = "torch") -> Loss:
    """Ours."""
    from distill.divergence import Head, Hidden, losses

    def loss(h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        found = losses(h, Head(w), Hidden(ht, Head(wt)), kind=kind, beta=BETA, kernel=kernel)  # type: ignore[arg-type]
        return found.total / len(h)

    return loss


def by_kernel(kind: str) -> Loss:
    """Ours, by the Triton kernel: on a CUDA device."""
    return one_pass(kind, "triton")


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
        mask = torch.ones(1, len(h), dtype=torch.int64, device=h.device)
        return _chunked_divergence_loss(h[None], ht[None], w, wt, mask, beta)[0]  # type: ignore[no-any-return]

    return loss


def liger(kind: str) -> Loss:
    """Liger's fused linear layer and Jensen-Shannon divergence."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": BETA}[kind]
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)

    def loss(h: Tensor, w: Tensor, ht: Tensor, wt: Tensor) -> Tensor:
        return fused(h, w, ht, wt, torch.zeros(len(h), dtype=torch.int64, device=h.device))  # type: ignore[no-any-return]

    return loss


CONTENDERS: dict[str, Callable[[str], Loss]] = {
    "ours": one_pass,
    "ours, top 64": top_64,
    "ours, triton": by_kernel,
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


def learned(loss: Loss, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> Iterator[float]:
    """Work loss and gradients out, again and again; yields the loss."""
    while True:
        found = loss(*given)
        found.backward()  # type: ignore[no-untyped-call]
        given[0].grad = given[1].grad = None
        yield float(found.detach())


def compared(
    kind: str, tokens: int, vocabulary: int, rounds: int, chosen: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the table rows of one divergence at one size, and what was not run."""
    names = [name for name in chosen if tokens * vocabulary <= LARGEST_WHOLE or name not in WHOLE_LOGITS]
    sizes = [kind, *map(str, (tokens, vocabulary, WIDTH))]
    with in_turns({name: ["benchmarks.losses", name, *sizes] for name in names}, rounds) as (contenders, absent):
        ours = contenders["ours"]
        rows = [
            f"| {kind} | {tokens:,} | {vocabulary:,} | {each.name} | {each.median('cpu'):.2f} | "
            f"{ours.ratio(each):.2f} | {each.median('extra_mb'):.0f} | "
            f"{ours.median('extra_mb') / each.median('extra_mb'):.2f} |"
            for each in contenders.values()
        ]
        return rows, [f"{kind}, {tokens:,} tokens: {name} was not run ({why})." for name, why in absent.items()]


def section(given: Namespace) -> Iterator[str]:
    """Yield the lines of the section; given: rounds, tokens, vocabulary, divergences, contenders."""
    if unknown := set(given.contenders or ()) - set(CONTENDERS):
        raise SystemExit(f"--contenders {', '.join(sorted(unknown))}: choose from {', '.join(map(repr, CONTENDERS))}")
    yield "### Loss alone\n"
    yield f'Width {WIDTH:,}, float32. "extra MB" is peak memory above the inputs, the gradients included.\n'
    yield "| divergence | tokens | vocabulary | contender | CPU s | ours / theirs | extra MB | ours / theirs |"
    yield "|---|---|---|---|---|---|---|---|"
    missing: list[str] = []
    here = [name for name in CONTENDERS if name not in ("ours", "ours, triton")]  # that needs a GPU: benchmarks.gpu
    chosen = ["ours", *(name for name in here if name in (given.contenders or here))]
    for kind in given.divergences:
        for vocabulary in given.vocabulary:
            for tokens in given.tokens if vocabulary <= 32_000 else [min(given.tokens)]:
                rows, notes = compared(kind, tokens, vocabulary, given.rounds, chosen)
                yield from rows
                missing += notes
    yield "\n" + "\n".join(missing)


def main() -> None:
    """Be a contender."""
    name, kind = sys.argv[1:3]
    tokens, vocabulary, width = map(int, sys.argv[3:6])
    serve(learned(CONTENDERS[name](kind), inputs(tokens, vocabulary, width)))


if __name__ == "__main__":
    main()
