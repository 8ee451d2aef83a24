"""What a teacher says of answers that it has not given: its signal at each of their tokens, from one pass over them.

Prompt and answer go there as token ids, just as they were sampled: another spelling of the same text has other ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distill.buying import Wanted
from distill.errors import InputError
from distill.signals import joined, key
from distill.teachers.protocol import AnySignal

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Spoken:
    """A prompt with an answer that somebody gave to it; its length is that of both."""

    prompt: NDArray[np.int32]
    answer: NDArray[np.int32]  # (T,), T > 0

    @property
    def whole(self) -> NDArray[np.int32]:
        """Prompt, then answer."""
        return np.concatenate([self.prompt, self.answer])

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Scorer(Protocol):
    """Says of answers how likely their tokens were; all that decides what it says is in `digest` and `format`."""

    @property
    def digest(self) -> str:
        """Identity of the weights."""

    @property
    def format(self) -> str:
        """What a signal holds (distill.store.encodings)."""

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError when signals could not teach a student with this tokenizer, or k is too large."""

    def score(self, rows: Sequence[Spoken], progress: Progress | None = None) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the row, the signal at its answer's tokens) once for each row, in any order."""


def scores_of(scorer: Scorer, rows: Sequence[Spoken]) -> Wanted:
    """Return that the scorer's signals for these answers are wanted: each under its own key, to be bought once."""
    keys = [
        key(scorer.digest, scorer.format, f"scored:prompt_tokens={len(row.prompt)}", row.whole.astype(np.int32))
        for row in rows
    ]

    def make(numbers: NDArray[np.int64], progress: Progress | None) -> Iterable[tuple[int, AnySignal]]:
        return scorer.score([rows[at] for at in numbers], progress)

    return Wanted(joined(keys), [len(row.prompt) for row in rows], make, scorer)


def check_rows(rows: Sequence[Spoken], vocabulary: int, context: int | None, whose: str) -> None:
    """Raise InputError for rows that a model with so many tokens and such a context cannot take."""
    if not rows:
        return
    if empty := sum(not (len(row.prompt) and len(row.answer)) for row in rows):
        raise InputError(f"{empty} of {len(rows)} rows have no prompt or no answer: there is nothing to score")
    least, largest = min(int(row.whole.min()) for row in rows), max(int(row.whole.max()) for row in rows)
    if least < 0 or largest >= vocabulary:
        raise InputError(
            f"token ids {least} to {largest} in an answer, but {whose} has {vocabulary} tokens: its tokenizer is "
            "another one, and ids mean other tokens to it"
        )
    if context is not None and (longest := max(map(len, rows))) > context:
        raise InputError(
            f"a prompt with its answer has {longest} tokens, the context of {whose} {context}: lower "
            "student.max_prompt_tokens or student.max_new_tokens"
        )
