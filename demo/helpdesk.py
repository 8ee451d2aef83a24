"""The embedded demo's traffic: a dated help-desk stream whose answer is "queue / priority", with a product launch.

Before the launch the stream is one world with mild weekly and yearly seasons. From the launch on a share of the
tickets is about products, queues and phrases that nobody saw before, while the old kinds go on. Each day is drawn
from (seed, date) alone, so any two windows agree where they overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from demo import wording
from demo.tickets import one, weighted, write_ticket
from demo.wording import Issue
from demo.workspace import BaseRecipe, TeacherRecipe, Value, append_missing, writable, write_config

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

ANSWERS = sorted(
    f"{queue} / {priority}"
    for queue in {issue.queue for issue in wording.OLD_ISSUES + wording.NEW_ISSUES}
    for priority in ("low", "normal", "high")
)
OLD_ANSWERS = [answer for answer in ANSWERS if answer.split(" / ")[0] in {i.queue for i in wording.OLD_ISSUES}]
# Vocabulary, sizes and steps: some 40 s for the teacher and 20 s for the first champion on two CPU cores.
VOCABULARY = 1024
ARCHIVE_BEFORE, ARCHIVE_ROWS_PER_DAY = timedelta(days=14), 400
TEACHER = TeacherRecipe(width=128, layers=2, heads=4, steps=300, batch_size=64, learning_rate=3e-3, seed=0)
BASE = BaseRecipe(width=96, layers=2, heads=3, seed=0)
TRAINING: dict[str, Value] = {
    "tokens_per_step": 1536,  # some 64 tickets
    "first_epochs": 6.0,
    "first_learning_rate": 3e-3,
    "epochs": 4.0,
    "learning_rate": 2e-3,
    "replay_share": 0.5,
}

COLUMNS = ("request_id", "timestamp", "prompt", "response", "model_version", "mean_logprob", "latency_ms", "reference",
           "meta_channel", "meta_region")  # fmt: skip
# What the champion adds later: nobody has answered these tickets yet.
NOT_SERVED = {"response": "string", "model_version": "string", "mean_logprob": "float64", "latency_ms": "float64"}


def prepare(workspace: Path, progress: Progress | None = None) -> Path:
    """Fill the workspace with log, teacher, base and settings, whichever are missing; return the settings file.

    The teacher learns from an archive: tickets of the weeks around the launch that people filed by hand, none of
    which is in the log. `progress` is told of its training. Raises InputError when the workspace cannot be written.
    """
    from demo.teacher import make_student, train_teacher
    from demo.tokenizer import train_tokenizer

    workspace = writable(workspace)
    rows = stream(START, END)
    append_missing(workspace / "traffic", rows)
    archive = labelled(LAUNCH - ARCHIVE_BEFORE, END, ARCHIVE_ROWS_PER_DAY, SEED + 1)
    before = rows.loc[rows["timestamp"] < REFERENCE_WINDOW.split("..")[1], "prompt"]
    tokenizer = train_tokenizer(before.tolist(), ANSWERS, VOCABULARY)
    prompts, answers = archive["prompt"].tolist(), archive["reference"].tolist()
    teacher = train_teacher(workspace / "teacher", tokenizer, prompts, answers, progress=progress, **TEACHER)
    base = make_student(workspace / "base", tokenizer, **BASE)
    tables: dict[str, dict[str, Value]] = {
        "student": {"name": STUDENT, "base": str(base), "max_prompt_tokens": 128, "max_new_tokens": 8},
        "teacher": {"model": str(teacher)},
        "traffic": {"window_days": 10.0},
        "reference": {"window": REFERENCE_WINDOW},
        "training": TRAINING,
    }
    return write_config(workspace / "redistill.toml", tables, workspace=str(workspace))


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
    strings = dict.fromkeys(("request_id", "prompt", "reference", "meta_channel", "meta_region"), "string")
    frame = frame.astype({**strings, "is_known": bool})
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).astype("datetime64[us, UTC]")
    for name, dtype in NOT_SERVED.items():
        frame[name] = pd.Series(pd.NA if dtype == "string" else np.nan, index=frame.index, dtype=dtype)
    return frame


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
    channel = weighted(rng, ("email", "chat", "phone"), (0.35, 0.5, 0.15) if is_new else (0.6, 0.25, 0.15))
    region = weighted(rng, ("north", "south", "east", "west"), (0.35, 0.3, 0.2, 0.15))
    text, priority = write_ticket(rng, issue, channel, is_new)
    answer = f"{issue.queue} / {priority}"
    if rng.random() < LABEL_NOISE:
        answer = one(rng, ANSWERS if day >= LAUNCH else OLD_ANSWERS)
    return text, answer, channel, region, bool(rng.random() < REFERENCE_SHARE)


def _draw_issue(rng: np.random.Generator, issues: tuple[Issue, ...], day: date) -> Issue:
    # Presents are sent back in January and are late in December: the mix moves a little with the year.
    winter = 0.2 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 1) / 365)
    weights = [issue.weight * (1 + winter * (issue.queue in ("returns", "shipping"))) for issue in issues]
    return weighted(rng, issues, weights)
