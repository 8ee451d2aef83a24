"""What a challenger is judged on: parts of the held-out traffic, and sets of rows that were put aside to judge by.

    fresh START..END          the window, which is to be gained on
    old START..END            each earlier profile window, which is not to be forgotten
    golden                    rows that people chose (judging.golden), read when the request is made
    teacher errors            rows that this retrain's mixture held out because the champion fails on them
    segment meta_x = VALUE    the fresh slice's rows with one value of a meta_ column

No row is in two slices but those of segments, which are parts of the fresh one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill.mixture import draw
from monitoring import traffic
from monitoring.features import floats, is_numeric, texts
from monitoring.judging_settings import JudgingSettings
from monitoring.naming import shortened, unique
from monitoring.segments import MAX_VALUES, MISSING, PREFIX, rows_of
from monitoring.traffic import Window
from tasks.learned import ERRORS_FILE
from tasks.plan import GOLDEN_FILE, WINDOW_FILE
from tasks.run import Run
from tasks.teaching import Teaching

Kind = Literal["fresh", "old", "golden", "teacher_errors"]
GOLDEN, TEACHER_ERRORS = "golden", "teacher errors"  # slices of these names
FEW = 12  # a numeric column with more values is cut into quarters


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


def segments(rows: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield each segment of some rows, name, meta_ column and which rows it has, (rows,): the values of each column.

    A numeric column of many values is cut into quarters; a text column of more than MAX_VALUES makes no segments, nor
    does one with a single value.
    """
    found = [
        (f"segment {column} = {value}", column, chosen)
        for column in sorted(name for name in rows.columns if name.startswith(PREFIX))
        for value, chosen in _of_column(rows[column])
    ]
    names = unique([name for name, _, _ in found])
    yield from ((name, column, chosen) for name, (_, column, chosen) in zip(names, found, strict=True))


def _of_column(column: pd.Series) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return what the segments of one column are called and which rows they have; none where there is but one."""
    missing, found = column.isna().to_numpy(), []
    if is_numeric(column) and column.nunique() > FEW:
        values = floats(column)
        edges = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75]))
        quarter = np.searchsorted(edges, values, side="left")  # as drift's bins: edges[i - 1] < value <= edges[i]
        for number in range(len(edges) + 1):
            chosen = (quarter == number) & ~missing
            if chosen.any():
                found.append((f"{values[chosen].min():g} to {values[chosen].max():g}", chosen))
    elif column.nunique() <= MAX_VALUES:
        found = [(shortened(str(value)), rows_of(column, str(value))) for value in texts(column).dropna().unique()]
    if missing.any() and found:
        found.append((MISSING, missing))
    return sorted(found, key=lambda segment: segment[0]) if len(found) > 1 else []


def _held_out(frame: pd.DataFrame, settings: JudgingSettings, teaching: Teaching) -> pd.DataFrame:
    chosen = frame[traffic.row_hash(frame["request_id"]) >= teaching.traffic.held_out_from]
    if len(chosen) > settings.max_rows:
        chosen = chosen.iloc[draw(len(chosen), settings.max_rows, seed=0)]
    return chosen
