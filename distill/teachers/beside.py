"""The teacher beside the student, in each training process: its output layer alone, or all of it.

Stored final states need the output layer to become a distribution. A live teacher runs on the student's own batches:
nothing but its answers is stored, and its layers can be learned from as well.
"""

from dataclasses import dataclass
from typing import Any

import torch

from distill.checkpoint import digest, resolve
from distill.divergence import Head
from distill.errors import InputError
from distill.loss.inside import Output, output_of
from distill.models import load_model, output_layer


@dataclass(frozen=True)
class Beside:
    """A teacher's output layer over the student's vocabulary, and the teacher itself where it is live."""

    head: Head
    output: Output
    model: Any | None

    @property
    def width(self) -> int:
        """Width of the teacher's states."""
        return int(self.head.weight.shape[1])


def beside(teacher: str, device: torch.device, vocabulary: int, *, live: bool) -> Beside:
    """Load the teacher of a checkpoint. vocabulary: how many tokens the student's output layer has.

    Rows of a larger output layer are padding, as tokenizers are the same, and are left out. Raises InputError for a
    smaller one.
    """
    if live:
        model = load_model(teacher, str(device), "teacher").requires_grad_(False)
        output, layer = output_of(model, "teacher"), model.get_output_embeddings()
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    else:  # stored states are those of a model without scale or cap (distill.teachers.final_states)
        model, output = None, Output(1.0, None)
        weight, bias = output_layer(teacher, "teacher")
        dtype = torch.float32 if device.type == "cpu" else weight.dtype
        weight, bias = weight.to(device, dtype), None if bias is None else bias.to(device, dtype)
    if len(weight) < vocabulary:
        raise InputError(
            f"teacher {teacher!r}: its output layer has {len(weight)} tokens, the student's {vocabulary}; use "
            "teacher.signals_format topk:K and training.live_teacher false"
        )
    head = Head(weight[:vocabulary], None if bias is None else bias[:vocabulary], output.softcap)
    return Beside(head, output, model)


def check_weights(teacher: str, expected: str) -> None:
    """Raise InputError unless the checkpoint is the one that gave the signals; expected: its SHA-256, or nothing."""
    folder = resolve(teacher, "teacher")
    if expected and (found := digest(folder)) != expected:
        raise InputError(
            f"teacher {teacher!r} has the digest {found[:12]}, but the signals are from {expected[:12]}: give the "
            "checkpoint that was asked"
        )
