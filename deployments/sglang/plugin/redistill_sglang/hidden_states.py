"""Hidden states as base64 of raw little-endian bytes: as nested lists they cost several times the prefill.

One entry for the prompt, one for each token of the answer that was fed back:

    {"dtype": "bfloat16" | "float32", "shape": [rows, width], "b64": "...", "computed": tokens}

computed: tokens that were run for this entry. All of them have a row, but where a request's sampling_params say
{"custom_params": {"states_of_prompt": N}} only the last N: who learns an answer needs one, and prompts are long.
"""

import os
from collections.abc import Callable
from typing import Any

VARIABLE = "REDISTILL_HIDDEN_STATES"
KEPT = "states_of_prompt"
_PROCESSOR = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"


def register() -> None:
    """Hook into SGLang's scheduler; ValueError for another format than the two."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return
    if name not in {"bfloat16", "float32"}:
        raise ValueError(f"{VARIABLE}={name!r}: use bfloat16 or float32")
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_PROCESSOR}._append_prefill_hidden_states", _of_prompt, HookType.AROUND)
    HookRegistry.register(f"{_PROCESSOR}._append_decode_hidden_states", _of_answer, HookType.AROUND)


def _of_prompt(
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
    end = hidden_state_offset + extend_input_len
    kept = (req.sampling_params.custom_params or {}).get(KEPT)
    first = max(hidden_state_offset, end - kept) if isinstance(kept, int) and kept > 0 else hidden_state_offset
    req.hidden_states.append(_packed(logits_output.hidden_states[first:end], extend_input_len))
    return end


def _of_answer(original: Callable[..., None], *, req: Any, hidden_states: Any, start: int, accept_len: int) -> None:
    if req.return_hidden_states is True:
        req.hidden_states.extend(_packed(hidden_states[at : at + 1], 1) for at in range(start, start + accept_len))
    else:
        original(req=req, hidden_states=hidden_states, start=start, accept_len=accept_len)


def _packed(states: Any, computed: int) -> dict[str, Any]:
    import pybase64
    import torch

    name = os.environ[VARIABLE]
    states = states.detach().to("cpu", getattr(torch, name)).contiguous()
    raw = states.view(torch.uint8).numpy().tobytes()
    packed = pybase64.b64encode(raw).decode("ascii")
    return {"dtype": name, "shape": list(states.shape), "b64": packed, "computed": computed}
