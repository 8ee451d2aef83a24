"""Which prompts are the same, and which nearly: exact ones by content, near ones by MinHash over shingles of tokens.

Near means Jaccard similarity of the sets of SHINGLE consecutive tokens. Candidates come from locality-sensitive
hashing of MinHash signatures (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) and
are compared exactly. In each bucket every row is compared with the first only: time grows linearly with the tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Prompts = Sequence[NDArray[np.int32]]

SHINGLE = 3  # tokens
BANDS, ROWS = 16, 4  # of a signature: rows of similarity s meet in a bucket with probability 1 - (1 - s^ROWS)^BANDS
SLACK = 0.2  # a signature of 64 hashes is off by this much in fewer than one in a thousand
_ODD = np.uint64(0x9E3779B97F4A7C15)


def same(prompts: Prompts) -> NDArray[np.int64]:
    """Return for each prompt the number of the first with the same tokens, (N,); its own when it is the first."""
    first: dict[bytes, int] = {}
    found = (first.setdefault(prompt.tobytes(), at) for at, prompt in enumerate(prompts))
    return np.fromiter(found, np.int64, len(prompts))


def near(prompts: Prompts, groups: NDArray[np.int64], threshold: float, seed: int = 0) -> NDArray[np.int64]:
    """Return for each prompt the number of the row that stands for it, (N,); its own when none nearly is the same.

    Only rows of one group are compared. `threshold` is the Jaccard similarity from which two are near. What all
    prompts begin and end with, as a chat template does, does not count. That one row stands for another is passed on:
    the last of a chain may be less similar to the first.
    """
    stands = np.arange(len(prompts))
    if len(prompts) < 2:
        return stands
    shingles, offsets = _shingles(_without_frame(prompts))
    signatures = _signatures(shingles, offsets, seed)
    left = np.arange(len(prompts))  # rows that nothing stands for yet
    for band in range(BANDS):
        part = signatures[left, band * ROWS : (band + 1) * ROWS]
        row, first = _bucketed(part, groups[left])
        one, other = left[row], left[first]
        alike = (signatures[one] == signatures[other]).mean(1) >= threshold - SLACK
        one, other = one[alike], other[alike]
        is_near = _jaccard(shingles, offsets, one, other) >= threshold
        stands[one[is_near]] = other[is_near]
        left = left[stands[left] == left]
    while (stands[stands] != stands).any():  # a row that stood for others was found near to a third
        stands = stands[stands]
    return stands


def _without_frame(prompts: Prompts) -> list[NDArray[np.int32]]:
    head = _in_common(prompts, min(len(prompt) for prompt in prompts))
    rest = [prompt[head:] for prompt in prompts]
    tail = _in_common([prompt[::-1] for prompt in rest], min(len(prompt) for prompt in rest))
    return [prompt[: len(prompt) - tail] for prompt in rest]


def _in_common(prompts: Prompts, length: int) -> int:
    """Return how many of the first `length` tokens all prompts have in common."""
    for prompt in prompts:
        differs = prompt[:length] != prompts[0][:length]
        length = int(differs.argmax()) if differs.any() else length
    return length


def _shingles(prompts: Prompts) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of each prompt's shingles, sorted and different, one prompt after the other, and where."""
    lengths = np.array([len(prompt) for prompt in prompts])
    # Zeros between the prompts: one that is shorter than a shingle has one all the same.
    padded = np.zeros(int(lengths.sum()) + SHINGLE * len(prompts), np.uint64)
    starts = np.cumsum(lengths + SHINGLE) - (lengths + SHINGLE)
    for start, prompt in zip(starts, prompts, strict=True):
        padded[start : start + len(prompt)] = prompt.astype(np.uint64) + np.uint64(1)
    hashed = np.zeros(len(padded), np.uint64)
    for at in range(SHINGLE):
        hashed = _mixed(hashed * _ODD + np.roll(padded, -at))
    counts = np.maximum(lengths - SHINGLE + 1, 1)
    owner = np.repeat(np.arange(len(prompts)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = hashed[starts[owner] + within]
    order = np.lexsort((values, owner))
    owner, values = owner[order], values[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (values[1:] != values[:-1]))
    offsets = np.append(0, np.cumsum(np.bincount(owner[new], minlength=len(prompts))))
    return values[new], offsets


def _signatures(shingles: NDArray[np.uint64], offsets: NDArray[np.int64], seed: int) -> NDArray[np.uint32]:
    """Return the MinHash signatures, (N, BANDS * ROWS)."""
    salts = np.random.default_rng(seed).integers(0, 2**63, BANDS * ROWS).astype(np.uint64)
    found = np.empty((len(offsets) - 1, len(salts)), np.uint32)
    for at, salt in enumerate(salts):
        high = (_mixed(shingles ^ salt) >> np.uint64(32)).astype(np.uint32)
        found[:, at] = np.minimum.reduceat(high, offsets[:-1])
    return found


def _bucketed(signatures: NDArray[np.uint32], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that share a bucket with an earlier one, and the first of their bucket."""
    bucket = groups.astype(np.uint64)
    for column in signatures.T:
        bucket = _mixed(bucket * _ODD + column)
    _, first, inverse = np.unique(bucket, return_index=True, return_inverse=True)
    of_row = first[inverse]
    row = np.flatnonzero(of_row != np.arange(len(bucket)))
    row = row[groups[row] == groups[of_row[row]]]  # whatever the hash says
    return row, of_row[row]


def _jaccard(
    shingles: NDArray[np.uint64], offsets: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return |A and B| / |A or B| of the shingles of each pair of prompts, (pairs,)."""
    sizes = np.diff(offsets)
    found = np.zeros(len(one))
    for first in range(0, len(one), 10_000):  # bounds the memory
        a, b = one[first : first + 10_000], other[first : first + 10_000]
        pair = np.concatenate([np.repeat(np.arange(len(a)), sizes[rows]) for rows in (a, b)])
        values = np.concatenate([_taken(shingles, offsets, rows) for rows in (a, b)])
        order = np.lexsort((values, pair))
        pair, values = pair[order], values[order]
        twice = (pair[1:] == pair[:-1]) & (values[1:] == values[:-1])
        common = np.bincount(pair[1:][twice], minlength=len(a))
        found[first : first + len(a)] = common / (sizes[a] + sizes[b] - common)
    return found


def _taken(shingles: NDArray[np.uint64], offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    sizes = np.diff(offsets)[rows]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken: NDArray[np.uint64] = shingles[np.repeat(offsets[rows], sizes) + within]
    return taken


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each number scattered over 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
