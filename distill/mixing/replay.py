"""Replay of earlier traffic, so that a student does not forget it: a reservoir for each segment.

A row has a random number of its own that never changes, and a reservoir keeps the rows with the smallest: a uniform
sample of its segment whatever windows the rows came in, most of which is the same sample again when more come in, so
that the teacher's signals for it have been bought (bottom-k sampling; Cohen, Kaplan 2007).
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def random_order(names: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """Return a number for each row, a pure function of (seed, its name): its place in every draw, (N,)."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest() for name in names]
    return np.frombuffer(b"".join(digests), "<u8")


def quotas(sizes: NDArray[np.int64], count: int, evenness: float) -> NDArray[np.int64]:
    """Return how many of `count` rows each segment gives, (segments,), at most all it has.

    A share goes by rows ** (1 - evenness): 0 as the traffic was, 1 the same for all. What a segment cannot give the
    others do. Together they give `count` rows, or all there are.
    """
    count = min(count, int(sizes.sum()))
    found = np.zeros(len(sizes), np.int64)
    wanted = np.where(sizes > 0, np.maximum(sizes, 1).astype(np.float64) ** (1 - evenness), 0.0)
    while (rest := count - int(found.sum())) > 0:
        open_ = found < sizes
        share = np.where(open_, wanted, 0.0) * (rest / wanted[open_].sum())
        whole = np.minimum(np.floor(share).astype(np.int64), sizes - found)
        if not whole.any():  # fewer rows than segments are left: one each, the largest parts first
            largest = np.argsort(-share, kind="stable")[:rest]
            whole[largest] = np.minimum(1, (sizes - found)[largest])
        found += whole
    return found


def reservoir(segments: NDArray[np.int64], order: NDArray[np.uint64], count: int, evenness: float) -> NDArray[np.int64]:
    """Return the numbers of `count` rows, sorted: of each segment its quota, those that come first in `order`.

    segments: (N,) from 0 on. order: (N,) of `random_order`.
    """
    sizes = np.bincount(segments, minlength=1)
    by_segment = np.lexsort((order, segments))
    place = np.arange(len(segments)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_segment[place < quotas(sizes, count, evenness)[segments[by_segment]]])
