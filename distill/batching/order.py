"""Which rows a step takes: a pure function of (lengths, tokens, seed, step), so that any step can be made again."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError


class Order:
    """Steps of at most `tokens` tokens over rows of `lengths` tokens.

    Each pass over the rows has a permutation of its own and holds every row once. Within some POOL steps of it, rows
    of about the same length go together, so that little of a forward pass is padding, and the steps come in random
    order. A row longer than `tokens` is a step of its own; rows `left_out` are in none. Raises InputError when there
    is no row.
    """

    POOL = 4  # steps

    def __init__(
        self, lengths: NDArray[np.int64], tokens: int, seed: int, left_out: NDArray[np.bool_] | None = None
    ) -> None:
        self.left_out = np.zeros(len(lengths), np.bool_) if left_out is None else left_out
        if self.left_out.all():
            raise InputError("there is no row to learn from: widen the window, or check what the mixture left out")
        self.lengths, self.tokens, self.seed = lengths, tokens, seed
        self.longer = int((lengths[~self.left_out] > tokens).sum())  # rows that are a step of their own
        self._steps = lru_cache(maxsize=2)(self._shuffled)
        self._ends = [0]  # of the passes: how many steps are done with them

    def rows(self, step: int) -> list[int]:
        """Return the row numbers of one global batch."""
        while self._ends[-1] <= step:
            self._ends.append(self._ends[-1] + len(self._steps(len(self._ends) - 1)))
        number = int(np.searchsorted(self._ends, step, side="right")) - 1
        return [int(row) for row in self._steps(number)[step - self._ends[number]]]

    def steps(self, epochs: float) -> int:
        """Return how many steps make `epochs` passes, at least one; of a pass begun, its share of steps."""
        whole = math.floor(epochs)
        done = sum(len(self._steps(number)) for number in range(whole))
        part = epochs - whole
        return max(1, done + (math.ceil(part * len(self._steps(whole))) if part else 0))

    def reached(self, steps: int) -> NDArray[np.bool_]:
        """Return which rows the first `steps` steps take, (rows,): all but those left out once a pass is done."""
        first = self._steps(0)  # a later pass has no other rows
        if steps >= len(first):
            return ~self.left_out
        taken = np.zeros(len(self.lengths), np.bool_)
        for rows in first[:steps]:
            taken[rows] = True
        return taken

    def _shuffled(self, number: int) -> list[NDArray[np.int64]]:
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.lengths))
        order = order[~self.left_out[order]]  # of the others nothing changes
        blurred = self.lengths * random.uniform(
            0.8, 1.25, len(self.lengths)
        )  # else small data has the same steps always
        total = np.cumsum(self.lengths[order])
        pools = max(1, round(float(total[-1]) / (self.POOL * self.tokens)))
        borders = np.searchsorted(total, total[-1] * np.arange(1, pools) / pools)
        sorted_pools = [pool[np.argsort(blurred[pool], kind="stable")] for pool in np.split(order, borders)]
        # Up, down, up: where two pools meet, a step of both has rows of about the same length as well.
        rows = np.concatenate([pool[:: 1 - 2 * (at % 2)] for at, pool in enumerate(sorted_pools)])
        steps = np.split(rows, even_cuts(self.lengths[rows], self.tokens))
        return [steps[at] for at in random.permutation(len(steps))]


def even_cuts(lengths: NDArray[np.int64], tokens: int) -> list[int]:
    """Return where to cut a sequence of rows into the fewest parts of at most `tokens`, about equally large.

    Parts are equally large as far as the smallest limit goes that needs no more parts. A row longer than `tokens` is a
    part of its own.
    """
    ends = np.cumsum(lengths)
    fewest = len(_cuts(ends, tokens))
    low, high = 0, tokens  # high always suffices, low never does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(ends, middle)) <= fewest else (middle, high)
    return _cuts(ends, high)


def _cuts(ends: NDArray[np.int64], tokens: int) -> list[int]:
    """Cut greedily: each part takes rows as long as they fit, at least one."""
    cuts: list[int] = []
    at, taken = 0, 0
    while True:
        at = max(at + 1, int(np.searchsorted(ends, taken + tokens, side="right")))
        if at >= len(ends):
            return cuts
        cuts.append(at)
        taken = int(ends[at - 1])
