"""Hidden states of a prompt as base64 of raw little-endian bytes: as nested lists they cost several times the prefill.

{"dtype": "bfloat16" | "float32", "shape": [tokens, width], "b64": "..."}
"""

import os
from collections.abc import Callable
from typing import Any

VARIABLE = "REDISTILL_HIDDEN_STATES"
_METHOD = (
    "sglang.srt.managers.scheduler_components.batch_result_processor."
    "SchedulerBatchResultProcessor._append_prefill_hidden_states"
)


def register() -> None:
    """Hook into SGLang's scheduler; ValueError for another format than the two."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return
    if name not in {"bfloat16", "float32"}:
        raise ValueError(f"{VARIABLE}={name!r}: use bfloat16 or float32")
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_METHOD, _around, HookType.AROUND)


def _around(
    original: Callable[..., int],
    processor: Any,
    *,
    req: Any,
    logits_output: Any,
    hidden_state_offset: int,
    capture_hidden_mode: Any,
    extend_input_len: int,
    store: bool = True,
) -> int:
    import pybase64
    import torch

    if not (capture_hidden_mode.is_full() and store and req.return_hidden_states is True):
        return original(
            processor,
            req=req,
            logits_output=logits_output,
            hidden_state_offset=hidden_state_offset,
            capture_hidden_mode=capture_hidden_mode,
            extend_input_len=extend_input_len,
            store=store,
        )
    name, end = os.environ[VARIABLE], hidden_state_offset + extend_input_len
    states = logits_output.hidden_states[hidden_state_offset:end].detach().to("cpu", getattr(torch, name)).contiguous()
    raw = states.view(torch.uint8).numpy().tobytes()
    req.hidden_states.append(
        {"dtype": name, "shape": list(states.shape), "b64": pybase64.b64encode(raw).decode("ascii")}
    )
    return end
