"""Rows -> what one process computes in a step: forward passes of bins, with the teacher's signals for their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.alignment.translated import Translated, translated
from distill.batching.order import Order
from distill.batching.packing import Bin, Layout, dealt, passes
from distill.errors import InputError
from distill.mixture import Mixture
from distill.signals import SignalStore
from distill.teachers.protocol import AnySignal

ROUND = 8  # bins are a multiple of so many tokens: kernels are compiled and tuned for few shapes


@dataclass(frozen=True)
class Batch:
    """One forward pass: B bins of L tokens, in them rows of prompt, then answer. A answer tokens, P prompt tokens.

    A token's share is what it counts in the mean over the global batch: its row's weight over the sum of the weights
    of all tokens of that kind. Shares of a kind add up to 1 over all passes and processes of a step.
    """

    input_ids: NDArray[np.int64]  # (B, L)
    position_ids: NDArray[np.int64]  # (B, L) from 0 in every row, 0 where there is none
    filled: NDArray[np.int64]  # (B, L) 1 where there is a row; 1 everywhere if there is none, or softmax had nothing
    answer_at: NDArray[np.int64]  # (A,) flat positions in (B, L) that predict an answer token
    answer: NDArray[np.int64]  # (A,) that token
    answer_share: NDArray[np.float32]  # (A,)
    own: NDArray[np.bool_]  # (A,) the student itself said that token: no cross entropy, and a divergence of its own
    signal: AnySignal | Translated | None  # the teacher's, of these A tokens; None where there are none
    prompt_at: NDArray[np.int64]  # (P,) flat positions that predict a prompt token: all but each row's first
    prompt: NDArray[np.int64]  # (P,) that token
    prompt_share: NDArray[np.float32]  # (P,)


@dataclass(frozen=True)
class Step:
    """One process's part of a global batch. Every process has as many passes, so that all take part in each."""

    number: int
    rows: list[int]  # of all processes
    passes: list[Batch]
    answer_tokens: int  # of all processes
    prompt_tokens: int  # of all processes, as far as they are predicted
    positions: int  # of this process: tokens and padding

    @property
    def counts(self) -> dict[str, int]:
        """What the step's record says of its size."""
        return {
            "rows": len(self.rows),
            "answer_tokens": self.answer_tokens,
            "prompt_tokens": self.prompt_tokens,
            "positions": self.positions,
        }


class Batches:
    """The steps of one process of several; a pure function of (mixture, signals, limits, seed, step).

    Raises InputError for a row without a prompt, and Failure for one whose signal is not in the store.
    """

    def __init__(
        self,
        mixture: Mixture,
        signals: SignalStore,
        *,
        tokens_per_step: int,
        tokens_per_pass: int,
        layout: Layout,
        width: int,
        pad: int,
        seed: int,
        left_out: NDArray[np.bool_] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.mixture, self.signals, self.pad = mixture, signals, pad
        self.tokens_per_pass, self.layout, self.width = tokens_per_pass, layout, width
        self.rank, self.processes = rank, processes
        self.prompts = np.diff(mixture.offsets)  # (rows,) tokens of each prompt
        if (empty := np.flatnonzero(self.prompts == 0)).size:
            raise InputError(f"row {empty[0]} of the mixture has an empty prompt: nothing could predict its answer")
        whole = signals.tokens(mixture.keys)
        if mixture.alignment:  # the store has counted the teacher's
            whole = self.prompts + np.diff(mixture.alignment.offsets)
        self.lengths: NDArray[np.int64] = whole  # (rows,) of prompt and answer
        # A model that is given no positions counts padding as well, and may have none beyond its context. No row is
        # longer than that; packed bins may be, in which positions begin anew.
        self.longest = int(self.lengths.max(initial=1)) if layout == "padded" else None
        self.order = Order(self.lengths, tokens_per_step, seed, left_out)

    def step(self, number: int) -> Step:
        """Return this process's part of a global batch."""
        rows = self.order.rows(number)
        return self.part(number, rows, rows)

    def part(self, number: int, rows: list[int], whole: list[int]) -> Step:
        """Return this process's part of some rows, whose tokens have their shares of the mean over `whole`."""
        answers, prompts = self.lengths - self.prompts, self.prompts - 1
        weights = self.mixture.weights[whole].astype(np.float64)
        weight = float(weights @ answers[whole]), float(weights @ prompts[whole])
        plans = [
            passes(hand, self.lengths[hand].tolist(), self.tokens_per_pass, self.layout, self.width)
            for hand in dealt(rows, self.lengths[rows].tolist(), self.processes)
        ]
        mine = plans[self.rank]
        mine = mine + [[] for _ in range(max(map(len, plans)) - len(mine))]
        batches = [self._batch(bins, weight) for bins in mine]
        positions = sum(batch.input_ids.size for batch in batches)
        return Step(number, rows, batches, int(answers[rows].sum()), int(prompts[rows].sum()), positions)

    def _batch(self, bins: Sequence[Bin], weight: tuple[float, float]) -> Batch:
        return collate(self.mixture, self.signals, bins, self.pad, weight, self.longest)


def collate(
    mixture: Mixture,
    signals: SignalStore,
    bins: Sequence[Bin],
    pad: int,
    weight: tuple[float, float] = (1.0, 1.0),
    longest: int | None = None,
) -> Batch:
    """Return a forward pass over these bins; without any it is one of padding alone, and has no loss.

    `weight` is what the rows' weights add up to over the global batch, on (answer tokens, prompt tokens); padding makes
    no bin longer than `longest` [tokens].
    """
    rows = [row for members in bins for row in members]
    answers, spoken, signal = _said(mixture, signals, rows) if rows else (np.zeros(0, np.int64), [], None)
    prompts = [mixture.prompt(row) for row in rows]
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, spoken, strict=True)]
    starts, length = _places([len(members) for members in bins], lengths, longest)
    shape = max(1, len(bins)), length
    input_ids = np.full(shape, pad, np.int64)
    position_ids, filled = np.zeros(shape, np.int64), np.full(shape, 0 if rows else 1)
    for start, prompt, answer in zip(starts, prompts, spoken, strict=True):
        middle, end = start + len(prompt), start + len(prompt) + len(answer)
        input_ids.flat[start:middle], input_ids.flat[middle:end] = prompt, answer
        position_ids.flat[start:end] = np.arange(end - start)
        filled.flat[start:end] = 1
    asked = [len(prompt) for prompt in prompts]
    share = [mixture.weights[rows] / total if rows else np.zeros(0) for total in weight]
    own = np.zeros(len(rows), np.bool_) if mixture.own is None else mixture.own[rows]
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        filled=filled,
        # Position t predicts token t + 1.
        answer_at=_joined([s + p - 1 + np.arange(a) for s, p, a in zip(starts, asked, answers, strict=True)], np.int64),
        answer=_joined(spoken, np.int64),
        answer_share=np.repeat(share[0], answers).astype(np.float32),
        own=np.repeat(own, answers),
        signal=signal,
        prompt_at=_joined([s + np.arange(p - 1) for s, p in zip(starts, asked, strict=True)], np.int64),
        prompt=_joined([prompt[1:] for prompt in prompts], np.int64),
        prompt_share=np.repeat(share[1], [p - 1 for p in asked]).astype(np.float32),
    )


def _said(
    mixture: Mixture, signals: SignalStore, rows: list[int]
) -> tuple[NDArray[np.int64], list[NDArray[np.int32]], AnySignal | Translated]:
    """Return (length of each row's answer, the answers, what the teacher said of them) in the student's tokens."""
    answers, signal = signals.get_many(mixture.keys[rows])
    if not mixture.alignment:
        return answers, np.split(signal.answer, np.cumsum(answers)[:-1]), signal
    spoken = [mixture.alignment.answer(row) for row in rows]
    return np.array([len(row) for row in spoken]), spoken, translated(signal, answers, mixture.alignment, rows)


def _places(members: Sequence[int], lengths: Sequence[int], longest: int | None) -> tuple[list[int], int]:
    """Return where each row begins, flat in (B, L), and L; `members` says how many rows each bin has."""
    bins = np.split(np.asarray(lengths, np.int64), np.cumsum(members)[:-1]) if members else []
    length = -(-max((int(rows.sum()) for rows in bins), default=1) // ROUND) * ROUND
    length = length if longest is None else min(length, longest)
    return [b * length + int(start) for b, rows in enumerate(bins) for start in np.cumsum(rows) - rows], length


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
