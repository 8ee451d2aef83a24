"""Writes one ticket of the demo's help desk as people type: greetings, moods, slips, shouting."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

from demo import wording
from demo.wording import Issue

T = TypeVar("T")

TYPO_SHARE, SHOUTING_SHARE = 0.02, 0.03  # of the words, of the tickets


def write_ticket(rng: np.random.Generator, issue: Issue, channel: str, is_new: bool) -> tuple[str, str]:
    """Return a ticket's text and its priority: the issue's own, unless the customer says how urgent it is."""
    sentences, priority = [_fill(rng, one(rng, issue.phrases))], issue.priority
    if rng.random() < 0.15:
        sentences.append(_fill(rng, one(rng, wording.FILLERS)))
    mood = rng.random()
    if mood < 0.15:
        sentences.append(one(rng, wording.NEW_URGENT if is_new and mood < 0.08 else wording.URGENT))
        priority = "high"
    elif mood < 0.25 and priority != "high":
        sentences.append(one(rng, wording.CALM))
        priority = "low"
    text = one(rng, (". ", ", ", "; ", " - ")).join(sentences)
    if rng.random() < (0.5 if channel == "email" else 0.2):
        text = f"{one(rng, wording.GREETINGS)}, {text}"
    if channel == "email" and rng.random() < 0.5:
        text = f"{text}. {one(rng, wording.CLOSINGS)}, {one(rng, wording.NAMES)}"
    return _scribble(rng, text), priority


def _fill(rng: np.random.Generator, phrase: str) -> str:
    """Return the phrase with each slot filled; a slot that stands twice is filled twice."""
    while "{" in phrase:
        slot = phrase[phrase.index("{") + 1 : phrase.index("}")]
        phrase = phrase.replace("{" + slot + "}", SLOTS[slot](rng), 1)
    return phrase


SLOTS: dict[str, Callable[[np.random.Generator], str]] = {
    "product": lambda rng: f"{one(rng, wording.OWNERS)} {one(rng, wording.BRANDS)} {one(rng, wording.ITEMS)}",
    "new": lambda rng: f"{one(rng, wording.OWNERS)} {one(rng, wording.NEW_PRODUCTS)}",
    "order": lambda rng: f"{one(rng, ('#', 'A-', 'no. '))}{rng.integers(1000, 99999)}",
    "amount": lambda rng: f"{rng.integers(5, 400)}.{one(rng, ('00', '50', '90', '99'))} EUR",
    "days": lambda rng: str(rng.integers(2, 30)),
    "code": lambda rng: f"{one(rng, ('E', 'X', ''))}{rng.integers(10, 600)}",
    "year": lambda rng: str(rng.integers(2009, 2025)),
    "colour": lambda rng: one(rng, wording.COLOURS),
    "place": lambda rng: one(rng, wording.PLACES),
    "name": lambda rng: one(rng, wording.NAMES),
}


def _scribble(rng: np.random.Generator, text: str) -> str:
    """Return the text as people type: some words misspelt, some tickets shouted or without capitals."""
    words = [_misspell(rng, word) if rng.random() < TYPO_SHARE else word for word in text.split(" ")]
    style = rng.random()
    text = " ".join(words)
    if style < SHOUTING_SHARE:
        return text.upper() + "!"
    return text.lower() if style < 0.25 else text[0].upper() + text[1:]


def _misspell(rng: np.random.Generator, word: str) -> str:
    if len(word) < 4 or not word.isalpha():
        return word
    at = int(rng.integers(1, len(word) - 1))
    if rng.random() < 0.5:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def weighted(rng: np.random.Generator, choices: Sequence[T], weights: Sequence[float]) -> T:
    """Return one of the choices, as often as its weight says."""
    ends = list(accumulate(weights))  # Generator.choice does the same, some twenty times slower
    return choices[min(bisect(ends, rng.random() * ends[-1]), len(choices) - 1)]


def one(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Return one of the choices, each as often as any other."""
    return choices[int(rng.random() * len(choices))]
