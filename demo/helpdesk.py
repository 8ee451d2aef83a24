"""The embedded demo's traffic: a dated help-desk stream whose answer is "queue / priority", with a product launch.

Before the launch the stream is one world with mild weekly and yearly seasons. From the launch on a share of the
tickets is about products, queues and phrases that nobody saw before, while the old kinds go on. Each day is drawn
from (seed, date) alone, so any two windows agree where they overlap.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from demo import wording
from demo.wording import Issue


T = TypeVar("T")
Progress = Callable[[int, int], None]  # (steps done, steps in all)

STUDENT = "helpdesk"
LAUNCH = date(2025, 5, 12)
REFERENCE_WINDOW = "2025-04-01..2025-05-01"
QUIET_WINDOW = "2025-05-01..2025-05-12"
DRIFTED_WINDOW = "2025-05-12..2025-05-22"
START, END = date(2025, 4, 1), date(2025, 5, 22)
ROWS_PER_DAY, SEED = 200, 7

LABEL_NOISE = 0.02  # tickets that a person filed wrongly
REFERENCE_SHARE = 0.8  # tickets whose true answer became known
NEW_SHARE = 0.45  # of the tickets from the launch on
TYPO_SHARE, SHOUTING_SHARE = 0.02, 0.03  # of the words, of the tickets

ANSWERS = sorted(
    f"{queue} / {priority}"
    for queue in {issue.queue for issue in wording.OLD_ISSUES + wording.NEW_ISSUES}
    for priority in ("low", "normal", "high")
)
COLUMNS = ("request_id", "timestamp", "prompt", "response", "model_version", "mean_logprob", "latency_ms", "reference",
           "meta_channel", "meta_region")  # fmt: skip


def stream(start: date, end: date, rows_per_day: float = ROWS_PER_DAY, seed: int = SEED) -> pd.DataFrame:
    """Return the request log's rows of [start, end), sorted by time; `reference` is null where it is not known yet.

    About `rows_per_day` rows on an average day: fewer on weekends, more towards the end of the year.
    """
    frame = labelled(start, end, rows_per_day, seed)
    known = frame.pop("is_known")
    return frame.assign(reference=frame["reference"].where(known))[list(COLUMNS)]


def labelled(start: date, end: date, rows_per_day: float = ROWS_PER_DAY, seed: int = SEED) -> pd.DataFrame:
    """Return the same rows with the answer of every one in `reference`, and `is_known` for what a log would have."""
    days = [start + timedelta(days=n) for n in range((end - start).days)]
    rows = [row for day in days for row in _day(day, rows_per_day, seed)]
    frame = pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in NOT_SERVED] + ["is_known"])
    strings = {name: "string" for name in ("request_id", "prompt", "reference", "meta_channel", "meta_region")}
    frame = frame.astype({**strings, "is_known": bool})
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).astype("datetime64[us, UTC]")
    for name, dtype in NOT_SERVED.items():
        frame[name] = pd.Series(pd.NA if dtype == "string" else np.nan, index=frame.index, dtype=dtype)
    return frame


# What the champion adds later: nobody has answered these tickets yet.
NOT_SERVED = {"response": "string", "model_version": "string", "mean_logprob": "float64", "latency_ms": "float64"}


def _day(day: date, rows_per_day: float, seed: int) -> list[tuple[object, ...]]:
    rng = np.random.default_rng([seed, day.toordinal()])
    count = rng.poisson(rows_per_day * _season(day))
    seconds = np.sort(rng.normal(14 * 3600, 4 * 3600, count) % 86400)  # most write in the early afternoon
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return [
        (f"hd-{day:%Y%m%d}-{n:05d}", midnight + timedelta(seconds=round(float(second), 3)), *_ticket(rng, day))
        for n, second in enumerate(seconds)
    ]


def _season(day: date) -> float:
    """Return the traffic of a day relative to the mean: 1.14 on weekdays, .65 on weekends, +-10 % over the year."""
    week = 0.65 if day.weekday() >= 5 else 1.14
    return week * (1 + 0.1 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 350) / 365))


def _ticket(rng: np.random.Generator, day: date) -> tuple[object, ...]:
    """Return prompt, true answer, channel, region and whether the answer is known by now."""
    is_new = day >= LAUNCH and rng.random() < NEW_SHARE
    issue = _draw_issue(rng, wording.NEW_ISSUES if is_new else wording.OLD_ISSUES, day)
    channel = _weighted(rng, ("email", "chat", "phone"), (0.35, 0.5, 0.15) if is_new else (0.6, 0.25, 0.15))
    region = _weighted(rng, ("north", "south", "east", "west"), (0.35, 0.3, 0.2, 0.15))
    text, priority = _write(rng, issue, channel, is_new)
    answer = f"{issue.queue} / {priority}"
    if rng.random() < LABEL_NOISE:
        answer = _one(rng, ANSWERS if day >= LAUNCH else OLD_ANSWERS)
    return text, answer, channel, region, bool(rng.random() < REFERENCE_SHARE)


OLD_ANSWERS = [answer for answer in ANSWERS if answer.split(" / ")[0] in {i.queue for i in wording.OLD_ISSUES}]


def _draw_issue(rng: np.random.Generator, issues: tuple[Issue, ...], day: date) -> Issue:
    # Presents are sent back in January and are late in December: the mix moves a little with the year.
    winter = 0.2 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 1) / 365)
    weights = [issue.weight * (1 + winter * (issue.queue in ("returns", "shipping"))) for issue in issues]
    return _weighted(rng, issues, weights)


def _weighted(rng: np.random.Generator, choices: Sequence[T], weights: Sequence[float]) -> T:
    ends = list(accumulate(weights))  # Generator.choice does the same, some twenty times slower
    return choices[min(bisect(ends, rng.random() * ends[-1]), len(choices) - 1)]


def _one(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


# --------------------------------------------------------------------------------------------------------------
# Wording
# --------------------------------------------------------------------------------------------------------------


def _write(rng: np.random.Generator, issue: Issue, channel: str, is_new: bool) -> tuple[str, str]:
    """Return a ticket's text and its priority: the issue's own, unless the customer says how urgent it is."""
    sentences, priority = [_fill(rng, _one(rng, issue.phrases))], issue.priority
    if rng.random() < 0.15:
        sentences.append(_fill(rng, _one(rng, wording.FILLERS)))
    mood = rng.random()
    if mood < 0.15:
        sentences.append(_one(rng, wording.NEW_URGENT if is_new and mood < 0.08 else wording.URGENT))
        priority = "high"
    elif mood < 0.25 and priority != "high":
        sentences.append(_one(rng, wording.CALM))
        priority = "low"
    text = _one(rng, (". ", ", ", "; ", " - ")).join(sentences)
    if rng.random() < (0.5 if channel == "email" else 0.2):
        text = f"{_one(rng, wording.GREETINGS)}, {text}"
    if channel == "email" and rng.random() < 0.5:
        text = f"{text}. {_one(rng, wording.CLOSINGS)}, {_one(rng, wording.NAMES)}"
    return _scribble(rng, text), priority


def _fill(rng: np.random.Generator, phrase: str) -> str:
    """Return the phrase with each slot filled; a slot that stands twice is filled twice."""
    while "{" in phrase:
        slot = phrase[phrase.index("{") + 1 : phrase.index("}")]
        phrase = phrase.replace("{" + slot + "}", SLOTS[slot](rng), 1)
    return phrase


SLOTS: dict[str, Callable[[np.random.Generator], str]] = {
    "product": lambda rng: f"{_one(rng, wording.OWNERS)} {_one(rng, wording.BRANDS)} {_one(rng, wording.ITEMS)}",
    "new": lambda rng: f"{_one(rng, wording.OWNERS)} {_one(rng, wording.NEW_PRODUCTS)}",
    "order": lambda rng: f"{_one(rng, ('#', 'A-', 'no. '))}{rng.integers(1000, 99999)}",
    "amount": lambda rng: f"{rng.integers(5, 400)}.{_one(rng, ('00', '50', '90', '99'))} EUR",
    "days": lambda rng: str(rng.integers(2, 30)),
    "code": lambda rng: f"{_one(rng, ('E', 'X', ''))}{rng.integers(10, 600)}",
    "year": lambda rng: str(rng.integers(2009, 2025)),
    "colour": lambda rng: _one(rng, wording.COLOURS),
    "place": lambda rng: _one(rng, wording.PLACES),
    "name": lambda rng: _one(rng, wording.NAMES),
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
