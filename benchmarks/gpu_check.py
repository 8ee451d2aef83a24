"""Whether loss and gradients are right on a device: ours against plain autograd in float64 over whole logits.

Every divergence, with a teacher's final states and with its top tokens, each with cross entropy beside it. In float32
the error relative to the norm is at most 1e-6; in bfloat16 no more than plain torch makes in bfloat16 on that device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.textbook import divergence_of, outcomes
from distill.divergence import IGNORED, Head, Hidden, TopK, losses
from distill.loss.formulas import FORMULAS
from distill.settings import Divergence, LossKernel

BETA = 0.3
EXACT = 1e-6  # relative to the norm, in float32
SLACK = 1.25  # times what plain torch makes of bfloat16
PARTS = "loss", "gradient in the states", "gradient in the head"
Found = tuple[Tensor, Tensor, Tensor]  # PARTS


class Size(NamedTuple):
    """What is checked: more tokens than a tile has, and a vocabulary that no kernel's block divides."""

    tokens: int = 300
    vocabulary: int = 1001
    width: int = 64
    teacher_width: int = 96
    kept: int = 16  # tokens of the top-k teacher


class Case(NamedTuple):
    """What a loss is given."""

    hidden: Tensor
    head: Tensor
    teacher: TopK | Hidden
    targets: Tensor
    weights: Tensor  # of the divergence
    target_weights: Tensor

    def at(self, device: str, dtype: torch.dtype) -> "Case":
        """Return it on a device; log-probabilities and weights are float32 or wider."""
        wide = _wide(dtype)
        if isinstance(self.teacher, Hidden):
            states, layer = self.teacher.states.to(device, dtype), self.teacher.head.weight.to(device, dtype)
            teacher: TopK | Hidden = Hidden(states, Head(layer))
        else:
            ids, *masses = (part.to(device) for part in self.teacher)
            teacher = TopK(ids, masses[0].to(wide), masses[1].to(wide))
        return Case(
            self.hidden.to(device, dtype),
            self.head.to(device, dtype),
            teacher,
            self.targets.to(device),
            self.weights.to(device, wide),
            self.target_weights.to(device, wide),
        )


class Check(NamedTuple):
    """How far off ours was, and how far it may be, for each of PARTS."""

    divergence: str
    teacher: str
    dtype: str
    errors: dict[str, float]
    limits: dict[str, float]

    @property
    def right(self) -> bool:
        """Whether all hold; a NaN does not."""
        return all(self.errors[part] <= self.limits[part] for part in PARTS)

    def __str__(self) -> str:
        said = ", ".join(f"{part} {self.errors[part]:.1e} (at most {self.limits[part]:.1e})" for part in PARTS)
        return f"{self.divergence}, {self.teacher}, {self.dtype}: {said}"


def checks(device: str, size: Size = Size(), kernels: Sequence[LossKernel] = ("torch",)) -> list[Check]:  # noqa: B008
    """Return one check for each divergence, kind of teacher, dtype and kernel."""
    return [
        _check(kind, name, made(size, dtype, name), device, dtype, kernel)
        for dtype in (torch.float32, torch.bfloat16)
        for name in ("hidden", f"top {size.kept}")
        for kernel in kernels
        for kind in FORMULAS
    ]


def made(size: Size, dtype: torch.dtype, teacher: str) -> Case:
    """Return a case in float64 whose states and weights `dtype` can hold; the same on every machine."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).double()

    hidden, head = normal(size.tokens, size.width), normal(size.vocabulary, size.width, scale=1 / 8)
    states, other = normal(size.tokens, size.teacher_width), normal(size.vocabulary, size.teacher_width, scale=1 / 10)
    kept, ids = (log_p := torch.log_softmax(states @ other.T, -1)).topk(size.kept, -1)
    tail = outcomes(log_p, ids)[:, -1].exp()
    targets = torch.randint(size.vocabulary, (size.tokens,), generator=generator)
    targets[::5] = IGNORED
    weights = torch.rand(2, size.tokens, generator=generator).double()
    given = Hidden(states, Head(other)) if teacher == "hidden" else TopK(ids, kept.float(), tail.float())
    return Case(hidden, head, given, targets, weights[0], weights[1] / 10)  # or the cross entropy would drown the rest


def ours(case: Case, kind: Divergence, kernel: LossKernel = "torch") -> Found:
    """Return what `distill.divergence` works out."""
    hidden, head = case.hidden.detach().requires_grad_(), case.head.detach().requires_grad_()
    found = losses(
        hidden,
        Head(head),
        case.teacher,
        divergence_weights=case.weights,
        targets=case.targets,
        target_weights=case.target_weights,
        kind=kind,
        beta=BETA,
        kernel=kernel,
    )
    found.total.backward()  # type: ignore[no-untyped-call]
    return _found(found.total, hidden, head)


def plain(case: Case, kind: Divergence) -> Found:
    """Return what autograd works out over whole logits, the loss over them in float32 or wider."""
    hidden, head = case.hidden.detach().requires_grad_(), case.head.detach().requires_grad_()
    wide = _wide(hidden.dtype)
    logits = (hidden @ head.T).to(wide)
    log_q = torch.log_softmax(logits, -1)
    if isinstance(case.teacher, TopK):
        log_q = outcomes(log_q, case.teacher.ids)
        log_p = torch.cat([case.teacher.logprobs, case.teacher.tail[:, None].log()], -1).log_softmax(-1)
    else:
        log_p = torch.log_softmax((case.teacher.states @ case.teacher.head.weight.T).to(wide), -1)
    entropy = F.cross_entropy(logits, case.targets, ignore_index=IGNORED, reduction="none")
    total = (divergence_of(kind, log_p, log_q, BETA) * case.weights + entropy * case.target_weights).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return _found(total, hidden, head)


def _check(kind: Divergence, teacher: str, case: Case, device: str, dtype: torch.dtype, kernel: LossKernel) -> Check:
    exact = plain(case.at("cpu", torch.float64), kind)
    errors = _errors(ours(case.at(device, dtype), kind, kernel), exact)
    limits = dict.fromkeys(PARTS, EXACT)
    if dtype != torch.float32:
        naive = _errors(plain(case.at(device, dtype), kind), exact)
        limits = {part: SLACK * naive[part] + EXACT for part in PARTS}
    return Check(
        kind,
        teacher if kernel == "torch" else f"{teacher}, {kernel}",
        str(dtype).removeprefix("torch."),
        errors,
        limits,
    )


def _errors(found: Found, exact: Found) -> dict[str, float]:
    pairs = zip(PARTS, found, exact, strict=True)
    return {part: float((a.cpu().double() - b).norm() / b.norm()) for part, a, b in pairs}


def _found(total: Tensor, hidden: Tensor, head: Tensor) -> Found:
    if hidden.grad is None or head.grad is None:
        raise RuntimeError("no gradient came back")
    return total.detach(), hidden.grad, head.grad


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
