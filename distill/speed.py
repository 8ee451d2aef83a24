"""How long models take for one answer, measured side by side: in the same process, in turns, one row at a time.

What disturbs a machine for a while disturbs all models alike then, and their ratio stands where no time of one would.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.loaded import Loaded

WARM_UP = 3  # answers of each model that are not counted


def latencies(
    models: Sequence[Loaded],
    prompts: Sequence[str],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Return how long each model takes to answer each prompt greedily, (models, prompts) [s].

    Each prompt is answered by all models before the next, by the last of them first every second time: to come second
    is no advantage. Raises InputError for prompts that a model cannot take.
    """
    answers = [_answering(model, prompts, max_prompt_tokens, max_new_tokens) for model in models]
    found = np.zeros((len(models), len(prompts)))
    numbers = range(len(models))
    for at in [*range(min(WARM_UP, len(prompts))), *range(len(prompts))]:  # the warm-up is overwritten
        for number in numbers if at % 2 == 0 else reversed(numbers):
            began = time.perf_counter()
            answers[number](at)
            found[number, at] = time.perf_counter() - began
        if progress:
            progress(at + 1, len(prompts))
    return found


def _answering(
    loaded: Loaded, prompts: Sequence[str], max_prompt_tokens: int, max_new_tokens: int
) -> Callable[[int], object]:
    """Return a function: number of a prompt -> its answer, as `distill.scoring` has it, read from the device."""
    from distill.generation import greedy, stop_and_pad
    from distill.prompts import encode, vocabulary_size

    encoded = encode(loaded.tokenizer, prompts, max_prompt_tokens).ids
    (stops, pad), vocabulary = stop_and_pad(loaded.model, loaded.tokenizer), vocabulary_size(loaded.tokenizer)
    return lambda at: greedy(
        loaded.model, [encoded[at]], max_new_tokens=max_new_tokens, eos=stops, pad=pad, vocabulary=vocabulary
    )
