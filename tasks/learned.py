"""The rows that come into question for learning: the window's, and a replay of the windows that were learned before."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from distill import mixture
from distill.errors import InputError
from distill.mixing import replay
from monitoring import traffic
from monitoring.features import texts
from monitoring.segments import MAX_VALUES, MISSING, PREFIX
from monitoring.settings import TrafficSettings
from monitoring.traffic import Window
from tasks.plan import GOLDEN_FILE, WINDOW_FILE
from tasks.run import Run, read_json

if TYPE_CHECKING:
    from tasks.teaching import Teaching

ERRORS_FILE = "teacher_errors.parquet"  # the rows of a retrain's teacher-error set, without their prompts


def learned_rows(run: Run, log: str, settings: "Teaching") -> pd.DataFrame:
    """Return the rows of the window to learn from and then those of windows its champion learned from, none held out.

    They have `window`, where they come from, `replay`, `segment`, what the replay was drawn over, and `held_before`:
    whether they, or others with their prompt, are of an earlier teacher-error set or of the golden set, which are
    judged by and no replay is drawn from.
    """
    frame = pd.read_parquet(run.folder / WINDOW_FILE)
    window = _not_held_out(frame, settings.traffic).assign(window=run.request.window)
    if window.empty:
        raise InputError(
            f"window {run.request.window} has {len(frame)} rows, all of them held out (traffic.held_out_from = "
            f"{settings.traffic.held_out_from}): there is nothing to learn from, choose a longer window"
        )
    before = run.request.champion.trained if run.request.champion else []
    earlier = [
        _not_held_out(traffic.read_window(log, Window.parse(text)), settings.traffic).assign(window=text)
        for text in before
    ]
    pool = pd.concat([window.head(0), *earlier]).drop_duplicates("request_id")
    held = held_before(run)
    known = pd.concat([window, pool])
    prompts = {*known.loc[known["request_id"].isin(held), "prompt"], *golden_prompts(run)}
    window = window.assign(held_before=window["request_id"].isin(held) | window["prompt"].isin(prompts))
    pool = pool[~pool["request_id"].isin([*frame["request_id"], *held]) & ~pool["prompt"].isin(prompts)]
    both = pd.concat([window, pool.assign(held_before=False)], ignore_index=True)
    both["segment"] = segments(both, settings.mixture.segments)
    pool = both.iloc[len(window) :]
    seed, share = settings.training.seed, settings.training.replay_share
    chosen = replay.reservoir(
        pd.factorize(pool["segment"])[0],
        replay.random_order(pool["request_id"], seed),
        mixture.replay_count(len(window), share, len(pool)),
        settings.mixture.evenness,
    )
    rows = pd.concat([both.iloc[: len(window)], pool.iloc[chosen]], ignore_index=True)
    return rows.assign(replay=np.arange(len(rows)) >= len(window))


def golden_prompts(run: Run) -> set[str]:
    """Return the prompts of the golden set; none where there is no such set."""
    file = run.folder / GOLDEN_FILE
    return set(pd.read_parquet(file, columns=["prompt"])["prompt"]) if file.is_file() else set()


def held_before(run: Run) -> set[str]:
    """Return the rows of the teacher-error sets of the retrains that made the champion and its ancestors."""
    return {name for folder in _ancestors(run) for name in _held(folder / "signals" / ERRORS_FILE)}


def segments(rows: pd.DataFrame, chosen: str) -> pd.Series:
    """Return the segment that each row belongs to; all are of one where there would be more than MAX_VALUES.

    chosen: a meta_ column, or "answer": a row's label, or else its logged answer. When empty it is the values of the
    meta_ columns together, of as many as make no more than MAX_VALUES by name, and the answer where none does.
    Raises InputError when there is no such column.
    """
    named = sorted(name for name in rows.columns if name.startswith(PREFIX))
    if chosen == "answer" or not (chosen or named):
        return _few(texts(rows["reference"].fillna(rows["response"])).fillna(MISSING))
    if chosen:
        if chosen not in named:
            raise InputError(
                f"mixture.segments = {chosen!r}, but the log has no such column: it has {', '.join(named) or 'none'}"
            )
        return _few(texts(rows[chosen]).fillna(MISSING))
    found: pd.Series | None = None
    for name in named:
        values = texts(rows[name]).fillna(MISSING)
        together = values if found is None else found + " / " + values
        if values.nunique() > 1 and together.nunique() <= MAX_VALUES:
            found = together
    return segments(rows, "answer") if found is None else found


def _few(values: pd.Series) -> pd.Series:
    return values if values.nunique() <= MAX_VALUES else pd.Series("", values.index)


def _ancestors(run: Run) -> Iterator[Path]:
    """Yield the folders of the retrains that led to the run's champion, those of this workspace."""
    champion = run.request.champion.model_dump() if run.request.champion else None
    seen: set[str] = set()
    while champion and champion["retrain_id"] not in seen:
        seen.add(champion["retrain_id"])
        folder = run.folder.parent / champion["retrain_id"]
        yield folder
        request = folder / "request.json"
        champion = read_json(request)["champion"] if request.is_file() else None


def _held(file: Path) -> list[str]:
    return pd.read_parquet(file, columns=["request_id"])["request_id"].tolist() if file.is_file() else []


def _not_held_out(frame: pd.DataFrame, settings: TrafficSettings) -> pd.DataFrame:
    return frame[traffic.row_hash(frame["request_id"]) < settings.held_out_from]
