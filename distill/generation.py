"""Greedy answers of a causal LM, with the log-probabilities of what it said and of what it might have."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import Failure, InputError
from distill.teachers.final_states import FinalStates

Progress = Callable[[int, int], None]  # (rows done, rows in all)


@dataclass(frozen=True)
class Generated:
    """One answer of T tokens, the stop token included when it was reached; k is `top_k`, which may be 0."""

    answer: NDArray[np.int32]  # (T,)
    logprobs: NDArray[np.float32]  # (T,) of the answer's tokens
    ids: NDArray[np.int32]  # (T, k) the likeliest tokens, likeliest first
    topk: NDArray[np.float16]  # (T, k) their log-probabilities
    tail: NDArray[np.float32]  # (T,) probability of all the others
    states: NDArray[np.float32] | None = None  # (T, D) of which the output layer makes the logits, if asked for


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; the draw is a pure function of (seed, prompt), whatever else is in the batch."""

    temperature: float
    seed: int


class _Noise:
    """Gumbel noise: the likeliest token of noisy scores is a sample of their softmax (Gumbel 1954)."""

    def __init__(self, sampling: Sampling, prompts: Sequence[NDArray[np.int32]]) -> None:
        self.temperature = sampling.temperature
        digests = [hashlib.sha256(f"{sampling.seed}:".encode() + prompt.tobytes()).digest() for prompt in prompts]
        self.rows = [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]

    def added(self, scores: Tensor) -> Tensor:
        """Return scores (B, V), divided by the temperature, with the noise of the next step."""
        size, least = scores.shape[1], torch.finfo(torch.float32).tiny
        drawn = torch.stack([torch.empty(size).exponential_(generator=row) for row in self.rows])  # (B, V)
        return scores.float() / self.temperature - drawn.clamp_(min=least).log_().to(scores.device)


class _Recorder:
    """A logits processor that keeps what is needed of each step: O(k) a token, never O(V)."""

    def __init__(self, top_k: int, vocabulary: int, noise: _Noise | None = None) -> None:
        self.top_k, self.vocabulary, self.noise = top_k, vocabulary, noise
        self.steps: list[tuple[Tensor, ...]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.vocabulary :] = float("-inf")  # padding of the output layer: no text has these ids
        logprobs = scores.float().log_softmax(-1)  # (B, V)
        chosen = logprobs.amax(-1)  # (B,) greedy takes the likeliest
        if self.noise:
            scores = self.noise.added(scores)
            chosen = logprobs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)
        if self.top_k:
            kept, ids = logprobs.topk(self.top_k, -1)  # (B, k)
            # The others are added up themselves: 1 - sum(kept) would cancel to noise where the model is sure.
            tail = logprobs.scatter_(-1, ids, float("-inf")).exp_().sum(-1)  # (B,)
            half = kept.clamp_(min=torch.finfo(torch.float16).min).half()
            self.steps.append((chosen, ids.int(), half, tail))
        else:
            self.steps.append((chosen,))
        return scores

    def arrays(self) -> list[NDArray[Any]]:
        """Return what was kept: chosen (B, S) and, with top_k, ids and topk (B, S, k) and tail (B, S)."""
        return [torch.stack(part, 1).cpu().numpy() for part in zip(*self.steps, strict=True)]


def greedy(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    *,
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
    top_k: int = 0,
    vocabulary: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Generated]:
    """Return the greedy answer to each prompt (token ids, not empty), in the order of the prompts.

    The checkpoint's own sampling settings are ignored. Ids from `vocabulary` on (default: the model's) are
    never chosen. Raises InputError when the model cannot take the prompts or has fewer than `top_k` tokens,
    and Failure when it computes something that is no number.
    """
    found: dict[int, Generated] = {}
    for rows in greedy_batches(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        eos=eos,
        pad=pad,
        top_k=top_k,
        vocabulary=vocabulary,
        batch_size=batch_size,
    ):
        found.update(rows)
        if progress:
            progress(len(found), len(prompts))
    return [found[at] for at in range(len(prompts))]


def sampled(model: Any, prompts: Sequence[NDArray[np.int32]], sampling: Sampling, **options: Any) -> list[Generated]:
    """Return one sampled answer to each prompt, in the order of the prompts; options and errors as of `greedy`.

    The log-probabilities are those of the model, without temperature.
    """
    found = {at: row for rows in greedy_batches(model, prompts, sampling=sampling, **options) for at, row in rows}
    return [found[at] for at in range(len(prompts))]


def greedy_batches(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    *,
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
    top_k: int = 0,
    vocabulary: int | None = None,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    hidden: bool = False,
) -> Iterator[list[tuple[int, Generated]]]:
    """Yield `greedy`'s answers (with `sampling`: `sampled`'s) batch by batch, as (number of the prompt, answer).

    With `hidden` their states come too.
    """
    outputs = model.get_output_embeddings().weight.shape[0]
    vocabulary = min(vocabulary or outputs, outputs)
    _check(model, prompts, max_new_tokens, top_k, vocabulary)
    lengths = np.array([len(prompt) for prompt in prompts])
    # Rows of one length together save padding; with the longest first, a lack of memory shows at once.
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        asked = [prompts[row] for row in rows]
        recorder = _Recorder(top_k, vocabulary, _Noise(sampling, asked) if sampling else None)
        with FinalStates(model) if hidden else nullcontext() as states:
            answers = _answers(model, asked, max_new_tokens, list(eos), pad, recorder)
        kept = recorder.arrays()
        ends = _ends(answers, eos)
        found = [(int(row), _cut(answers, kept, b, int(ends[b]))) for b, row in enumerate(rows)]
        if states:
            whole = states.array()  # (B, S, D)
            found = [(at, replace(row, states=whole[b, : len(row.answer)])) for b, (at, row) in enumerate(found)]
        if wrong := sum(not np.isfinite(answer.logprobs).all() for _, answer in found):
            raise Failure(
                f"{wrong} of {len(found)} answers of {model.config._name_or_path!r} have log-probabilities "
                "that are no numbers: its weights are damaged, or its number format is too narrow"
            )
        yield found


def _answers(
    model: Any,
    prompts: list[NDArray[np.int32]],
    max_new_tokens: int,
    eos: list[int],
    pad: int,
    recorder: _Recorder,
) -> NDArray[np.int32]:
    """Return the new tokens of a batch, (B, S), padded after the stop token."""
    from transformers import GenerationConfig

    length = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), length), pad, np.int64)
    mask = np.zeros((len(prompts), length), np.int64)
    for b, prompt in enumerate(prompts):
        tokens[b, length - len(prompt) :] = prompt
        mask[b, length - len(prompt) :] = 1
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad)
    # generate() fills what `config` leaves open from the model's own: penalties, forced tokens, temperatures.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.inference_mode():
            output = model.generate(
                torch.from_numpy(tokens).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
                generation_config=config,
                logits_processor=[recorder],
            )
    finally:
        model.generation_config = own
    return output[:, length:].cpu().numpy().astype(np.int32)  # type: ignore[no-any-return]


def _ends(answers: NDArray[np.int32], eos: Sequence[int]) -> NDArray[np.int64]:
    """Return the length of each answer up to and with its first stop token, (B,)."""
    stops = np.isin(answers, list(eos))
    ends: NDArray[np.int64] = np.where(stops.any(1), stops.argmax(1) + 1, answers.shape[1])
    return ends


def _cut(answers: NDArray[np.int32], kept: list[NDArray[Any]], b: int, end: int) -> Generated:
    logprobs, *signal = (part[b, :end] for part in kept)
    if not signal:  # nothing kept: all the mass is outside
        signal = [np.zeros((end, 0), np.int32), np.zeros((end, 0), np.float16), np.ones(end, np.float32)]
    return Generated(answers[b, :end], logprobs, *signal)


def _check(model: Any, prompts: Sequence[NDArray[np.int32]], max_new_tokens: int, top_k: int, vocabulary: int) -> None:
    name = model.config._name_or_path
    if top_k > vocabulary:
        raise InputError(f"top_k = {top_k}, but {name!r} has a vocabulary of {vocabulary} tokens: lower it")
    if not prompts:
        return
    if empty := sum(not len(prompt) for prompt in prompts):
        raise InputError(f"{empty} of {len(prompts)} prompts have no token: encode them with distill.prompts")
    longest = max(len(prompt) for prompt in prompts)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} exceed the context of {name!r}, "
            f"{context} tokens: lower student.max_prompt_tokens or student.max_new_tokens"
        )
    largest = max(int(prompt.max()) for prompt in prompts)
    embedded = model.get_input_embeddings().weight.shape[0]
    if largest >= embedded:
        raise InputError(
            f"token id {largest}, but {name!r} has {embedded} tokens: its tokenizer belongs to another model"
        )


def stop_and_pad(model: Any, tokenizer: Any) -> tuple[list[int], int]:
    """Return the tokens that end an answer (of generation config and tokenizer) and the one that pads.

    Raises InputError when the checkpoint names none: its answers could not end.
    """
    stops = stop_tokens(model.generation_config, tokenizer)
    pad = tokenizer.pad_token_id
    return stops, stops[0] if pad is None else pad


def stop_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer, in order; InputError when there is none."""
    own = generation_config.eos_token_id
    stops = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    if not stops:
        raise InputError(
            f"{tokenizer.name_or_path!r} names no eos token, so no answer could end: set eos_token_id in its "
            "generation_config.json or eos_token in its tokenizer_config.json"
        )
    return sorted(stops)
