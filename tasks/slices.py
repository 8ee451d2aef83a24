"""What a challenger is judged on: parts of the held-out traffic, and sets of rows that were put aside to judge by.

    fresh START..END          the window, which is to be gained on
    old START..END            each earlier profile window, which is not to be forgotten
    golden                    rows that people chose (judging.golden), read when the request is made
    teacher errors            rows that this retrain's mixture held out because the champion fails on them
    segment meta_x = VALUE    the fresh slice's rows with one value of a meta_ column (tasks/segments.py)

No row is in two slices but those of segments, which are parts of the fresh one.
"""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from distill.mixture import draw
from monitoring import traffic
from monitoring.judging_settings import JudgingSettings
from monitoring.traffic import Window
from tasks.learned import ERRORS_FILE
from tasks.plan import GOLDEN_FILE, WINDOW_FILE
from tasks.run import Run
from tasks.teaching import Teaching

Kind = Literal["fresh", "old", "golden", "teacher_errors"]
GOLDEN, TEACHER_ERRORS = "golden", "teacher errors"  # slices of these names


@dataclass(frozen=True)
class HeldOut:
    """Rows of one slice that no student has learned from, with the answer each of them should get."""

    name: str
    kind: Kind
    rows: pd.DataFrame


def held_out_slices(
    run: Run, log: str, settings: JudgingSettings, teaching: Teaching
) -> tuple[list[HeldOut], list[str]]:
    """Return the fresh slice, one for each earlier profile window and the golden set, and what was left out.

    No row of the traffic is in two slices: a newer window's rows belong to it alone.
    """
    fresh = pd.read_parquet(run.folder / WINDOW_FILE)
    if run.request.champion is None:
        fresh = traffic.read_window(log, Window.parse(run.request.profile_window))
    slices = [HeldOut(f"fresh {run.request.window}", "fresh", _held_out(fresh, settings, teaching))]
    taken, left_out = set(fresh["request_id"]), []
    for text in reversed(run.request.champion.profiled if run.request.champion else []):
        rows = traffic.read_window(log, Window.parse(text))
        rest = rows[~rows["request_id"].isin(taken)]
        taken |= set(rest["request_id"])
        chosen = _held_out(rest, settings, teaching)
        if len(rest) < len(rows) and len(chosen) < settings.min_rows:
            left_out.append(f"{text}: only {len(chosen)} held-out rows lie outside newer windows")
            continue
        slices.append(HeldOut(f"old {text}", "old", chosen))
    if (run.folder / GOLDEN_FILE).is_file():
        slices.append(HeldOut(GOLDEN, "golden", pd.read_parquet(run.folder / GOLDEN_FILE)))
    return slices, left_out


def teacher_errors(run: Run) -> HeldOut | None:
    """Return this retrain's teacher-error set, whose targets are the teacher's answers; None without any.

    A weak slice: its rows were chosen because the champion fails on them, so that the champion's exact match is 0 there
    and no challenger can be worse. It shows how much of what the champion did not know was learned beyond the rows
    trained on; as a gate it can only matter for metrics other than agreement, such as refusals.
    """
    file = run.stage("signals") / ERRORS_FILE
    errors = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
    if errors.empty:
        return None
    rows = pd.read_parquet(run.folder / WINDOW_FILE).drop(columns="reference")
    rows = rows.merge(errors[["request_id", "teacher_response"]], on="request_id", validate="one_to_one")
    rows = rows.rename(columns={"teacher_response": "target"})
    return HeldOut(TEACHER_ERRORS, "teacher_errors", rows)


def _held_out(frame: pd.DataFrame, settings: JudgingSettings, teaching: Teaching) -> pd.DataFrame:
    chosen = frame[traffic.row_hash(frame["request_id"]) >= teaching.traffic.held_out_from]
    if len(chosen) > settings.max_rows:
        chosen = chosen.iloc[draw(len(chosen), settings.max_rows, seed=0)]
    return chosen
