"""What each round of an on-policy training is about: its steps, its rows, and which of them the student answers."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Round:
    """One round of several, of a training of `steps` steps in all."""

    number: int  # from 1 on
    first: int  # steps before it
    last: int  # its last step
    rows: NDArray[np.int64]  # of the mixture, sorted
    own: NDArray[np.bool_]  # (rows,) the student answers them itself


def rounds_of(
    steps: int, epochs: float, rounds: int, share: float, learnable: NDArray[np.int64], seed: int
) -> list[Round]:
    """Return the rounds: as many steps each, and of the rows what those steps take; a pure function of its arguments.

    learnable: rows of the mixture. All rounds together take each of them about `epochs` times, as one pass after the
    other in random order would: a round of more than one pass takes all rows. With fewer steps than rounds there are
    fewer rounds.
    """
    rounds = min(rounds, steps)
    ends = [round(steps * number / rounds) for number in range(rounds + 1)]
    made = []
    for number in range(1, rounds + 1):
        rows = _rows(learnable, epochs / rounds, number, seed)
        order = np.random.default_rng((seed, number, 0x0B)).permutation(len(rows))
        own = np.zeros(len(rows), np.bool_)
        own[order[: max(1, round(share * len(rows)))]] = True
        made.append(Round(number, ends[number - 1], ends[number], rows, own))
    return made


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a round's answers: another one in each round, or they would share their noise."""
    return int.from_bytes(hashlib.sha256(f"round:{seed}:{number}".encode()).digest()[:4], "little") >> 1


def _rows(learnable: NDArray[np.int64], passes: float, number: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a round of so many passes, sorted; one may be there twice where a pass ends within it."""
    count = len(learnable)
    if passes >= 1:
        return np.sort(learnable)
    first, last = math.floor((number - 1) * passes * count), math.ceil(number * passes * count)
    turns = [_turn(learnable, turn, seed) for turn in range(first // count, (last - 1) // count + 1)]
    begin = first - first // count * count
    return np.sort(np.concatenate(turns)[begin : begin + last - first])


def _turn(learnable: NDArray[np.int64], turn: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, turn, 0x0A)).permutation(learnable)
