"""Checkpoint x (prompt, target) -> how likely the checkpoint finds each target: one pass, nothing is generated.

    likelihood = score_targets(folder, prompts, targets, max_prompt_tokens=512, max_new_tokens=32)
    -likelihood.mean_logprob  # negative log-likelihood of each target [nats/token]

Prompts are framed as for answers (distill/prompts.py). A target is the answer's text, as it is written, in the
checkpoint's own tokens and then its end; where a model can end an answer by several tokens, the end is as likely as all
of them together. Numbers of models with different tokenizers cannot be compared: a token is more or less text to each.

Shapes: N rows, T tokens of a target, D width, V vocabulary, B rows of a batch, L tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.loaded import Loaded, load

if TYPE_CHECKING:
    from torch import Tensor

    from distill.loss.inside import Output
    from distill.teachers.scored import Spoken

_ROWS = 256  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Likelihood:
    """One row a target, in the order of the targets."""

    mean_logprob: NDArray[np.float64]  # (N,) over the target's tokens, its end included [nats/token]
    tokens: NDArray[np.int64]  # (N,) of the target, its end included
    truncated_prompts: int  # that were longer than max_prompt_tokens
    truncated_targets: int  # that were longer than max_new_tokens: their beginning is scored, and no end


def score_targets(
    checkpoint: Path | str | Loaded,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    batch_size: int = 256,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Return how likely the checkpoint finds each prompt's target, teacher-forced, in batches of similar length.

    Raises InputError when the checkpoint cannot be used, and Failure when it computes something that is no number.
    """
    from distill.generation import stop_and_pad
    from distill.loss.inside import output_of
    from distill.prompts import encode, vocabulary_size
    from distill.teachers.scored import Spoken, check_rows

    loaded = load(checkpoint, device)
    model, tokenizer = loaded.model, loaded.tokenizer
    stops, _ = stop_and_pad(model, tokenizer)
    encoded = encode(tokenizer, prompts, max_prompt_tokens)
    said, cut = _tokens(tokenizer, targets, stops[0], max_new_tokens)
    rows = [Spoken(prompt, answer) for prompt, answer in zip(encoded.ids, said, strict=True)]
    vocabulary = min(vocabulary_size(tokenizer), model.get_output_embeddings().weight.shape[0])
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    check_rows(rows, vocabulary, context, repr(str(loaded.folder)))
    if not rows:
        return Likelihood(np.zeros(0), np.zeros(0, np.int64), 0, 0)
    output, found = output_of(model), np.zeros(len(rows), np.float64)
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))  # with the longest first, a lack of memory shows
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        for at, states in zip(chosen, answer_states(model, output, [rows[at] for at in chosen]), strict=True):
            found[at] = _mean_logprob(model, output, rows[at].answer, states, stops, vocabulary)
        if progress:
            progress(min(first + batch_size, len(order)), len(order))
    if wrong := int((~np.isfinite(found)).sum()):
        raise Failure(
            f"{wrong} of {len(found)} targets have log-probabilities under {str(loaded.folder)!r} that are no numbers: "
            "its weights are damaged, or its number format is too narrow"
        )
    return Likelihood(found, np.array([len(row.answer) for row in rows], np.int64), encoded.truncated, cut)


def _tokens(
    tokenizer: Any, targets: Sequence[str], stop: int, max_new_tokens: int
) -> tuple[list[NDArray[np.int32]], int]:
    """Return each target's tokens with `stop` at their end, and how many were too long and have none."""
    if not targets:
        return [], 0
    rows = tokenizer(list(targets), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    whole = [np.array([*row, stop], np.int32) for row in rows]
    return [row[:max_new_tokens] for row in whole], sum(len(row) > max_new_tokens for row in whole)


def answer_states(model: Any, output: "Output", rows: "Sequence[Spoken]") -> "list[Tensor]":
    """Return what the output layer is given for each row's answer tokens, (T, D) each."""
    import torch

    from distill.loss.inside import run

    length = max(map(len, rows))
    ids, filled = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.from_numpy(row.whole.astype(np.int64))
        filled[b, : len(row)] = 1
    inputs = {"input_ids": ids.to(model.device), "attention_mask": filled.to(model.device)}
    with torch.inference_mode():
        final = run(model, output, inputs).final  # (B, L, D)
    # The state before a token is what predicts it.
    return [final[b, len(row.prompt) - 1 : len(row) - 1] for b, row in enumerate(rows)]


def answer_logits(model: Any, output: "Output", states: "Tensor", vocabulary: int) -> "Tensor":
    """Return the logits of some states, (T, V) in float32, without the padding of the output layer."""
    import torch

    with torch.inference_mode():
        logits = model.get_output_embeddings()(states)[:, :vocabulary].float()
        return output.softcap * torch.tanh(logits / output.softcap) if output.softcap else logits


def _mean_logprob(
    model: Any, output: "Output", said: NDArray[np.int32], states: "Tensor", stops: Sequence[int], vocabulary: int
) -> float:
    """Return the mean log-probability of a target's tokens; its last one counts as any of `stops` where it is one."""
    import torch

    total = 0.0
    for first in range(0, len(said), _ROWS):
        part = torch.from_numpy(said[first : first + _ROWS].astype(np.int64)).to(states.device)
        logprobs = answer_logits(model, output, states[first : first + _ROWS], vocabulary).log_softmax(-1)  # (rows, V)
        total += float(logprobs.gather(-1, part[:, None]).double().sum())
        if first + _ROWS >= len(said) and int(said[-1]) in stops:
            total += float(logprobs[-1, list(stops)].logsumexp(0) - logprobs[-1, int(said[-1])])
    return total / len(said)
