"""How rows can share a sequence with a given model: tried out on the model itself, not looked up by its name."""

from typing import Any

import torch
from torch import Tensor

from distill.batching.packing import Layout
from distill.loss.inside import transformer_of
from distill.settings import TrainingSettings

_ROWS = 5, 7  # tokens of the rows that are tried
_PADDING = 3
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # largest difference, relative to the largest state


def layout_of(student: Any, settings: TrainingSettings, teacher: Any = None) -> tuple[Layout, str]:
    """Return how bins are laid out for this causal LM, and a live teacher, and why they hold one row each if they do.

    Two short rows are run in one bin and each alone: unless their last hidden states are the same, as they are not
    with state-space layers or where a model leaves position ids out of its attention mask, rows are padded instead.
    A kernel for sequences of several lengths is used where there is one, which takes bf16 alone.
    """
    if not settings.packing:
        return "padded", "training.packing is false"
    models = [student] if teacher is None else [student, teacher]
    flash = settings.precision == "bf16" and not settings.attention_weight  # its kernels make no maps
    if flash and _take_flash(models):
        return "flat", ""
    reason = next(filter(None, (_difference(model, torch.float32) for model in models)), "")
    return ("padded", reason) if reason else ("packed", "")


def _take_flash(models: list[Any]) -> bool:
    """Have all models use the kernel, or none."""
    before = [model.config._attn_implementation for model in models]
    if all(_takes_flash(model, torch.bfloat16) for model in models):
        return True
    for model, used in zip(models, before, strict=True):
        if model.config._attn_implementation != used:
            model.set_attn_implementation(used)
    return False


def _takes_flash(student: Any, dtype: torch.dtype) -> bool:
    from transformers.utils import is_flash_attn_2_available

    if student.device.type != "cuda" or not is_flash_attn_2_available():
        return False
    before = student.config._attn_implementation
    try:
        student.set_attn_implementation("flash_attention_2")
    except (ValueError, ImportError):  # this architecture has no such attention
        return False
    if reason := _difference(student, dtype):
        print(f"flash attention is left out: {reason}", flush=True)
        student.set_attn_implementation(before)
        return False
    return True


@torch.no_grad()
def _difference(student: Any, dtype: torch.dtype) -> str:
    """Return what sets rows that share a bin apart from rows alone; empty where nothing does."""
    vocabulary = student.get_input_embeddings().num_embeddings
    rows = [(torch.arange(n, device=student.device) * 7 + 11 * n) % vocabulary for n in _ROWS]
    padding = rows[0].new_zeros(_PADDING)
    positions = torch.cat([*(torch.arange(n, device=student.device) for n in _ROWS), padding])
    together = {"input_ids": torch.cat([*rows, padding])[None], "position_ids": positions[None]}

    def states(**inputs: Tensor) -> Tensor:
        with torch.autocast(student.device.type, dtype, enabled=dtype != torch.float32):
            hidden: Tensor = transformer_of(student)(**inputs, use_cache=False).last_hidden_state[0]
        return hidden.float()

    training = student.training
    student.eval()  # dropout would set them apart
    try:
        alone = torch.cat([states(input_ids=row[None]) for row in rows])
        packed = states(**together)[: len(alone)]
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(student).__name__} does not run on packed rows ({type(error).__name__}: {error})"
    finally:
        student.train(training)
    difference = float((alone - packed).abs().max() / alone.abs().max())
    if difference <= _ALIKE[dtype]:  # false for NaN as well
        return ""
    return f"rows that share a sequence influence each other in {type(student).__name__} (by {difference:.1g})"
