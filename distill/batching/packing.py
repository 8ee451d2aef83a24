"""Rows -> bins: which rows share a sequence, and which bins a forward pass.

A bin is one sequence of a forward pass. Rows that share one see nothing of each other: their positions begin at 0
anew, and from that the model makes a block-diagonal causal mask (or calls a kernel for sequences of several lengths).

    padded   a bin holds one row; bins are as long as the longest
    packed   a bin holds rows up to some length: longer bins have less padding, and cost more attention
    flat     one bin holds a whole pass: for kernels whose cost does not depend on the bin
"""

from collections.abc import Sequence
from typing import Literal

Layout = Literal["padded", "packed", "flat"]
Bin = list[int]  # row numbers

_LENGTHS = 1, 2, 3, 4, 6, 8  # of packed bins, in units of the longest row


def passes(rows: Sequence[int], lengths: Sequence[int], tokens: int, layout: Layout, width: int) -> list[list[Bin]]:
    """Return the forward passes over these rows, as lists of bins; `lengths` [tokens] belong to `rows`.

    The longest rows come first, so that a pass has rows of about the same length. Bins x their length is at most
    `tokens`, unless one row alone is longer. Packed bins have the length that is cheapest for a model of this width:
    a block spends some 24 width^2 FLOP on a token's matrices, and 4 length width on its attention.
    """
    if layout != "packed":
        return _filled(rows, lengths, tokens, layout, 1)[0]
    plans = [_filled(rows, lengths, tokens, layout, longest) for longest in _LENGTHS]
    return min(plans, key=lambda plan: sum(bins * size * (6 * width + size) for bins, size in plan[1]))[0]


def _filled(
    rows: Sequence[int], lengths: Sequence[int], tokens: int, layout: Layout, longest: int
) -> tuple[list[list[Bin]], list[tuple[int, int]]]:
    """Return the passes and (bins, their length) of each; a row goes into the first bin that has room."""
    made: list[list[Bin]] = []
    room: list[int] = []  # in the bins of the last pass
    shapes: list[tuple[int, int]] = []
    size = 0  # of the bins of the last pass
    for length, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: (-pair[0], pair[1])):
        fits = next((at for at, free in enumerate(room) if free >= length), None) if layout != "padded" else None
        if fits is None and (not made or layout == "flat" or (len(room) + 1) * size > tokens):
            made.append([])
            size = max(length, tokens if layout == "flat" else min(longest * length, tokens))
            room = []
            shapes.append((0, 0))
        if fits is None:
            made[-1].append([])
            room.append(size)
            fits = len(room) - 1
        made[-1][fits].append(row)
        room[fits] -= length
        shapes[-1] = len(room), size - min(room)
    return made, shapes


def dealt(rows: Sequence[int], lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Return each process's rows: the longest first, each to the process that has the fewest tokens yet."""
    hands: list[list[int]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for length, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: (-pair[0], pair[1])):
        least = tokens.index(min(tokens))
        hands[least].append(row)
        tokens[least] += length
    return hands
