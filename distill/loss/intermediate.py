"""What the student learns from inside the teacher: its hidden states and its attention maps, layer by layer.

The final distribution can match on the rows at hand while finer boundaries of the teacher are lost; the usual cure is
a further term on its intermediate layers (Sun et al. 2019, Jiao et al. 2020). Both run over the same tokens.

Shapes: B rows, L positions, D width of the student, E of the teacher, H heads of the student, G of the teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.errors import InputError


def layer_map(text: str, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Return pairs (layer of the student, layer of the teacher), counted from 1; `last` stands for the last one.

    text: "last" (the last layers), "uniform" (every layer of the student, spread over the teacher's), or pairs as in
    "2:4,last:last". Raises InputError, naming the pair, for a layer that is not there.
    """
    if text == "uniform":
        return [(at, round(at * teacher_layers / student_layers) or 1) for at in range(1, student_layers + 1)]
    pairs = []
    for part in ("last:last" if text == "last" else text).split(","):
        names = part.strip().split(":")
        if len(names) != 2:
            raise InputError(f"layer map {text!r}: {part.strip()!r} is no pair STUDENT:TEACHER, as in '2:4,last:last'")
        pairs.append(
            (
                _layer(names[0], student_layers, "student", text),
                _layer(names[1], teacher_layers, "teacher", text),
            )
        )
    if len({at for at, _ in pairs}) < len(pairs):
        raise InputError(f"layer map {text!r} names a layer of the student twice: give each one layer of the teacher")
    return pairs


def _layer(name: str, layers: int, whose: str, text: str) -> int:
    if name == "last":
        return layers
    if not name.isdecimal() or not 1 <= int(name) <= layers:
        raise InputError(f"layer map {text!r}: {name!r} is no layer of the {whose}, which has 1 to {layers}")
    return int(name)


class Projections(nn.Module):
    """One learned linear map from the student's width to the teacher's for each pair of layers, none where equal."""

    def __init__(self, pairs: int, width: int, teacher_width: int) -> None:
        super().__init__()
        made = [nn.Linear(width, teacher_width, bias=False) for _ in range(pairs)] if width != teacher_width else []
        self.maps = nn.ModuleList(made)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the student's states, (N, D) a pair, in the teacher's width, (N, E)."""
        if not self.maps:
            return list(states)
        return [project(part) for project, part in zip(self.maps, states, strict=True)]


def hidden_loss(projected: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum over tokens of the squared distance of states, each scaled to unit mean square.

    projected, teacher: (N, E) a pair of layers; weights (N,). It is a mean over pairs and width: 0 when the states
    point the same way, 2 when they have nothing in common.
    """
    parts = [
        (_scaled(own) - _scaled(other.detach())).square().mean(-1)
        for own, other in zip(projected, teacher, strict=True)
    ]
    return torch.dot(torch.stack(parts).mean(0), weights.to(parts[0].dtype))


def _scaled(states: Tensor) -> Tensor:
    states = states.float()
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum over positions of KL(teacher || student) of where they look.

    student (B, H, L, L), teacher (B, G, L, L) a pair of layers, each row of positions a distribution; weights (B, L),
    0 for padding, whose maps may hold anything. It is a mean over pairs and heads, or of the means over heads where
    the numbers of heads differ.
    """
    learned = (weights > 0)[:, None, :, None]
    tiny = torch.finfo(torch.float32).tiny
    total = weights.new_zeros((), dtype=torch.float32)
    for own, other in zip(student, teacher, strict=True):
        q, p = (torch.where(learned, maps.float(), 1.0) for maps in (own, other.detach()))
        if q.shape[1] != p.shape[1]:
            q, p = q.mean(1, keepdim=True), p.mean(1, keepdim=True)
        divergence = (p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())).sum(-1).mean(1)  # (B, L)
        total = total + (divergence * weights).sum()
    return total / len(student)
