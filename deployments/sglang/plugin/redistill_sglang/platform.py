"""A CPU platform for SGLang 0.5.23 that needs nothing but torch."""

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Plain torch operators and attention; no Triton, no graphs."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """There is no device to copy to."""
        return False

    def get_default_attention_backend(self) -> str:
        """Return the attention that is plain torch."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Return the operators' plain torch implementation."""
        return "native"
