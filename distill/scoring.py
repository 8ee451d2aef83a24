"""Checkpoint x prompts -> the answer to each prompt and how sure the model was of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.loaded import Loaded, load


@dataclass(frozen=True)
class Scores:
    """One row a prompt, in the order of the prompts."""

    responses: list[str]
    mean_logprob: NDArray[np.float64]  # (N,) mean over the answer's tokens, stop token included [nats/token]
    tokens: NDArray[np.int64]  # (N,) of the answer, stop token included
    truncated: int  # prompts that were longer than max_prompt_tokens

    @property
    def confidence(self) -> NDArray[np.float64]:
        """How probable each answer is to the model as a whole, (N,) [probability].

        What is right or wrong is the whole answer, and so is what can be calibrated: the product over its tokens. The
        mean of a token would call an answer of ten tokens, each 90 % sure, as sure as one of a single token.
        """
        sure: NDArray[np.float64] = np.exp(self.mean_logprob * self.tokens)
        return sure


def score(
    checkpoint: Path | str | Loaded,
    prompts: Sequence[str],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    batch_size: int = 256,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Return the checkpoint's greedy answers with their mean token log-probability; `device` is of one not yet loaded.

    Raises InputError when the checkpoint cannot be used.
    """
    from distill.generation import greedy, stop_and_pad
    from distill.prompts import encode, vocabulary_size

    loaded = load(checkpoint, device)
    model, tokenizer = loaded.model, loaded.tokenizer
    encoded = encode(tokenizer, prompts, max_prompt_tokens)
    stops, pad = stop_and_pad(model, tokenizer)
    answers = greedy(
        model,
        encoded.ids,
        max_new_tokens=max_new_tokens,
        eos=stops,
        pad=pad,
        vocabulary=vocabulary_size(tokenizer),
        batch_size=batch_size,
        progress=progress,
    )
    # A stop token need not be marked as special in the tokenizer, and is no part of the text in any case.
    texts = [row.answer[:-1] if row.answer[-1] in stops else row.answer for row in answers]
    return Scores(
        responses=[tokenizer.decode(text, skip_special_tokens=True) for text in texts],
        mean_logprob=np.array([row.logprobs.mean(dtype=np.float64) for row in answers], np.float64),
        tokens=np.array([len(row.answer) for row in answers], np.int64),
        truncated=encoded.truncated,
    )
