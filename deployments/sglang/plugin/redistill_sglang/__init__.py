"""SGLang plugins, each switched on by a variable of the environment.

SGLANG_PLATFORM=redistill_cpu                    a CPU platform of plain torch operators, without sgl_kernel
REDISTILL_HIDDEN_STATES=bfloat16 | float32       hidden states of the prompt as base64 instead of nested lists

Beside these, API keys are left out of what SGLang logs.
"""

import os

PLATFORM = "redistill_cpu"


def activate() -> str | None:
    """Return the platform's class where it was asked for."""
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM:
        return None
    return "redistill_sglang.platform:CpuPlatform"
