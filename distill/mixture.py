"""Which rows a student learns from: all of the window, plus replay of what it learned before."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """Training rows: tokenised prompts and the keys of their teacher signals."""

    tokens: NDArray[np.int32]  # all prompts, one after the other
    offsets: NDArray[np.int64]  # (rows + 1,) where each begins
    keys: NDArray[np.uint8]  # (rows, 32)

    def __len__(self) -> int:
        return len(self.keys)

    def prompt(self, row: int) -> NDArray[np.int32]:
        """Return the token ids of one prompt, (length,)."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def replay_count(window_rows: int, replay_share: float, available: int) -> int:
    """Return how many rows of earlier windows make up `replay_share` of the mixture, at most all there are."""
    return min(round(window_rows * replay_share / (1 - replay_share)), available)


def draw(available: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` of `available` row numbers, drawn without replacement and sorted."""
    return np.sort(np.random.default_rng(seed).choice(available, size=count, replace=False))


def save(path: Path, prompts: list[NDArray[np.int32]], keys: NDArray[np.uint8]) -> None:
    """Write the rows of a mixture as one safetensors file."""
    from safetensors.numpy import save_file

    if len(prompts) != len(keys):
        raise InputError(f"{len(prompts)} prompts but {len(keys)} signals: each row needs one of each")
    offsets = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(prompt) for prompt in prompts], out=offsets[1:])
    tokens = np.concatenate(prompts).astype(np.int32) if prompts else np.zeros(0, np.int32)
    save_file({"tokens": tokens, "offsets": offsets, "keys": np.ascontiguousarray(keys)}, str(path))


def load(path: Path) -> Mixture:
    """Read the rows that `save` wrote."""
    from safetensors.numpy import load_file

    return Mixture(**load_file(str(path)))
