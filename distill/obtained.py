"""What was found and bought of a teacher's signals."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distill.teachers.spent import Effort


@dataclass(frozen=True)
class Obtained:
    """What was found and bought for N prompts, counted in the student's tokens."""

    keys: NDArray[np.uint8]  # (N, 32) in the order of the prompts; all of them are in the store
    bought: NDArray[np.bool_]  # (N,) of equal prompts the first is bought, and the others are reused
    prompt_tokens: NDArray[np.int64]  # (N,)
    answer_tokens: NDArray[np.int64]  # (N,)
    effort: Effort = field(default_factory=Effort)

    @property
    def bought_rows(self) -> int:
        """Rows that were asked for."""
        return int(self.bought.sum())

    @property
    def reused_rows(self) -> int:
        """Rows that were there."""
        return len(self.bought) - self.bought_rows

    @property
    def bought_tokens(self) -> int:
        """Tokens of prompts and answers that were asked for."""
        return int((self.prompt_tokens + self.answer_tokens)[self.bought].sum())

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts and answers that were there."""
        return int((self.prompt_tokens + self.answer_tokens)[~self.bought].sum())

    def part(self, rows: NDArray[np.bool_]) -> "Obtained":
        """Return some of the rows; what it took to ask is known of all of them alone."""
        return Obtained(self.keys[rows], self.bought[rows], self.prompt_tokens[rows], self.answer_tokens[rows])


def together(parts: Sequence[Obtained]) -> Obtained:
    """Return what some purchases came to."""
    parts, effort = [nothing(), *parts], Effort()
    for part in parts:
        effort = effort.plus(part.effort)
    return Obtained(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.bought for part in parts]),
        np.concatenate([part.prompt_tokens for part in parts]),
        np.concatenate([part.answer_tokens for part in parts]),
        effort,
    )


def nothing() -> Obtained:
    """Return what came of asking nothing."""
    none = np.zeros(0, np.int64)
    return Obtained(np.zeros((0, 32), np.uint8), np.zeros(0, np.bool_), none, none)
