"""Fused projection and divergence: from hidden states to the loss and its gradients in one pass, in tiles of rows.

The student's logits exist for one tile at a time, in one buffer that the gradient then overwrites. While a tile is
there its part of the gradients is formed, so the backward pass has only to hand them on: neither [tokens, vocabulary]
nor a second projection is ever needed. Sums over the vocabulary and the head's gradient are float32 (or wider) for
any dtype of the model.

Shapes: N tokens, D width of the student, E of the teacher, V vocabulary, k kept tokens, C rows of a tile.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distill.errors import InputError
from distill.loss.aligned import Aligned
from distill.loss.formulas import FORMULAS
from distill.loss.tile import Head, Hidden, Teacher, TopK, Work, loss_of_rows
from distill.settings import Divergence, LossKernel

__all__ = ["IGNORED", "TILE", "Aligned", "Head", "Hidden", "Losses", "Teacher", "TopK", "check_kernel", "losses"]

OfRows: TypeAlias = Callable[[list[Tensor], slice], Tensor]  # logits of some rows, which become the gradient in them

TILE = 256  # rows whose logits are in memory at once: enough for the matrix product to run at full speed
_CACHED = 2**18  # elements of a tile that each thread of a CPU works on at once, so that they stay in its cache
_TURNED = 2**19  # elements of a tile that are worked out with the vocabulary in front at once
_NEVER = -1e30  # logit of what is as good as impossible
IGNORED = -100  # the target of a token without cross entropy


class Losses(NamedTuple):
    """What came of it; only the total carries a gradient."""

    total: Tensor  # divergence + cross entropy + ULD, a scalar
    divergence: Tensor  # sum over tokens of divergence_weights * D(teacher, student), float64
    cross_entropy: Tensor  # sum over tokens of target_weights * -log student(target), float64
    uld: Tensor  # sum over tokens of the teacher's weights * ULD, float64; 0 unless it is Aligned


def losses(
    hidden: Tensor,
    head: Head,
    teacher: Teacher | None,
    *,
    divergence_weights: Tensor | None = None,
    targets: Tensor | None = None,
    target_weights: Tensor | None = None,
    kind: Divergence = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    kernel: LossKernel = "torch",
) -> Losses:
    """Return the weighted sums of divergence and cross entropy over N tokens.

    hidden (N, D) with gradient to it, to head.weight and to head.bias; divergence_weights and target_weights (N,), ones
    where not given; targets (N,), IGNORED where a token has none. Without a teacher it is cross entropy alone. The
    temperature divides both logits of the divergence (no factor T^2); cross entropy is at temperature 1. beta is that
    of `distill.loss.formulas`. kernel "triton" works on a CUDA device and in float32 logits (distill/loss/kernel.py);
    what it does not cover is worked out by torch. Raises InputError for what cannot be computed.
    """
    _check_settings(kind, beta, temperature)
    check_kernel(kernel, hidden.device)
    _check_shapes(hidden, head, teacher, temperature)
    _check_rows(
        len(hidden),
        teacher,
        {"targets": targets, "divergence_weights": divergence_weights, "target_weights": target_weights},
    )
    _check_ids(targets, teacher, len(head.weight))
    wide = _wide(hidden.dtype)
    ones = hidden.new_ones(len(hidden), dtype=wide)
    work = Work(
        head=head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach()),
        teacher=teacher,
        divergence_weights=ones if divergence_weights is None else divergence_weights.to(wide),
        targets=None if targets is None else targets.clamp(min=0),
        target_weights=(ones if target_weights is None else target_weights.to(wide))
        * (0 if targets is None else targets.ne(IGNORED)),
        formula=FORMULAS[kind],
        beta=beta,
        temperature=temperature,
    )
    of_rows = _of_rows(work, kind, wide, kernel)
    return Losses(*_OnePass.apply(hidden, head.weight, head.bias, work, of_rows, torch.is_grad_enabled()))  # type: ignore[no-untyped-call]


def check_kernel(kernel: LossKernel, device: torch.device) -> None:
    """Raise InputError where the kernel does not run."""
    if kernel == "triton" and not find_spec("triton"):
        raise InputError('training.loss_kernel = "triton", and triton is not installed: pip install triton')
    if kernel == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f'training.loss_kernel = "triton" on {device.type!r}: it needs a CUDA device; use "torch"')


def _of_rows(work: Work, kind: Divergence, dtype: torch.dtype, kernel: LossKernel) -> OfRows:
    if kernel == "triton":
        from distill.loss import kernel as triton

        if triton.takes(work, kind, dtype):
            return partial(triton.loss_of_rows, work, kind)
    return partial(loss_of_rows, work)


class _OnePass(torch.autograd.Function):
    """Forms the gradients in the forward pass and hands them on in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work, of_rows: OfRows, learning: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wanted = [learning and needed for needed in ctx.needs_input_grad[:3]]
        states, wide = hidden.detach(), _wide(hidden.dtype)
        of_hidden = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.empty_like(weight, dtype=wide) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        sums = states.new_zeros(3, dtype=torch.float64)
        buffers = [states.new_empty(min(TILE, len(states)), len(weight), dtype=wide) for _ in _logits_of(work)]
        for rows in _slices(len(states), TILE):
            logits = [
                _project(part[rows], head, buffer[: rows.stop - rows.start])
                for (part, head), buffer in zip(_logits_of(work, states), buffers, strict=True)
            ]
            for at in _slices(len(logits[0]), _rows_in_cache(logits[0])):
                sums += of_rows([part[at] for part in logits], slice(rows.start + at.start, rows.start + at.stop))
            gradient = logits[0].to(weight.dtype)  # (C, V) in the student's logits
            if of_hidden is not None:
                torch.mm(gradient, work.head.weight, out=of_hidden[rows])
            if of_weight is not None:
                _add_product(of_weight, gradient, states[rows], first=not rows.start)
            if of_bias is not None:
                of_bias += logits[0].sum(0)
        if of_weight is not None and not len(states):
            of_weight.zero_()
        ctx.gradients = (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
        )
        ctx.set_materialize_grads(False)
        total = sums.sum().to(wide)
        ctx.mark_non_differentiable(*(parts := sums.unbind()))
        return total, parts[0], parts[1], parts[2]

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss have been handed on already: compute the loss again")
        if of_total is None:
            return (None,) * 6
        # On a GPU its value is not known here without waiting for the device.
        if of_total.device.type != "cpu" or of_total.item() != 1:
            gradients = tuple(None if part is None else part.mul_(of_total.to(part.dtype)) for part in gradients)
        return (*gradients, None, None, None)


def _logits_of(work: Work, states: Tensor | None = None) -> list[tuple[Any, Head]]:
    """Return the states and output layers whose logits a tile needs, the student's first."""
    both: list[tuple[Any, Head]] = [(states, work.head)]
    if isinstance(work.teacher, Hidden):
        both.append((work.teacher.states, work.teacher.head))
    return both


def _project(states: Tensor, head: Head, out: Tensor) -> Tensor:
    """Return the uncapped logits of a tile, (C, V), in `out`."""
    states, weight = states.to(head.weight.dtype), head.weight.detach()
    if out.device.type == "cpu":
        # With the vocabulary in front a product of few rows is as fast as of many; in blocks, which take less memory.
        size = max(1, _TURNED // max(1, len(states)))
        turned = weight.new_empty(min(size, len(weight)), len(states))
        for block in _slices(len(weight), size):
            out[:, block] = torch.mm(weight[block], states.T, out=turned[: block.stop - block.start]).T
    elif out.dtype == weight.dtype:
        torch.mm(states, weight.T, out=out)
    else:
        torch.mm(states, weight.T, out_dtype=out.dtype, out=out)  # no rounding of the logits in between
    # A bias of -inf, of a token that is never said, would make NaN of 0 * inf.
    return out if head.bias is None else out.add_(head.bias.detach().to(out.dtype).clamp(min=_NEVER))


def _add_product(total: Tensor, gradient: Tensor, states: Tensor, *, first: bool) -> None:
    """Add gradient.T @ states, (V, D), to a total of a wider type or the same; the first one replaces what is there."""
    kept = 0 if first else 1  # what is multiplied with 0 is not read
    options: dict[str, Any] = {}
    if total.dtype != states.dtype and total.device.type == "cuda":
        options = {"out_dtype": total.dtype}
    elif total.dtype != states.dtype:
        gradient, states = gradient.to(total.dtype), states.to(total.dtype)
    torch.addmm(total, gradient.T, states, beta=kept, out=total, **options)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, length)) for first in range(0, length, size))


def _rows_in_cache(logits: Tensor) -> int:
    if logits.device.type != "cpu":
        return len(logits)
    return max(1, _CACHED * torch.get_num_threads() // logits.shape[-1])


def _check_settings(kind: str, beta: float, temperature: float) -> None:
    if kind not in FORMULAS:
        raise InputError(f"divergence {kind!r}: choose one of {', '.join(FORMULAS)}")
    if kind == "jensen_shannon" and not 0 < beta < 1:
        raise InputError(f"beta {beta} of jensen_shannon: choose one between 0 and 1, or forward_kl or reverse_kl")
    if kind.startswith("skewed") and not 0 <= beta < 1:
        raise InputError(f"beta {beta} of {kind}: choose one from 0 to below 1")
    if not temperature > 0:
        raise InputError(f"temperature {temperature}: choose one above 0")


def _check_shapes(hidden: Tensor, head: Head, teacher: Teacher | None, temperature: float) -> None:
    if hidden.dim() != 2 or hidden.shape[-1] != head.weight.shape[-1]:
        raise InputError(f"hidden states {tuple(hidden.shape)} do not fit a head {tuple(head.weight.shape)}")
    if hidden.dtype != head.weight.dtype:
        raise InputError(
            f"hidden states in {hidden.dtype} and a head in {head.weight.dtype}: bring one to the other's dtype"
        )
    vocabulary = len(head.weight)
    if isinstance(teacher, Aligned) and temperature != 1:
        raise InputError(f"temperature {temperature} with a teacher of another tokenizer: it is compared at 1 alone")
    if isinstance(teacher, TopK):
        if teacher.ids.shape[-1] > vocabulary:
            raise InputError(f"the teacher kept {teacher.ids.shape[-1]} tokens, the student has {vocabulary}")
        if temperature != 1 and teacher.ids.shape[-1] < vocabulary:
            raise InputError(
                f"temperature {temperature} with a teacher's top {teacher.ids.shape[-1]}: the mass of its tail is "
                "known at temperature 1 alone; use hidden states, or temperature 1"
            )
    if isinstance(teacher, Hidden) and len(teacher.head.weight) != vocabulary:
        raise InputError(f"the teacher's head has {len(teacher.head.weight)} tokens, the student's {vocabulary}")


def _check_rows(tokens: int, teacher: Teacher | None, beside: dict[str, Tensor | None]) -> None:
    """Raise InputError unless there is one of everything for each token."""
    given = {name: tuple(part.shape) for name, part in beside.items() if part is not None}
    if any(shape != (tokens,) for shape in given.values()) or (teacher is not None and len(teacher[0]) != tokens):
        rows = {"hidden": tokens, **({} if teacher is None else {"teacher": len(teacher[0])}), **given}
        raise InputError(f"not the same number of tokens: {rows}")


def _check_ids(targets: Tensor | None, teacher: Teacher | None, vocabulary: int) -> None:
    """Raise InputError for token ids that the vocabulary does not have."""
    if targets is None and teacher is None:
        raise InputError("neither a teacher nor targets: there is nothing to learn")
    given = {
        "targets": targets,
        "the teacher's kept tokens": None if teacher is None or isinstance(teacher, Hidden) else teacher.ids,
    }
    for name, ids in given.items():
        # Of ids on a GPU nothing is known here without waiting for the device: what is made of files is checked there.
        if ids is None or ids.device.type != "cpu":
            continue
        wrong = (ids < 0) | (ids >= vocabulary)
        if ids is targets:
            wrong &= ids != IGNORED
        if wrong.any():
            raise InputError(
                f"{name} have {int(ids[wrong][0])}: ids are from 0 to below the vocabulary's {vocabulary}"
                + (f", or {IGNORED} for none" if ids is targets else "")
            )
