"""A teacher's top-k -> what the student's tokens can learn of it: shared tokens by name, the others by rank.

Shapes: A answer tokens of the student, T of the teacher, k kept tokens, V tokens of the teacher.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.alignment.alignment import NONE, Alignment
from distill.errors import Failure
from distill.store.encodings import ranges
from distill.teachers.protocol import AnySignal, Signal


@dataclass(frozen=True)
class Translated:
    """What the teacher said where the student says its own tokens."""

    ids: NDArray[np.int64]  # (A, k) the student's tokens; those that are not live repeat a live one
    logprobs: NDArray[np.float32]  # (A, k)
    live: NDArray[np.bool_]  # (A, k) different tokens in a row; none where the token is not matched
    tail: NDArray[np.float32]  # (A,) probability of all others together, 0 where the token is not matched
    matched: NDArray[np.bool_]  # (A,) whether probabilities are compared by token; else the answer's token is learned
    ranked: NDArray[np.float32]  # (A, k) probabilities to be compared by rank, the largest first, then 0
    ranks: NDArray[np.int64]  # (A,) how many of them
    rest: NDArray[np.float32]  # (A,) what follows them together, -1 where that is not compared
    shared: NDArray[np.int64]  # the student's tokens that the teacher has, sorted


def translated(signal: AnySignal, lengths: NDArray[np.int64], alignment: Alignment, rows: list[int]) -> Translated:
    """Return the signal of some rows in the student's tokens.

    lengths: tokens of each row's answer in the signal. Where both say the same token the teacher's distribution is
    one over the tokens that both have and the rest; what of it the student lacks is compared by rank with what the
    teacher lacks. Elsewhere all is compared by rank. Raises Failure where signal and alignment do not belong together.
    """
    if not isinstance(signal, Signal):
        raise Failure("the mixture is of another tokenizer than its signals, which are no top-k: use topk:K")
    own = ranges(alignment.offsets[rows], np.diff(alignment.offsets)[rows])
    theirs, begins = alignment.theirs[own], np.cumsum(lengths) - lengths
    count = np.diff(alignment.offsets)[rows]
    if (theirs >= np.repeat(lengths, count)).any() or signal.ids.max(initial=0) >= len(alignment.token_map):
        raise Failure("the mixture's alignment does not belong to its signals: make the mixture again")
    compared = theirs != NONE
    at = np.where(compared, theirs + np.repeat(begins, count), 0)
    mapped = alignment.token_map[signal.ids[at]].astype(np.int64)  # (A, k)
    logprobs = signal.logprobs[at].astype(np.float32)
    live = mapped >= 0
    _merge(mapped, logprobs, live)
    matched = alignment.matched[own] & live.any(1)
    foreign = np.where((matched[:, None] & (mapped < 0)) | ~matched[:, None], _mass(signal, at), 0)
    foreign[~compared] = 0
    live &= matched[:, None]
    ranked = -np.sort(-foreign, axis=1)
    ids = np.where(live, mapped, np.take_along_axis(mapped, live.argmax(1)[:, None], 1))
    return Translated(
        ids=np.maximum(ids, 0),
        logprobs=logprobs,
        live=live,
        tail=np.where(matched, signal.tail[at] + foreign.sum(1), 0).astype(np.float32),
        matched=matched,
        ranked=ranked.astype(np.float32),
        ranks=(ranked > 0).sum(1),
        rest=np.where(compared & ~matched, signal.tail[at], -1).astype(np.float32),
        shared=alignment.shared,
    )


def _mass(signal: Signal, at: NDArray[np.int64]) -> NDArray[np.float32]:
    mass: NDArray[np.float32] = np.exp(signal.logprobs[at].astype(np.float32))
    return mass


def _merge(mapped: NDArray[np.int64], logprobs: NDArray[np.float32], live: NDArray[np.bool_]) -> None:
    """Give the probability of tokens that are one to the student to the first of them, in place."""
    ordered = np.sort(mapped, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
    for row in np.flatnonzero(twice):
        for token in np.unique(mapped[row][live[row]]):
            first, *others = np.flatnonzero(mapped[row] == token)
            logprobs[row, first] = np.logaddexp.reduce(logprobs[row, [first, *others]])
            live[row, others] = False
