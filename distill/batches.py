"""Rows -> batches, in an order that is a pure function of (seed, step), so that any step can be made again."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError
from distill.mixture import Mixture
from distill.signals import SignalStore
from distill.teachers.protocol import AnySignal, Signal

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


class Order:
    """Which rows a step takes; a pure function of (lengths, batch_size, seed, step).

    Each pass over the rows has a permutation of its own. Within POOL batches of it, rows of about the same length go
    together, so that little of a batch is padding, and the batches come in random order.
    """

    POOL = 4  # batches

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self._pass = lru_cache(maxsize=2)(self._shuffled)

    def rows(self, step: int) -> list[int]:
        """Return the row numbers of one global batch; the last one of a pass is filled up from the next pass."""
        rows, first = len(self.lengths), step * self.batch_size
        return [int(self._pass(at // rows)[at % rows]) for at in range(first, first + self.batch_size)]

    def _shuffled(self, number: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.lengths))
        pools = np.split(order, range(self.POOL * self.batch_size, len(order), self.POOL * self.batch_size))
        return np.concatenate([self._grouped(pool, random) for pool in pools])

    def _grouped(self, pool: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        blurred = self.lengths[pool] * random.uniform(
            0.8, 1.25, len(pool)
        )  # else small data has the same batches always
        by_length = pool[np.argsort(blurred, kind="stable")]
        batches = np.split(by_length, range(self.batch_size, len(by_length), self.batch_size))
        whole = len(pool) // self.batch_size  # the rest stays last, or all batches after it would be out of step
        return np.concatenate([*(batches[at] for at in random.permutation(whole)), *batches[whole:]])


def collate(mixture: Mixture, signals: SignalStore, rows: list[int], pad: int) -> Batch:
    """Return these rows as one padded batch with their teacher signals."""
    found = [_topk(signals.get(mixture.keys[row].tobytes())) for row in rows]
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


def _topk(signal: AnySignal) -> Signal:
    if not isinstance(signal, Signal):
        raise InputError(f"teacher.signals_format {signal.format!r}: batches hold top-k signals, use topk:K")
    return signal
