"""A checkpoint in memory: loaded once for all that is measured on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model, in inference mode on its device, and its tokenizer."""

    folder: Path
    model: Any
    tokenizer: Any

    @property
    def size_bytes(self) -> int:
        """What lies on disk: weights, tokenizer and configuration."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @property
    def memory_bytes(self) -> int:
        """What parameters and buffers take in memory, each tensor once; activations and caches come on top."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(each.numel() * each.element_size() for each in {each.data_ptr(): each for each in tensors}.values())


def load(checkpoint: "Path | str | Loaded", device: str = "auto", what: str = "checkpoint") -> Loaded:
    """Return the checkpoint in memory, as it is where it already was; `what` names it in errors.

    Raises InputError when it cannot be used.
    """
    if isinstance(checkpoint, Loaded):
        return checkpoint
    from distill.checkpoint import resolve
    from distill.models import load_model
    from distill.prompts import load_tokenizer

    folder = resolve(checkpoint, what)
    tokenizer = load_tokenizer(checkpoint)
    return Loaded(folder, load_model(checkpoint, device, what), tokenizer)
