"""Rows that carry a drift: whose values lie in the bins and categories that grew. They are for the workspace alone."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.attribution import lie_in
from monitoring.drift_report import DriftReport
from monitoring.profile import ReferenceProfile
from monitoring.segments import Segment, rows_of
from monitoring.settings import DriftSettings
from monitoring.tally import Tally

SHOWN = 20
OUTPUTS = ("response", "refusal", "mean_logprob", "latency_ms")  # what the student made of a row


def carried(
    profile: ReferenceProfile, tally: Tally, features: pd.DataFrame, report: DriftReport, settings: DriftSettings
) -> pd.DataFrame:
    """Return which rows lie in a cell that grew, bool (rows, drifted columns); columns at info where none drifted."""
    chosen = [column for column in report.columns if column.drifted] or [
        column for column in report.columns if column.severity == "info"
    ]
    inside: dict[str, npt.NDArray[np.bool_]] = {}
    for column in chosen:
        reference = profile.columns[column.name]
        sides = reference.counted, tally.columns[column.name].counted
        inside[column.name] = lie_in(column.moved, features[column.name], reference, *sides, bins=settings.bins)
    return pd.DataFrame(inside, features.index, dtype=bool)


def drifted_slice(inside: pd.DataFrame, features: pd.DataFrame, segments: Sequence[Segment]) -> npt.NDArray[np.bool_]:
    """Return which rows are what has drifted, (rows,): in what grew of the inputs, or in a segment that carries it.

    The student's outputs do not count: the classes it gives more often are those that it knows (measured on titles of
    2016: agreement with the teacher 0.85 on them and 0.66 elsewhere, 0.62 on the rows with more unknown words).
    """
    found = inside.drop(columns=[name for name in OUTPUTS if name in inside]).any(axis=1).to_numpy(dtype=bool)
    for segment in segments:
        found = found | rows_of(features[segment.column], segment.value)
    return found


def examples(rows: pd.DataFrame, inside: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the logged rows that carry a drift in most columns, at most 20, with `drifted_in`; prompts included."""
    times = inside.sum(axis=1).to_numpy()
    order = np.random.default_rng(seed).permutation(len(rows))  # among equals a random choice, not the earliest
    order = order[np.argsort(-times[order], kind="stable")][:SHOWN]
    order = order[times[order] > 0]
    shown = rows.iloc[order][["request_id", "timestamp", "prompt", "response"]]
    names = np.array(inside.columns, object)
    return shown.assign(drifted_in=[names[inside.to_numpy()[at]].tolist() for at in order])
