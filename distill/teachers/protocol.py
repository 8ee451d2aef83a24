"""What a teacher is: something that answers prompts and, if it can, says how likely each answer's tokens were."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Signal:
    """The teacher's answer of T tokens to one prompt, with the k likeliest tokens at each of them."""

    answer: NDArray[np.int32]  # (T,) the stop token included when it was reached
    ids: NDArray[np.int32]  # (T, k) likeliest first
    logprobs: NDArray[np.float16]  # (T, k) of `ids`, natural logarithm
    tail: NDArray[np.float32]  # (T,) probability of all other tokens together


@dataclass(frozen=True)
class HiddenSignal:
    """The teacher's answer of T tokens to one prompt, with the states that its lm_head makes the logits from.

    The states are float32 whatever the store keeps them as (NumPy has no bfloat16, each of which is a float32).
    """

    answer: NDArray[np.int32]  # (T,) the stop token included when it was reached
    states: NDArray[np.float32]  # (T, D) after the final norm, where each token of `answer` is predicted
    logprobs: NDArray[np.float16]  # (T,) of the answer's tokens, natural logarithm
    format: str = "hidden:bf16"  # what the store keeps of the states


# How an answer came to its end. From FILTERED on there is none to learn from or to judge by.
WHOLE, CUT, FILTERED, REFUSED, EMPTY = range(5)
ENDINGS = ("whole", "cut", "filtered", "refused", "empty")


@dataclass(frozen=True)
class AnswerSignal:
    """The teacher's answer of T tokens to one prompt and nothing else: how likely it was is not known.

    An answer that was withheld is the stop token alone.
    """

    answer: NDArray[np.int32]  # (T,) the stop token included, but for an answer that was cut
    ending: NDArray[
        np.uint8
    ]  # (T,) how it came to its end, an index into ENDINGS, the same for all tokens of an answer


AnySignal: TypeAlias = Signal | HiddenSignal | AnswerSignal


class Teacher(Protocol):
    """Answers prompts of token ids; all that decides an answer is in `digest`, `format` and `sampling`."""

    @property
    def digest(self) -> str:
        """Identity of the weights."""

    @property
    def format(self) -> str:
        """What a signal holds, as in "topk:32", "hidden:bf16" or "answer" (distill.store.encodings)."""

    @property
    def sampling(self) -> str:
        """How answers are made, as in "greedy:max_new_tokens=16"."""

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError when signals could not teach a student with this tokenizer, or k is too large."""

    def ask(
        self, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the prompt, its signal) once for each prompt, as they come, in any order."""
