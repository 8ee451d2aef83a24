"""Two ways to cut one text into tokens -> the spans that both cut out of it, by two pointers that only move forward."""

from collections.abc import Sequence
from typing import NamedTuple

from distill.alignment.pieces import INSIDE


class Span(NamedTuple):
    """Tokens of one and the other that stand for the same characters; half-open."""

    theirs: tuple[int, int]
    own: tuple[int, int]


def spans(ends: Sequence[int], borders: Sequence[tuple[int, int]]) -> list[Span]:
    """Return the smallest spans, in order, in as many steps as both have tokens.

    ends: where the teacher's tokens end, INSIDE where that is no border. borders: after each of the student's tokens,
    from and to; with from > to it is none. Tokens after the last border that both have are in no span.
    """
    found: list[Span] = []
    began = at = begun = own = 0
    while at < len(ends) and own < len(borders):
        end, (low, high) = ends[at], borders[own]
        if end == INSIDE or (low <= high and end < low):
            at += 1
        elif low > high or end > high:
            own += 1
        else:
            at, own = at + 1, own + 1
            found.append(Span((began, at), (begun, own)))
            began, begun = at, own
    return found
