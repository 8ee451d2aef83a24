"""Rows -> batches, in an order that is a pure function of (seed, step), so that any step can be made again."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distill.mixture import Mixture
from distill.signals import SignalStore
from distill.teachers.protocol import Signal

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: prompt, then the teacher's answer. B rows, L tokens, A answer tokens in all."""

    input_ids: NDArray[np.int64]  # (B, L)
    attention_mask: NDArray[np.int64]  # (B, L)
    prompt_labels: NDArray[np.int64]  # (B, L) the next token where it belongs to the prompt, else IGNORED
    answer_at: NDArray[np.int64]  # (A,) flat positions in (B, L) that predict an answer token
    answer: NDArray[np.int64]  # (A,) that token
    ids: NDArray[np.int64]  # (A, k) the teacher's k likeliest tokens there
    logprobs: NDArray[np.float32]  # (A, k) and their log-probabilities
    tail: NDArray[np.float32]  # (A,) probability of all the others

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answers."""
        return len(self.answer)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that are predicted: all but each row's first."""
        return int((self.prompt_labels != IGNORED).sum())


def step_count(rows: int, epochs: float, batch_size: int) -> int:
    """Return how many steps of `batch_size` rows make `epochs` passes, at least one."""
    return max(1, math.ceil(rows * epochs / batch_size))


def rows_of_step(rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the row numbers of one global batch; each pass over the rows has a permutation of its own."""
    first = step * batch_size
    return [int(_permutation(rows, seed, at // rows)[at % rows]) for at in range(first, first + batch_size)]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def collate(mixture: Mixture, signals: SignalStore, rows: list[int], pad: int) -> Batch:
    """Return these rows as one padded batch with their teacher signals."""
    found: list[Signal] = [signals.get(mixture.keys[row].tobytes()) for row in rows]
    prompts = [mixture.prompt(row) for row in rows]
    length = max(len(prompt) + len(signal.answer) for prompt, signal in zip(prompts, found, strict=True))
    input_ids = np.full((len(rows), length), pad, np.int64)
    attention_mask = np.zeros((len(rows), length), np.int64)
    prompt_labels = np.full((len(rows), length), IGNORED, np.int64)
    answer_at = []
    for b, (prompt, signal) in enumerate(zip(prompts, found, strict=True)):
        p, end = len(prompt), len(prompt) + len(signal.answer)
        input_ids[b, :p], input_ids[b, p:end] = prompt, signal.answer
        attention_mask[b, :end] = 1
        prompt_labels[b, : p - 1] = prompt[1:]
        answer_at.append(b * length + np.arange(p - 1, end - 1))  # position t predicts token t + 1
    return Batch(
        input_ids,
        attention_mask,
        prompt_labels,
        np.concatenate(answer_at),
        np.concatenate([s.answer for s in found]).astype(np.int64),
        np.concatenate([s.ids for s in found]).astype(np.int64),
        np.concatenate([s.logprobs for s in found]).astype(np.float32),
        np.concatenate([s.tail for s in found]).astype(np.float32),
    )
